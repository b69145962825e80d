"""`eval answers`: the product's own turn asked three ways, alone, with what it finds, and with the right passage."""

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chatkit import indexing, wiring
from chatkit.engines import use_of_passages
from chatkit.errors import InvalidRequest
from chatkit.evaluation import answer_text
from chatkit.evaluation.beir import BeirSet, Query, read_set
from chatkit.evaluation.report import Report
from chatkit.models import sources
from chatkit.protocols import Retriever
from chatkit.service import OpenChatKitService, new_request_id
from chatkit.settings import Settings
from chatkit.types import ChatRequest, Message, Passage, Reply, RetrievalOptions, SamplingParams

# Name of the index that is built of the corpus, and the beginning of those that hold the right passages of one query.
INDEX = "eval"
_GOLD = "gold:"
WAYS = ("closed", "retrieved", "gold")
# A reply that says more of a passage than this has copied it, and one of which more stands in a passage quotes it.
COPIED = QUOTED = 0.5

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AnswerEval:
    """What is asked.

    Attributes:
        limit: the first so many queries; 0 takes all.
        at_once: turns that run at a time; the engine batches them.
        instructions: a system message of the evaluation's own, after the service's; "" for none.
        k: passages looked up for a query; 0 takes the service's setting.
        only_retrieved: leave out the other two ways.
    """

    limit: int = 0
    at_once: int = 16
    max_new_tokens: int = 32
    instructions: str = ""
    k: int = 0
    only_retrieved: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        """Return the ways in which an answerable query is asked."""
        return ("retrieved",) if self.only_retrieved else WAYS

    def __post_init__(self) -> None:
        """Check every bound that the request does not check."""
        if self.limit < 0 or self.at_once < 1:
            raise InvalidRequest(f"limit is {self.limit} and at-once {self.at_once}, expected at least 0 and 1")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query and the replies it got, by way."""

    query: Query
    replies: dict[str, Reply] = field(default_factory=dict)

    @property
    def answerable(self) -> bool:
        return str(self.query.metadata.get("answerability", "ANSWERABLE")) == "ANSWERABLE"


def eval_answers(settings: Settings, folder: Path, what: AnswerEval, progress: Progress | None = None) -> Report:
    """Ask every query of a set greedily and compare the replies with its answers.

    The turn is the service's own: moderated under the policy of the settings, stored in memory, with the index built of
    the corpus by the product's own build.

    Raises:
        NotFound: the folder has no set in the BEIR layout.
        InvalidRequest: no query has an answer and a judged document.
        ChatkitError: a part of the service cannot be opened, or a turn failed.
    """
    data = read_set(folder)
    asked = _chosen(data, what)
    with tempfile.TemporaryDirectory(prefix="chatkit-eval-") as home:
        corpus = Path(home) / "corpus"
        names = write_corpus(data, corpus)
        settings = replace(settings, home=Path(home), index=INDEX, store="memory", session_keys="")
        indexing.prepare_index(settings, indexing.Asked([str(corpus)]), name=INDEX, progress=None)
        asyncio.run(_ask_all(settings, data, asked, what, progress or (lambda done, total: None)))
    rows = [_row(one, data, {name: key for key, name in names.items()}) for one in asked]
    return Report("eval answers", described(settings, folder, what), answer_figures(rows), rows)


def _chosen(data: BeirSet, what: AnswerEval) -> list[_Asked]:
    """Return the queries with an answer and a judged document, and those marked as having no answer in the corpus."""
    asked = [_Asked(query) for query in data.queries]
    kept = [
        one
        for one in asked
        if _unanswerable(one.query) or (one.answerable and one.query.answers and one.query.id in data.qrels)
    ]
    kept = kept[: what.limit or None]
    if not any(one.answerable for one in kept):
        raise InvalidRequest("no query has metadata.answers and a judged document, expected a question-answering set")
    return kept


def _unanswerable(query: Query) -> bool:
    return query.metadata.get("answerability") == "UNANSWERABLE"


def write_corpus(data: BeirSet, folder: Path) -> dict[str, str]:
    """Write each document as a Markdown file with its title and return id → file name; ids may be no file names."""
    folder.mkdir(parents=True)
    names = {}
    for number, one in enumerate(data.corpus.values()):
        names[one.id] = f"{number:07}.md"
        title = f"# {' '.join(one.title.split())}\n\n" if one.title.strip() else ""
        (folder / names[one.id]).write_text(f"{title}{one.text}\n", encoding="utf-8")
    return names


class _WithGold:
    """The index of the corpus, and for each query one that holds the passages judged relevant to it."""

    def __init__(self, index: Retriever, data: BeirSet) -> None:
        self._index = index
        self._data = data

    async def search(self, query: str, *, k: int, index: str | None = None, **more: Any) -> tuple[Passage, ...]:
        if index is None or not index.startswith(_GOLD):
            return await self._index.search(query, k=k, index=index, **more)
        grades = self._data.qrels.get(index.removeprefix(_GOLD), {})
        best = sorted((key for key in grades if key in self._data.corpus), key=lambda key: -grades[key])[:k]
        return tuple(_gold_passage(self._data, key) for key in best)


def _gold_passage(data: BeirSet, key: str) -> Passage:
    one = data.corpus[key]
    return Passage(one.id, one.text, one.title, one.id, end=len(one.text), score=1.0)


async def _ask_all(
    settings: Settings, data: BeirSet, asked: Sequence[_Asked], what: AnswerEval, progress: Progress
) -> None:
    """Fill in the replies; `at_once` turns run beside each other, over the ways of all queries."""
    jobs = [(one, way) for one in asked for way in what.ways if one.answerable or way == "retrieved"]
    gate = asyncio.Semaphore(what.at_once)
    done = 0

    def around(index: Retriever | None) -> Retriever:
        assert index is not None  # the settings name one
        return _WithGold(index, data)

    async def ask(service: OpenChatKitService, one: _Asked, way: str) -> None:
        nonlocal done
        async with gate:
            one.replies[way] = await service.reply(_request(one.query, way, settings, what))
        done += 1
        progress(done, len(jobs))

    async with AsyncExitStack() as stack:
        service = await wiring.build_service(settings, around=around)
        stack.push_async_callback(service.close, 0)
        async with asyncio.TaskGroup() as group:
            for one, way in jobs:
                group.create_task(ask(service, one, way))


def _request(query: Query, way: str, settings: Settings, what: AnswerEval) -> ChatRequest:
    k = what.k or settings.k
    retrieval = {
        "closed": RetrievalOptions(enabled=False),
        "retrieved": RetrievalOptions(k=k),
        "gold": RetrievalOptions(k=k, index=f"{_GOLD}{query.id}"),
    }[way]
    return ChatRequest(
        text=query.text,
        request_id=new_request_id(),
        sampling=SamplingParams(max_new_tokens=what.max_new_tokens, temperature=0.0),
        retrieval=retrieval,
        instructions=what.instructions,
        history=_history(query.metadata.get("history") or ()),
        deadline_s=3600.0,  # a turn waits for its place among the others, and the machine may be slow
    )


def _history(told: Iterable[Mapping[str, str]]) -> tuple[Message, ...] | None:
    """Return the conversation before a query, from the first message to the last answer; None where there is none."""
    messages = [Message("assistant" if row["role"] == "assistant" else "user", row["text"]) for row in told]
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return tuple(messages) or None


def _row(one: _Asked, data: BeirSet, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return what one query got."""
    query = one.query
    row: dict[str, Any] = {"id": query.id, "question": query.text, "answers": list(query.answers)}
    row["answerable"] = one.answerable
    for way, reply in one.replies.items():
        row[way] = {"reply": reply.text, "finish_reason": reply.finish_reason, "words": answer_text.length(reply.text)}
        if one.answerable:
            row[way] |= {
                "contains": answer_text.contains(reply.text, query.answers),
                "f1": round(answer_text.f1(reply.text, query.answers), 4),
                "em": answer_text.exact(reply.text, query.answers),
            }
    found = one.replies["retrieved"]
    row["sources"] = [ids.get(Path(passage.source).name, passage.source) for passage in found.passages]
    texts = [passage.text for passage in found.passages]
    documents = [data.corpus[key].text for key in dict.fromkeys(row["sources"]) if key in data.corpus]
    row["copied"] = _most(answer_text.copied, found.text, texts)
    row["copied_document"] = _most(answer_text.copied, found.text, documents)
    row["quoted"] = _most(answer_text.quoted, found.text, texts)
    row["sentences"] = len(found.citations)
    row["supported"] = sum(citation.supported for citation in found.citations)
    row["citations_ms"] = _citations_ms(found)
    return row


def _most(share: Callable[[str, str], float], reply: str, texts: Iterable[str]) -> float:
    return round(max((share(reply, text) for text in texts), default=0.0), 4)


def _citations_ms(reply: Reply) -> float:
    stages = reply.timings
    return round((stages["citations"] - stages["finish"]) * 1000, 1) if "citations" in stages else 0.0


def answer_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the named figures of some rows.

    `copied_half` is the share of replies that say more than half of one of the passages they were given again, with
    `.document` of one of the documents that those are cut from; `quoted_half` that of replies which are for more than
    half one quote of a passage; `supported` the share of the sentences of replies with passages that one supports.
    """
    answerable = [row for row in rows if row["answerable"]]
    figures: dict[str, float] = {}
    ways = [way for way in WAYS if all(way in row for row in answerable)]
    for name in ("contains", "f1", "em"):
        for way in ways:
            figures[f"{name}.{way}"] = _mean(row[way][name] for row in answerable)
    figures["reply_words"] = _mean(row["retrieved"]["words"] for row in answerable)
    for way in ways:
        if way != "retrieved":
            figures[f"reply_words.{way}"] = _mean(row[way]["words"] for row in answerable)
    figures["copied_half"] = _mean(row["copied"] > COPIED for row in answerable)
    figures["copied_half.document"] = _mean(row["copied_document"] > COPIED for row in answerable)
    figures["quoted_half"] = _mean(row["quoted"] > QUOTED for row in answerable)
    sentences = sum(row["sentences"] for row in answerable)
    figures["supported"] = round(sum(row["supported"] for row in answerable) / max(1, sentences), 4)
    figures["with_source"] = _mean(bool(row["sources"]) for row in answerable)
    figures["refused"] = _mean(row["retrieved"]["finish_reason"] == "content_filter" for row in answerable)
    figures["citations_ms"] = round(statistics.median(row["citations_ms"] for row in answerable), 1)
    figures["questions"] = len(answerable)
    unanswerable = [row for row in rows if not row["answerable"]]
    if unanswerable:
        figures["unanswerable.questions"] = len(unanswerable)
        figures["unanswerable.answered_with_source"] = _mean(
            _answered(row) and bool(row["sources"]) for row in unanswerable
        )
        figures["unanswerable.answered_with_support"] = _mean(row["supported"] > 0 for row in unanswerable)
    return figures


def _answered(row: Mapping[str, Any]) -> bool:
    return bool(row["retrieved"]["finish_reason"] != "content_filter")


def _mean(values: Iterable[Any]) -> float:
    return round(statistics.fmean(map(float, values)), 4)


def described(settings: Settings, folder: Path, what: AnswerEval) -> dict[str, Any]:
    """Return the settings under which the figures hold."""
    told, sentences = use_of_passages(settings)
    return {
        "set": folder.resolve().name,
        "limit": what.limit,
        "at_once": what.at_once,
        "sampling": "greedy",
        "max_new_tokens": what.max_new_tokens,
        "instructions": what.instructions,
        "k": what.k or settings.k,
        "only_retrieved": what.only_retrieved,
        "model": sources.name_of(settings.chat_model, "chat", settings.profile),
        "encoder": sources.name_of(settings.encoder, "encoder", settings.profile),
        "engine": settings.engine,
        "system_prompt": settings.system_prompt,
        "min_score": settings.min_score,
        "source_prompt": told,
        "source_sentences": sentences,
        "min_ratio": settings.min_ratio,
        "policy": settings.policy,
        "gate": settings.gate,
        "citations": settings.citations,
    }
