"""Reads the public sets that the head is fitted on and measured with; the folder layout is that of the model card."""

import csv
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chatkit.errors import ConfigError
from chatkit.moderation import manuals, orders
from chatkit.moderation.copies import digest_of, key, near_copies
from chatkit.moderation.network import SCORED
from chatkit.moderation.normalise import normalised
from chatkit.release import overlapping_windows, tail
from chatkit.types import LABELS

# Part of every hold-out key: changing it draws other held-out rows.
SEED = 20240607
BENIGN: Mapping[str, float] = dict.fromkeys(SCORED, 0.0)
# Texts of these sets are themselves orders to a model, or hold some: whether a document may say them is left open.
PROMPTS = ("ailuminate", "harmbench", "strongreject", "advbench", "catqa", "harmfulqa", "self-instruct", "mt-bench")
# Texts in which nobody looked for injections, or whose form is that of one: a request is no injection, and an injection
# makes one. What requests may score is for calibration to say.
UNASKED = (*PROMPTS, "benign", "orders", "prosocial", "davidson", "wiki-toxicity", "surge-toxicity", "diasafety")
# Everyday sets of which a fifth, by dialogue, counts false refusals; weights/benign_split.txt lists it.
SPLIT = ("topical-chat", "gsm8k", "mt-bench")
SPLIT_FILE = Path(__file__).parent / "weights" / "benign_split.txt"
# A moderator sees windows of at most 300 characters; of a longer text only the beginning is learned from.
LONGEST = 480
# How many harmful texts are also learned with harmless words before them.
IN_CONTEXT = 4000
OWN_BENIGN = Path(__file__).parent / "weights" / "benign.txt"


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text.

    Attributes:
        source: the set it comes from.
        group: rows of one group (a dialogue, a document) are held out together.
        targets: category → 0..1; a category that is absent is not known for this text.
        levels: weight of each of LABELS, adding to 1 where raters voted; empty where nothing is known.
    """

    text: str
    source: str
    group: str
    targets: Mapping[str, float] = field(default_factory=dict)
    levels: tuple[float, ...] = ()


def part(row: Row) -> str:
    """Return `held_out` (a fifth of all groups), `calibrate` (a tenth) or `fit`; depends on the group alone."""
    share = _draw(row.source + "/" + row.group)
    return "held_out" if share < 0.2 else "calibrate" if share < 0.3 else "fit"


def _draw(key: str) -> float:
    """Return a number in 0..1 that looks random and is always the same for `key`."""
    digest = hashlib.sha256(f"{SEED}/{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _level(label: str) -> tuple[float, ...]:
    """Return the weights of the five labels; the merged label of some rows is split evenly."""
    if label == "possibly/probably needs caution":
        return (0.0, 0.5, 0.5, 0.0, 0.0)
    if label not in LABELS:
        raise ConfigError(f"prosocial has the label {label!r}, expected one of {', '.join(map(repr, LABELS))}")
    return tuple(float(name == label) for name in LABELS)


CASUAL = _level("casual")
# Everyday text is casual by nature, not by vote. It counts for less, or the five labels would be learned from it alone.
EVERYDAY_CASUAL = (0.15, 0.0, 0.0, 0.0, 0.0)
# How harmful the five labels are taken to be: caution there is often a matter of taste, so it counts for less than 1.
LEVEL_HARM = (0.0, 0.1, 0.4, 0.7, 0.9)


def _only(category: str, *unknown: str) -> dict[str, float]:
    """Return targets of a text that is harmful by `category` and no other; `unknown` ones are left open."""
    values = {**BENIGN, "harm": 1.0, category: 1.0}
    return {name: value for name, value in values.items() if name not in unknown or name == category}


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def read_json_lines(path: Path) -> list[Any]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def _sample(rows: Iterable[Row], most: int) -> list[Row]:
    """Return at most `most` rows, drawn by group, so that a cap never splits a dialogue between the parts."""
    kept = sorted(rows, key=lambda row: (_draw("cap/" + row.source + "/" + row.group), row.text))
    return kept[:most]


def _prosocial(folder: Path) -> Iterator[Row]:
    for n, item in enumerate(read_json_lines(folder / "prosocial" / "prosocial_first_turns_4999.jsonl")):
        levels = _level(item["label"])
        harm = sum(weight * value for weight, value in zip(levels, LEVEL_HARM, strict=True))
        targets = dict(BENIGN) if levels == CASUAL else {"harm": harm, "injection": 0.0, "orders": 0.0}
        yield Row(item["text"], "prosocial", str(n), targets, levels)


def _davidson(folder: Path) -> Iterator[Row]:
    kinds = {
        "0": _only("hate", "harassment", "profanity", "violence"),
        "1": {**_only("profanity", "harassment", "sexual"), "harm": 0.8},
        "2": BENIGN,
    }
    caps = {"0": 1430, "1": 1000, "2": 1200}
    found: dict[str, list[Row]] = {kind: [] for kind in kinds}
    for n, item in enumerate(_csv(folder / "davidson" / "labeled_data.csv")):
        kind = item["class"]
        found[kind].append(Row(item["tweet"], "davidson", str(n), kinds[kind]))
    for kind, rows in found.items():
        yield from _sample(rows, caps[kind])


def _comments(folder: Path) -> Iterator[Row]:
    toxic = {"harm": 1.0, "harassment": 1.0, "self_harm": 0.0, "illicit": 0.0}
    for n, item in enumerate(_csv(folder / "wiki-toxicity" / "toxicity_nonfuzzed_testset.csv")):
        yield Row(item["comment"], "wiki-toxicity", str(n), toxic if item["toxic"] == "True" else BENIGN)
    for n, item in enumerate(_csv(folder / "surge-toxicity" / "toxicity_en.csv")):
        yield Row(item["text"], "surge-toxicity", str(n), toxic if item["is_toxic"] == "Toxic" else BENIGN)


def _diasafety(folder: Path) -> Iterator[Row]:
    """Yield replies whose harm does not hang on the message before them: insults and prejudice, and safe ones."""
    unsafe = {
        "Offending User": {"harm": 1.0, "harassment": 1.0, "self_harm": 0.0, "illicit": 0.0},
        "Biased Opinion": {"harm": 1.0, "hate": 1.0, "self_harm": 0.0, "illicit": 0.0},
    }
    rows = []
    for n, item in enumerate(read_json(folder / "diasafety" / "train.json")):
        if item["label"] == "Safe" and item["category"] in ("Offending User", "Unauthorized Expertise"):
            rows.append(Row(item["response"], "diasafety", str(n), BENIGN))
        elif item["label"] == "Unsafe" and item["category"] in unsafe:
            rows.append(Row(item["response"], "diasafety", str(n), unsafe[item["category"]]))
    yield from _sample(rows, 2000)


# AILuminate's hazards; specialised advice (spc_*) is no harm that a short text shows, defamation is one of fact.
_HAZARDS = {
    "cse": _only("sexual"),
    "dfm": {"harm": 1.0},
    "hte": _only("hate", "harassment"),
    "ipv": {"harm": 1.0},
    "iwp": _only("violence", "illicit"),
    "ncr": _only("illicit"),
    "prv": _only("illicit"),
    "src": _only("sexual", "violence"),
    "ssh": _only("self_harm"),
    "sxc_prn": _only("sexual"),
    "vcr": _only("violence", "illicit"),
}


def _ailuminate(folder: Path) -> Iterator[Row]:
    for n, item in enumerate(_csv(folder / "ailuminate" / "airr_official_1.0_demo_en_us_prompt_set_release.csv")):
        if targets := _HAZARDS.get(item["hazard"]):
            yield Row(item["prompt_text"], "ailuminate", str(n), targets)


_BEHAVIOURS = {
    "cybercrime_intrusion": _only("illicit"),
    "illegal": _only("illicit", "violence"),
    "misinformation_disinformation": {"harm": 1.0},
    "chemical_biological": _only("illicit", "violence"),
    "harassment_bullying": _only("harassment", "hate", "profanity"),
    "harmful": {"harm": 1.0},
}
_REJECTED = {
    "Non-violent crimes": _only("illicit"),
    "Violence": _only("violence", "illicit"),
    "Disinformation and deception": {"harm": 1.0},
    "Hate, harassment and discrimination": _only("hate", "harassment"),
    "Illegal goods and services": _only("illicit", "violence"),
    "Sexual content": _only("sexual"),
}


def _behaviours(folder: Path) -> Iterator[Row]:
    """Yield requests for harmful acts; `read_rows` drops those that a measuring set holds too."""
    for item in _csv(folder / "harmbench" / "harmbench_behaviors_text_all.csv"):
        if targets := _BEHAVIOURS.get(item["SemanticCategory"]):
            yield Row(item["Behavior"], "harmbench", item["BehaviorID"], targets)
    for n, item in enumerate(_csv(folder / "strongreject" / "strongreject_dataset.csv")):
        yield Row(item["forbidden_prompt"], "strongreject", str(n), _REJECTED[item["category"]])
    for n, item in enumerate(_csv(folder / "advbench" / "harmful_behaviors.csv")):
        yield Row(item["goal"], "advbench", str(n), {"harm": 1.0})


_QUESTIONS = {
    "Illegal Activity": _only("illicit", "violence"),
    "Child Abuse": {"harm": 1.0},
    "Hate/Harass/Violence": _only("hate", "violence", "harassment"),
    "Malware Viruses": _only("illicit"),
    "Physical Harm": _only("violence", "self_harm", "illicit"),
    "Economic Harm": _only("illicit"),
    "Fraud/Deception": _only("illicit"),
    "Adult Content": _only("sexual"),
    "Privacy Violation Activity": _only("illicit"),
}


def _red_instruct(folder: Path) -> Iterator[Row]:
    for subject, topics in read_json(folder / "red-instruct" / "catqa_english.json").items():
        for topic, questions in topics.items():
            targets = _only("self_harm", "violence") if topic == "Self-harm" else _QUESTIONS.get(subject)
            if targets:
                yield from (Row(q, "catqa", f"{topic}/{n}", targets) for n, q in enumerate(questions))
    tree = read_json(folder / "red-instruct" / "harmfulqa.json")
    rows = [
        Row(question, "harmfulqa", f"{topic}/{n}", {"harm": 0.9})
        for topics in tree.values()
        for topic, questions in topics.items()
        for n, question in enumerate(questions)
    ]
    yield from _sample(rows, 700)


def _benign(folder: Path) -> Iterator[Row]:
    """Yield chat, problems with solutions, and instructions with answers, cut as a moderator would see them."""
    chats = read_json(folder / "topical-chat" / "valid_freq.json")
    said = [
        Row(t["message"], "topical-chat", name, BENIGN, EVERYDAY_CASUAL)
        for name, d in chats.items()
        for t in d["content"]
    ]
    yield from (row for row in said if part(row) == "held_out")
    yield from _sample((row for row in said if part(row) != "held_out"), 2400)
    problems = read_json_lines(folder / "gsm8k" / "test.jsonl")
    yield from _sample(
        _cut("gsm8k", ((str(n), p["question"] + "\n" + p["answer"]) for n, p in enumerate(problems))), 2000
    )
    tasks = read_json_lines(folder / "self-instruct" / "seed_tasks.jsonl")
    tasks += read_json_lines(folder / "self-instruct" / "user_oriented_instructions.jsonl")
    texts = [
        (t["id"], "\n".join([t["instruction"], t["instances"][0]["input"], t["instances"][0]["output"]])) for t in tasks
    ]
    yield from _sample(_cut("self-instruct", texts), 1600)
    questions = read_json_lines(folder / "mt-bench" / "question.jsonl")
    yield from _cut("mt-bench", ((str(q["question_id"]), turn) for q in questions for turn in q["turns"]))


def _cut(source: str, texts: Iterable[tuple[str, str]]) -> Iterator[Row]:
    for group, text in texts:
        for window in overlapping_windows(text):
            yield Row(window, source, group, BENIGN, EVERYDAY_CASUAL)


def _own() -> Iterator[Row]:
    """Yield the project's own harmless look-alikes: the lines, pairs of them as a window is cut, topics in forms."""
    parts: dict[str, list[str]] = {}
    for line in OWN_BENIGN.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = parts.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    texts = [(line, line) for line in parts["lines"]]
    texts += [(line, f"{tail(first)} {line}") for first, line in itertools.pairwise(parts["lines"])]
    pairs = [(topic, form.format(topic)) for topic in parts["topics"] for form in parts["forms"]]
    texts += sorted(pairs, key=lambda pair: _draw(pair[1]))[:1800]
    yield from (Row(text, "benign", group, BENIGN, EVERYDAY_CASUAL) for group, text in texts)


def _orders(folder: Path) -> Iterator[Row]:
    """Yield injections, orders that a document has no reason to give, and harmless sentences with their words."""
    parts = orders.read_own(orders.OWN)
    targets: dict[str, Mapping[str, float]] = {
        "injections": {"injection": 1.0, "orders": 1.0},
        "orders": {**BENIGN, "orders": 1.0},
        "plain": BENIGN,
    }
    for section, known in targets.items():
        for form, text in orders.sentences(parts, section, _draw):
            yield Row(text, section, form, known, EVERYDAY_CASUAL if section == "plain" else ())
    counted = [text for text, _ in orders.public(folder, "test")]
    for n, (text, label) in enumerate(orders.apart(orders.public(folder, "train"), counted)):
        if label:
            yield Row(text, "deepset", str(n), {"injection": 1.0, "orders": 1.0})
        else:
            yield Row(text, "deepset", str(n), {"injection": 0.0, "harm": 0.0})


def _manuals(_: Path) -> Iterator[Row]:
    """Yield windows of technical prose: it tells people what to do, and no model."""
    for row in _sample(_cut("manuals", manuals.paragraphs()), 12000):
        yield replace(row, targets={"orders": 0.0}, levels=())


def read_rows(folder: Path) -> list[Row]:
    """Return every row to fit on or to hold out, each text once, cleaned and cut to LONGEST; none that is measured.

    Raises:
        ConfigError: the folder lacks a set or holds it in another form, naming it.
    """
    rows: dict[str, Row] = {}
    try:
        found = [row for read in READERS for row in read(folder)]
        found.sort(key=lambda row: part(row) != "held_out")  # of two copies the one that is held out stays
        for row in found:
            text = normalised(row.text)[:LONGEST]
            if text:
                rows.setdefault(key(text), replace(row, text=text, targets=_known(row)))
        judged = [text for texts in (*measured(folder).values(), measured_orders(folder)) for text, _ in texts]
        keys = list(rows)
        for place in near_copies([row.text for row in rows.values()], [normalised(text)[:LONGEST] for text in judged]):
            del rows[keys[place]]
        counted = {digest for digests in read_split().values() for digest in digests}
        rows = {k: row for k, row in rows.items() if part(row) == "held_out" or digest_of(row.text) not in counted}
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} lacks a set: {error}; docs/moderation.md lists them") from error
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ConfigError(
            f"a set in {str(folder)!r} has another form: {error!r}; docs/moderation.md lists them"
        ) from error
    return [*rows.values(), *_in_context(list(rows.values()))]


def read_split() -> dict[str, list[str]]:
    """Return the committed split: "source/group" → the digests of its texts."""
    lines = [line.split("\t") for line in SPLIT_FILE.read_text(encoding="utf-8").splitlines() if line[:2] != "# "]
    return {group: digests.split() for group, digests in lines}


def _known(row: Row) -> Mapping[str, float]:
    """Return the targets of a row without those that its set leaves open."""
    left = {"orders"} if row.source in PROMPTS or row.source == "benign" else set()
    if row.source in UNASKED:
        left.add("injection")
    return {name: value for name, value in row.targets.items() if name not in left}


def _in_context(rows: list[Row]) -> Iterator[Row]:
    """Yield harmful texts and orders with the end of a harmless line before them, as windows have that of the last.

    Without them a harmless sentence in front would hide a harmful one. The line is of the same part as the text.
    """
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row.source in ("benign", "plain"):
            lines.setdefault(part(row), []).append(row.text)
    harmful = [row for row in rows if row.targets.get("harm", 0.0) >= 0.8 and not row.levels]
    ordering = [row for row in rows if row.targets.get("orders", 0.0) == 1]
    for row in [*_sample(harmful, IN_CONTEXT), *_sample(ordering, IN_CONTEXT // 2)]:
        if before := lines.get(part(row)):
            line = before[int(_draw("before/" + row.text) * len(before))]
            yield replace(row, text=f"{tail(line)} {row.text}"[:LONGEST])


def measured(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Return the sets that only measure, those that `folder` holds: name → (text, 1 for harmful)."""
    found = {}
    if (path := folder / "jailbreakbench" / "jailbreakbench.json").is_file():
        found["jailbreakbench"] = [(item["text"], int(item["label"] == "harmful")) for item in read_json(path)]
    if (path := folder / "toxicchat" / "judgebench_toxic_chat_train.json").is_file():
        found["toxicchat-human"] = [
            (item["instance"], int(item["annotations"]["toxicity"]["majority_human"]))
            for item in read_json(path)["instances"]
        ]
    return found


def measured_orders(folder: Path) -> list[tuple[str, int]]:
    """Return (text, 1 for an injection) of the public set that only measures; empty where `folder` lacks it."""
    if not (folder / "deepset-prompt-injections" / "deepset_test.csv").is_file():
        return []
    return [(text, int(label)) for text, label in orders.public(folder, "test")]


READERS: tuple[Callable[[Path], Iterator[Row]], ...] = (
    _prosocial,
    _davidson,
    _comments,
    _diasafety,
    _ailuminate,
    _behaviours,
    _red_instruct,
    _benign,
    _orders,
    _manuals,
    lambda _: _own(),
)
