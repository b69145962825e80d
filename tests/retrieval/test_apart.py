import hashlib
import os

import pytest

from chatkit.retrieval.apart import Reader
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.entries import SourceFile
from chatkit.retrieval.parsing import parse

PAGE = b"<title>Ports</title><h1>Ports</h1><p>The service listens on 8080.<h2>Time-outs</h2><p>Thirty seconds."


@pytest.fixture(scope="module")
def reader():
    with Reader(cpu_seconds=1) as opened:
        yield opened


@pytest.fixture
def file_of(tmp_path):
    def write(content, name="page.html"):
        path = tmp_path / name
        path.write_bytes(content)
        return SourceFile(path, name, len(content), hashlib.sha256(content).hexdigest())

    return write


def test_a_process_apart_reads_the_same(reader, file_of):
    file = file_of(PAGE)
    assert list(file.documents(reader)) == [parse(file.path, "page.html", PAGE)]
    with pytest.raises(Unreadable, match="shows no text"):
        list(reader.read(file_of(b"<p>")))


def test_a_fault_of_the_reader_is_named_and_is_not_taken_for_a_page_that_is_too_large(tmp_path, file_of, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, chatkit.retrieval.formats.html as html\n"
        "def fail(content):\n"
        "    if content == b'memory': raise MemoryError\n"
        "    if content == b'abort': os.abort()\n"
        "    raise IndexError('pop from\\nempty list')\n"
        "html.read = fail\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Reader() as failing:
        for content, reason in (
            (b"x", "cannot be read: IndexError pop from empty list"),
            (b"memory", r"cannot be read in 60 s .* and 2 GiB of memory \(it ran out of memory\); split"),
            (b"abort", "cannot be read: the reader ended with SIGABRT; save it anew"),
            (b"x", "cannot be read: IndexError"),
        ):
            with pytest.raises(Unreadable, match=reason):
                list(failing.read(file_of(content)))


def test_a_page_that_takes_too_much_costs_only_itself(reader, file_of):
    unfolds_to_gigabytes = b"".join(b"<font size=%d><p>" % number for number in range(30_000))
    with pytest.raises(Unreadable, match="cannot be read"):
        list(reader.read(file_of(unfolds_to_gigabytes)))
    with pytest.raises(Unreadable, match=r"in 1 s of processor time and 2 GiB of memory \(the reader ended with SIG"):
        list(reader.read(file_of(b"<div>" * 1_000_000)))
    [document] = reader.read(file_of(b"<p>The next page."))
    assert document.text == "The next page."


def test_nothing_beside_the_documents_is_run_and_no_key_is_handed_to_their_reader(tmp_path, file_of, monkeypatch):
    (tmp_path / "selectolax.py").write_text("raise ImportError('of the folder of the documents')")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "sitecustomize.py").write_text(
        "import os, chatkit.retrieval.formats.markdown as markdown\n"
        "markdown.read = lambda text: (','.join(sorted(set(os.environ) & {'SOME_API_KEY', 'PATH'})), ())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_API_KEY", "secret")
    for path in (".", "", str(tmp_path / "away")):
        monkeypatch.setenv("PYTHONPATH", path, prepend=os.pathsep)
    with Reader() as reader:
        [page] = reader.read(file_of(PAGE))
        [note] = reader.read(file_of(b"words", "note.md"))
    assert (page.title, note.title) == ("Ports", "PATH")
