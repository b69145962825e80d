"""Files that are damaged, locked, hostile or named wrongly: each is told with its reason and costs only itself."""

import io
import json
import re
import subprocess
import sys
import zipfile

import docx
import openpyxl
import pytest

from chatkit.retrieval.apart import Reader
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.gathering import gather
from tests.retrieval.paper_trail import epub, package, pdf, repacked, saved

READ = """
import json, re, resource, sys
from chatkit.retrieval.apart import Reader
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.gathering import gather

gathered = gather([sys.argv[1]], tell=lambda done, total: None)
found, reasons = {}, {entry.source.split("/")[-1]: entry.reason for entry in gathered.skipped}
with Reader(cpu_seconds=2) as reader:
    for file in gathered.files:
        try:
            found[file.path.name] = [document.text for document in file.documents(reader)]
        except Unreadable as error:
            reasons[file.path.name] = str(error)
    left_out = {entry.source.split("/")[-1]: entry.reason for entry in reader.left_out}
own = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"found": found, "reasons": reasons, "left_out": left_out, "own_mb": own, "child_mb": child}))
"""
GIANT = 200 * 2**20
WORDS = b"The quick brown fox jumps over the lazy dog.\n"


@pytest.fixture(scope="module")
def read_all(tmp_path_factory):
    """The answer of a process that reads a folder of hostile files, with good ones among them."""
    folder = tmp_path_factory.mktemp("hostile") / "files"
    folder.mkdir()
    for name, content in hostile_files().items():
        (folder / name).write_bytes(content)
    with (folder / "giant.txt").open("wb") as giant:
        block = WORDS * 20_000
        while giant.tell() < GIANT:
            giant.write(block)
    command = [sys.executable, "-c", READ, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def hostile_files():
    whole = pdf([[(10, f"Page {number}.")] for number in range(1, 40)])
    letter = docx.Document()
    letter.add_paragraph("A letter.")
    letter = saved(letter)
    book = openpyxl.Workbook()
    book.active.append(["a", "b"])
    book = saved(book)
    spaces = b"<a>" + b" " * (70 * 2**20) + b"</a>"
    laughs = b'<!DOCTYPE w [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><w>&b;</w>'
    unfolds = repacked(letter, word__document_xml=spaces)
    return {
        "good.md": b"# Good\n\nStill read.\n",
        "good.docx": letter,
        "with-bomb-inside.docx": repacked(letter, word__embeddings__inner_zip=package({"x": spaces})),
        "no-end.pdf": whole[:-20],
        "truncated.pdf": whole[: len(whole) * 2 // 3],
        "headless.pdf": b"%PDF-1.7\n" + b"\x00\xff" * 3000,
        "encrypted.pdf": pdf([[(10, "Secret.")]], password="secret"),
        "scanned.pdf": pdf([[]], picture=True),
        "empty.pdf": b"",
        "empty.docx": b"",
        "text-named.docx": b"Just words.",
        "pdf-named.docx": pdf([[(10, "Words.")]]),
        "docx-named.pdf": letter,
        "archive.epub": package({"a.txt": b"words"}),
        "picture.pdf": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "encrypted.docx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le"),
        "old.xlsx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + "Workbook".encode("utf-16-le"),
        "truncated.docx": letter[: len(letter) // 2],
        "bomb.docx": unfolds,
        "lying-bomb.docx": lying(unfolds, len(spaces)),
        "bomb.epub": epub(["<p>" + " " * (70 * 2**20)]),
        "laughs.docx": repacked(letter, word__document_xml=laughs),
        "no-parts.xlsx": repacked(book, xl__workbook_xml=b"<nothing/>"),
        "long-line.jsonl": b'{"text": "' + b"x" * (17 * 2**20) + b'"}\n{"text": "short"}\n',
        "latin.csv": b"a,b\ncaf\xe9,1\n",
        "endless.xml": b"<mediawiki>" + b"<page><title>x</title></page>" * 10,
    }


def lying(archive, size):
    """Return an archive that says of its largest part that it has 100 bytes."""
    assert archive.count(size.to_bytes(4, "little")) == 2
    return archive.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little"))


def test_good_files_among_hostile_ones_are_read(read_all):
    assert read_all["found"]["good.md"] == ["# Good\n\nStill read.\n"]
    assert read_all["found"]["good.docx"] == read_all["found"]["with-bomb-inside.docx"] == ["A letter."]
    assert set(read_all["found"]) == {
        "good.md",
        "good.docx",
        "with-bomb-inside.docx",
        "no-end.pdf",
        "long-line.jsonl",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.pdf", r"is damaged or truncated \("),
        ("headless.pdf", r"is damaged or truncated \("),
        ("encrypted.pdf", "is encrypted; save it without a password"),
        ("scanned.pdf", "holds no text on its 1 pages, looks scanned; recognise its text first"),
        ("empty.pdf", r"is empty \(0 bytes\)"),
        ("empty.docx", r"is empty \(0 bytes\)"),
        ("text-named.docx", "is named .docx but is no DOCX by its content"),
        ("pdf-named.docx", "is a PDF by its content but named .docx; rename it to .pdf"),
        ("docx-named.pdf", "is a DOCX by its content but named .pdf; rename it to .docx"),
        ("archive.epub", "is a ZIP archive by its content; unpack it"),
        ("picture.pdf", r"is a picture \(PNG\) by its content"),
        ("encrypted.docx", "is encrypted; save it without a password"),
        ("old.xlsx", "is of an old Office format"),
        ("truncated.docx", "is a damaged or truncated archive"),
        ("bomb.docx", r"its part 'word/document.xml' unfolds to more than 64 MiB"),
        ("lying-bomb.docx", "is a damaged or truncated archive"),
        ("bomb.epub", r"chapter OEBPS/chapter 0.xhtml: its part .* unfolds to more than 64 MiB"),
        ("laughs.docx", "its part 'word/document.xml' declares entities"),
        ("no-parts.xlsx", "holds no text"),
        ("latin.csv", "is not UTF-8"),
        ("endless.xml", "breaks off or is broken"),
        ("giant.txt", r"has \d+ bytes, at most 67108864 are read as one document; split it"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_reason(read_all, name, reason):
    assert re.match(reason, read_all["reasons"][name]), read_all["reasons"][name]


def test_what_is_left_of_a_damaged_file_is_read_and_the_damage_told(read_all):
    assert "ends early" in read_all["left_out"]["no-end.pdf"]
    assert "Page 1." in read_all["found"]["no-end.pdf"][0]
    assert read_all["left_out"]["long-line.jsonl"].startswith("lines that are no JSON objects with words: 1,")
    assert read_all["found"]["long-line.jsonl"] == ["short"]


def test_memory_stays_bounded_on_both_sides(read_all):
    assert read_all["own_mb"] < 150
    assert read_all["child_mb"] < 1500


def test_a_reader_that_says_nothing_is_ended(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import time, chatkit.retrieval.formats.html as html\nhtml.read = lambda content: time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "a.html").write_text("<p>words")
    [file] = gather([tmp_path / "a.html"], tell=lambda done, total: None).files
    with Reader(wall_seconds=2) as reader, pytest.raises(Unreadable, match="nothing was heard of the reader for 2 s"):
        list(file.documents(reader))


def test_a_reader_that_is_left_in_the_middle_reads_the_next_file(tmp_path):
    (tmp_path / "many.jsonl").write_text('{"text": "words"}\n' * 50_000)
    (tmp_path / "one.txt").write_text("one")
    files = {file.path.name: file for file in gather([tmp_path], tell=lambda done, total: None).files}
    with Reader() as reader:
        documents = files["many.jsonl"].documents(reader)
        assert next(documents).source.endswith("many.jsonl#1")
        documents.close()
        assert [document.text for document in files["one.txt"].documents(reader)] == ["one"]


def test_an_article_that_ends_the_reader_costs_only_itself(tmp_path):
    articles = ["First.", "{{{a|" * 30_000, "Third."]
    pages = "".join(
        f"<page><title>{word}</title><ns>0</ns><id>{word}</id><revision><text>{word}</text></revision></page>"
        for word in articles
    )
    (tmp_path / "wiki.xml").write_text(f"<mediawiki xmlns='http://x'>{pages}</mediawiki>")
    [file] = gather([tmp_path], tell=lambda done, total: None).files
    with Reader(cpu_seconds=1) as reader:
        assert [document.text for document in file.documents(reader)] == ["First.", "Third."]
        [left_out] = reader.left_out
    assert left_out.reason.startswith("record 2 of it cannot be read in 1 s of processor time")


def test_a_file_beyond_the_limit_of_the_reader_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 100)
    [file] = gather([tmp_path], tell=lambda done, total: None).files
    with Reader(file_bytes=100) as reader, pytest.raises(Unreadable, match="has 600 bytes, at most 100 are read"):
        list(file.documents(reader))


def test_an_archive_with_a_lie_about_a_part_is_a_lie(tmp_path):
    archive = lying(package({"a": b" " * 7_000_000}), 7_000_000)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.getinfo("a").file_size == 100
