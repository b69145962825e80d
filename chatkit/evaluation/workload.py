"""Prompts to measure with: all different, made from a seed, each exactly as many tokens as asked once rendered."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from chatkit.errors import InvalidRequest
from chatkit.models import gguf, local, sources
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService, new_request_id
from chatkit.settings import Settings
from chatkit.testing import KeywordModerator, MemoryStore
from chatkit.types import ChatRequest, Chunk, SamplingParams

# Stands for the message while the frame around it is found out; no tokenizer joins it with what stands beside.
_MARK = "§message§"
_ASK = "Continue this story with many more sentences."
_NOUNS = "river teacher garden ship doctor forest engine letter window bridge market child horse island road winter"
_PLACES = "house station mountain school harbour field library village tower lake"
_VERBS = "found followed painted carried watched repaired visited remembered crossed described"
_ADJECTIVES = "old quiet large green bright small heavy warm strange early"
# Fills what no whole sentence fits in.
_FILLERS = "and then again later also there once more still now"


@dataclass(frozen=True, slots=True)
class Workload:
    """One prompt: the message a client sends, and the token ids the service makes of it for the model."""

    message: str
    ids: list[int]


class PromptFrame:
    """What the service puts around a message, found by letting the service render one."""

    def __init__(self, settings: Settings) -> None:
        file = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
        self.folder, self.facts = gguf.converted(file, cache=sources.derived_dir(file, models_dir=settings.models))
        model = local.LocalModel(self.facts, self.folder, local.LocalOptions())  # never started: only its words
        self.tokenizer = model.tokenizer
        before, mark, self._after = asyncio.run(_rendered(model, settings.system_prompt)).partition(_MARK)
        if not mark:
            raise AssertionError("the rendered prompt holds the message")
        self._before = before
        said = before[before.index(settings.system_prompt) :]
        #: The system message as the model reads it: the setting and the date that the service puts after it.
        self.system = said[: min(said.index(mark) for mark in self.facts.special_tokens if mark in said)]

    def ids(self, message: str) -> list[int]:
        """Return the token ids of the prompt for `message`."""
        rendered = self._before + message + self._after
        return list(self.tokenizer.encode(rendered, add_special_tokens=False).ids)

    def prompts(self, tokens: int, seed: int) -> Iterator[Workload]:
        """Yield prompts of exactly `tokens` tokens without end; equal seeds give equal prompts.

        Raises:
            InvalidRequest: the frame alone is longer.
        """
        least = len(self.ids(_ASK))
        if tokens < least:
            raise InvalidRequest(f"prompt-tokens is {tokens}, expected at least {least} for this model's prompt format")
        words = random.Random(seed)
        seen = set()
        while True:
            message = self._message(tokens, words)
            if message not in seen:
                seen.add(message)
                yield Workload(message, self.ids(message))

    def _message(self, tokens: int, words: random.Random) -> str:
        """Return a message that fills the prompt: sentences, then single words, tried until the count is met."""
        while True:
            story = ""
            while len(self.ids(f"{story}{(more := _sentence(words))} {_ASK}")) <= tokens:
                story += more + " "
            while len(self.ids(f"{story}{_ASK}")) < tokens:
                story += words.choice(_FILLERS.split()) + " "
            message = f"{story}{_ASK}"
            if len(self.ids(message)) == tokens:
                return message


def _sentence(words: random.Random) -> str:
    """Return a sentence as long as one of ordinary prose, some 20 words: its length decides what moderation costs."""
    first, second = (
        "the {} {} {} the {} near the {}".format(
            *(words.choice(kind.split()) for kind in (_ADJECTIVES, _NOUNS, _VERBS, _NOUNS, _PLACES))
        )
        for _ in range(2)
    )
    return f"T{first[1:]} while {second}."


async def _rendered(model: local.LocalModel, system_prompt: str) -> str:
    """Return the prompt that the service itself makes of `_MARK`."""
    recorder = _Recorder(model)
    service = OpenChatKitService(
        recorder, KeywordModerator(), MemoryStore(), options=ServiceOptions(system_prompt=system_prompt)
    )
    await service.reply(ChatRequest(_MARK, new_request_id(), sampling=SamplingParams(max_new_tokens=1)))
    return recorder.prompt


class _Recorder:
    """A language model that keeps the prompt and says nothing."""

    ready = True

    def __init__(self, model: local.LocalModel) -> None:
        self.name, self.context_window, self.format = model.name, model.context_window, model.format
        self.count_tokens = model.count_tokens
        self.prompt = ""

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> "_Silence":
        """Keep the prompt."""
        self.prompt = prompt
        return _Silence()


class _Silence:
    """A generation that is over."""

    def cancel(self) -> None:
        """Do nothing: there is nothing to stop."""

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the end."""
        yield Chunk("", 0, "stop", 1)
