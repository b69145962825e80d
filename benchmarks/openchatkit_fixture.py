"""A folder in the layout of OpenChatKit's published index, of real text as far as it goes, for `openchatkit.py`.

    python benchmarks/openchatkit_fixture.py TEXTS FOLDER [--rows 1000000] [--distinct 24000]

TEXTS is searched for `corpus.jsonl[.gz]` (BEIR), `wiki.*.tokens.gz` (WikiText) and `*.xml.bz2` (MediaWiki dumps). Rows
are three sentences of one article, as in the published file. When the distinct rows run out, further articles are put
together from runs of four to eight neighbouring rows, in another order: their text is real and their vectors are those
of the rows they repeat, so that size costs no encoding. The index is `IVF,SQ8` by inner product, read with
memory-mapping on both sides; which type the published one has is not known.
"""

import argparse
import bz2
import gzip
import html
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import numpy as np

SENTENCES = 3
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_BATCH = 512
# Rows whose vectors are kept in memory while they are added to the index.
_ADDED = 20_000

Article = tuple[str, list[str]]


def articles_in(texts: Path) -> Iterator[Article]:
    """Yield (title, rows) of every text below the folder, long Wikipedia articles first."""
    for file in sorted(texts.rglob("*.xml.bz2")):
        yield from _dump(file)
    for file in sorted(texts.rglob("wiki.*.tokens.gz")):
        yield from _wikitext(file)
    found = sorted([*texts.rglob("corpus.jsonl.gz"), *texts.rglob("corpus.jsonl")], key=lambda file: file.as_posix())
    for file in sorted(found, key=lambda file: "wiki" not in file.as_posix()):
        with _open(file) as stream:
            for line in stream:
                row = json.loads(line)
                if row["text"].isascii() or len(row["text"]) > 2 * len(row["text"].encode("ascii", "ignore")) / 3:
                    yield row.get("title", ""), rows_of(row["text"])


def rows_of(text: str) -> list[str]:
    """Return a text as rows of three sentences, each ending with its own last sign."""
    sentences = [sentence for line in text.splitlines() for sentence in _SENTENCE_END.split(line.strip())]
    sentences = [sentence for sentence in sentences if len(sentence.split()) > 3 and len(sentence) < 600]
    groups = (sentences[at : at + SENTENCES] for at in range(0, len(sentences), SENTENCES))
    return [" ".join(group) for group in groups]


def _open(file: Path) -> IO[str]:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _wikitext(file: Path) -> Iterator[Article]:
    title, lines = "", []
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        for line in stream:
            heading = re.fullmatch(r" = ([^=].*[^=]) = \n", line)
            if heading:
                yield title, rows_of("\n".join(lines))
                title, lines = heading[1], []
            elif not line.startswith(" ="):
                text = re.sub(r" @(\W)@ ", r"\1", line.replace("<unk>", "").strip())
                lines.append(re.sub(r" ([.,;:!?)'])", r"\1", text))
    yield title, rows_of("\n".join(lines))


def _dump(file: Path) -> Iterator[Article]:
    title = ""
    with bz2.open(file) as stream:
        for _, element in ElementTree.iterparse(stream):
            name = element.tag.rpartition("}")[2]
            if name == "title":
                title = element.text or ""
            elif name == "text" and not (element.text or "").startswith("#"):
                yield title, rows_of(_without_markup(element.text or ""))
            elif name == "page":
                element.clear()


def _without_markup(text: str) -> str:
    """Return what a page of MediaWiki says, roughly: good enough to measure with."""
    text = re.sub(r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->", "", text, flags=re.DOTALL)
    for _ in range(4):
        text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", text)
    text = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[\S+ ([^\]]*)\]|<[^>]+>|'{2,}", r"\1", text)
    lines = (line for line in html.unescape(text).splitlines() if line and line[0] not in "=*#:;|!{}")
    return "\n".join(lines)


def distinct_articles(texts: Path, most: int) -> list[Article]:
    """Return articles of at most `most` different rows in all."""
    seen: set[str] = set()
    chosen: list[Article] = []
    for title, rows in articles_in(texts):
        fresh = [row for row in rows if row not in seen][: most - len(seen)]
        seen.update(fresh)
        if fresh:
            chosen.append((title, fresh))
        if len(seen) >= most:
            break
    return chosen


def encoded(rows: list[str], kept: Path) -> np.ndarray:
    """Return the rows' vectors; what is in `kept` from an earlier call that broke off is not made again."""
    from chatkit import wiring
    from chatkit.settings import load_settings

    made = np.load(kept) if kept.is_file() else np.zeros((0, 384), np.float32)
    encoder = wiring.open_encoder(load_settings())
    while len(made) < len(rows):
        began = time.monotonic()
        part = encoder.encode_now(rows[len(made) : len(made) + _BATCH])
        made = np.concatenate([made, part])
        if len(made) // _BATCH % 4 == 0 or len(made) == len(rows):
            np.save(kept, made)
        print(f"{len(made)} of {len(rows)}, {len(part) / (time.monotonic() - began):.0f}/s", file=sys.stderr)
    encoder.close()
    return made[: len(rows)]


def laid_out(articles: list[Article], rows: int, seed: int = 6) -> Iterator[tuple[str, list[int]]]:
    """Yield (title, numbers of distinct rows) article by article until there are `rows` rows.

    The distinct articles come first, then those put together from runs of their rows.
    """
    made, start = 0, 0
    runs: list[list[int]] = []
    random_ = random.Random(seed)
    for title, own in articles:
        numbers = list(range(start, start + len(own)))
        start += len(own)
        yield title, numbers
        made += len(numbers)
        cut = 0
        while cut < len(numbers):
            length = random_.randint(4, 8)
            runs.append(numbers[cut : cut + length])
            cut += length
    for number in itertools.count(1):
        if made >= rows:
            return
        numbers = [row for run in random_.sample(runs, random_.randint(2, 12)) for row in run][: rows - made]
        made += len(numbers)
        yield f"Synthetic article {number}", numbers


def write_fixture(texts: Path, folder: Path, *, rows: int, distinct: int, kept: Path) -> dict[str, int]:
    """Write `knn.index`, `wikipedia-en-sentences.parquet` and `fixture.json`, and return what the last one says."""
    import pyarrow as pa
    from pyarrow import parquet

    articles = distinct_articles(texts, distinct)
    own = [row for _, article in articles for row in article]
    vectors = encoded(own, kept)
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("text_snippet", pa.string()), ("position_in_source_text", pa.int64()), ("title", pa.string())])
    order: list[int] = []
    count = 0
    with parquet.ParquetWriter(folder / "wikipedia-en-sentences.parquet", schema, compression="snappy") as writer:
        columns: tuple[list[str], list[int], list[str]] = ([], [], [])
        for title, numbers in laid_out(articles, rows):
            columns[0].extend(own[number] for number in numbers)
            columns[1].extend(range(len(numbers)))
            columns[2].extend([title] * len(numbers))
            order += numbers
            count += 1
            if len(columns[0]) >= 200_000:
                writer.write_table(pa.table(list(columns), schema=schema), row_group_size=1 << 20)
                columns = ([], [], [])
        writer.write_table(pa.table(list(columns), schema=schema), row_group_size=1 << 20)
    _write_index(folder / "knn.index", vectors, np.array(order))
    sentences = sum(len(_SENTENCE_END.split(own[number])) for number in order)
    facts = {"rows": len(order), "sentences": sentences, "distinct_rows": len(own), "articles": count}
    facts["distinct_articles"] = len(articles)
    (folder / "fixture.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _write_index(file: Path, vectors: np.ndarray, order: np.ndarray) -> None:
    import faiss

    lists = 2 ** int(np.log2(4 * len(order) ** 0.5))
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    index.cp.max_points_per_centroid = 64
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    for start in range(0, len(order), _ADDED):
        index.add(vectors[order[start : start + _ADDED]])
    index.nprobe = 16
    faiss.write_index(index, str(file))


def main() -> None:
    """Read the command line and write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--distinct", type=int, default=24_000, help="Rows that are encoded.")
    parser.add_argument("--vectors", type=Path, help="File that keeps the vectors; beside the fixture unless told.")
    given = parser.parse_args()
    kept = given.vectors or given.folder.parent / f"{given.folder.name}-vectors.npy"
    print(json.dumps(write_fixture(given.texts, given.folder, rows=given.rows, distinct=given.distinct, kept=kept)))


if __name__ == "__main__":
    main()
