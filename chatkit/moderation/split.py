"""The harmless texts that false refusals are counted on: a fifth of the everyday sets, by dialogue, never fitted on."""

from pathlib import Path

from chatkit.moderation import sets
from chatkit.moderation.copies import digest_of

_HEAD = """\
# The texts on which false refusals of the head are counted: set/group, and the beginning of the SHA-256 of each text in
# lower case with single spaces. None of them is fitted or calibrated on, whatever set it comes from.
"""


def benign_split(folder: Path) -> list[tuple[str, str]]:
    """Return ("source/group", text) of the messages, problems and questions held out, as a user would send them.

    Raises:
        OSError: `folder` lacks a set.
    """
    chats = sets.read_json(folder / "topical-chat" / "valid_freq.json")
    texts = [("topical-chat", name, turn["message"]) for name, chat in chats.items() for turn in chat["content"]]
    problems = sets.read_json_lines(folder / "gsm8k" / "test.jsonl")
    texts += [("gsm8k", str(n), problem["question"]) for n, problem in enumerate(problems)]
    questions = sets.read_json_lines(folder / "mt-bench" / "question.jsonl")
    texts += [("mt-bench", str(q["question_id"]), turn) for q in questions for turn in q["turns"]]
    rows = [sets.Row(text, source, group) for source, group, text in texts]
    return [(f"{row.source}/{row.group}", row.text) for row in rows if sets.part(row) == "held_out"]


def write_split(folder: Path, file: Path) -> int:
    """Write the split of the sets in `folder` and return the number of its texts."""
    found: dict[str, list[str]] = {}
    for group, text in benign_split(folder):
        found.setdefault(group, []).append(digest_of(text))
    lines = [f"{group}\t{' '.join(digests)}\n" for group, digests in found.items()]
    file.write_text(_HEAD + "".join(lines), encoding="utf-8")
    return sum(map(len, found.values()))
