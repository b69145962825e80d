"""Public sets as the JSON lines that `chatkit eval moderation` reads; docs/moderation-results.md has the figures.

    python benchmarks/moderation_sets.py DATA OUT [--wikipedia corpus.jsonl.gz]
    chatkit eval moderation OUT/toxicchat-human.jsonl --json

DATA is laid out as `chatkit moderation train --data` reads it; of a set that it lacks no file is made. What is in OUT
is under the licences of the sets: ToxicChat's is CC BY-NC 4.0.
"""

import argparse
import gzip
import importlib.metadata
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chatkit.moderation import sets, split

Line = dict[str, Any]
# Tricks of writing that a reader sees through, each a way to rewrite a text.
_LOOKS = dict(zip("aceiopsxyhkbmt", "асеіорѕхуһкЬмт", strict=True))
_LEET = dict(zip("aeiost", "431057", strict=True))


def main() -> None:
    """Write a file for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wikipedia", type=Path, help="JSON lines of passages with `text`, as BEIR has them.")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, lines in made(asked.data, asked.wikipedia):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (asked.out / f"{name}.jsonl").write_text(content, encoding="utf-8")
        print(f"{name}: {content.count(chr(10))} lines")


def made(data: Path, wikipedia: Path | None) -> Iterator[tuple[str, Iterable[Line]]]:
    """Yield the name and the lines of each set that is there."""
    for name, rows in sets.measured(data).items():
        yield name, [{"text": text, "flagged": flagged} for text, flagged in rows]
        harmful = [text for text, flagged in rows if flagged]
        for trick, rewrite in TRICKS.items():
            yield f"{name}-{trick}", [{"text": rewrite(text), "flagged": 1} for text in harmful]
    yield "benign-split", [{"text": text, "flagged": 0} for _, text in split.benign_split(data)]
    yield (
        "deepset-test",
        [{"text": text, "flagged": None, "categories": {"injection": n}} for text, n in sets.measured_orders(data)],
    )
    requests = data / "cyberseceval" / "mitre_frr.json"
    if requests.is_file():
        rows = json.loads(requests.read_text(encoding="utf-8"))
        yield "cyberseceval-frr", [{"text": row["mutated_prompt"], "flagged": 0} for row in rows]
    attacks = _attacks(data / "bipia")
    plain = _sentences(wikipedia) if wikipedia else []
    if attacks:
        yield "bipia", [_passage(text, 1) for text in attacks]
        yield "bipia-in-passage", [_passage(_inside(text, plain), 1) for text in attacks] if plain else []
    if plain:
        yield "wikipedia", [_passage(text, 0) for text in plain]
        yield "wikipedia-passages", [_passage(" ".join(plain[n : n + 4]), 0) for n in range(0, len(plain), 4)]
    prose = _readmes()
    yield "readmes", [_passage(sentence, 0) for text in prose for sentence in _split(text)]
    yield "readmes-passages", [_passage(text, 0) for text in prose]


def _passage(text: str, flagged: int) -> Line:
    return {"text": text, "flagged": flagged, "categories": {"injection": flagged}, "direction": "passage"}


def _attacks(folder: Path) -> list[str]:
    found = []
    for name in ("train", "test"):
        file = folder / f"text_attack_{name}.json"
        if file.is_file():
            found += [text for texts in json.loads(file.read_text(encoding="utf-8")).values() for text in texts]
    return found


def _readmes(most: int = 1500) -> list[str]:
    """Return paragraphs of the pages of the Python packages that are installed: technical prose of many hands."""
    found = set()
    for package in importlib.metadata.distributions():
        page = str(package.metadata.get_payload() or package.metadata.get("Description") or "")
        for paragraph in re.split(r"\n\s*\n", page[:12_000])[:40]:
            if 80 <= len(paragraph.strip()) <= 1200:
                found.add(paragraph.strip())
    return random.Random(7).sample(sorted(found), min(most, len(found)))


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text) if len(part.strip()) > 20]


def _sentences(file: Path, most: int = 4000) -> list[str]:
    """Return sentences of every so many passages."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    found = []
    for text in texts[:: max(1, len(texts) // 1500)]:
        found += _split(text)
    return found[:most]


def _inside(attack: str, plain: list[str]) -> str:
    """Return an attack between harmless sentences."""
    at = random.Random(attack).randrange(len(plain) - 4)
    return " ".join([*plain[at : at + 2], attack, *plain[at + 2 : at + 4]])


def _spaced(text: str) -> str:
    return "  ".join(" ".join(word) if word.isalpha() else word for word in text.split())


TRICKS = {
    "zero-width": lambda text: "\u200b".join(text),
    "look-alikes": lambda text: "".join(_LOOKS.get(c, c) for c in text),
    "full-width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "leet": lambda text: "".join(_LEET.get(c, c) for c in text),
    "spaced": _spaced,
    "bidi": lambda text: "\u202e" + text.replace("\n", " ")[::-1] + "\u202c",
    "accents": lambda text: "".join(c + "\u0336" if c.isalpha() else c for c in text),
    "blanks": lambda text: (" " * 250).join(text.split()),
    "empty-lines": lambda text: ("\n" * 24).join(text.split()),
    "zero-width-runs": lambda text: ("\u200b" * 120 + " ").join(text.split()),
    "blank-letters": lambda text: "\u2800".join(text.split()),
    "ligatures": lambda text: "\ufdfa" * 60 + " " + " \ufdfa ".join(text.split()),
    "stacked": lambda text: "".join(c + "\u0301\u0323" * 15 if c.isalpha() else c for c in text),
    "dots": lambda text: (" " + "." * 120 + " ").join(text.split()),
}

if __name__ == "__main__":
    main()
