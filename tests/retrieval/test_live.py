"""What a running service does when indexes appear, change, break and go."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import threading
import time

import pytest

from chatkit.errors import BadIndex, BrokenIndex, IndexMismatch, InvalidRequest, NotFound
from chatkit.retrieval import vectors
from chatkit.retrieval.build import build_index
from chatkit.retrieval.index import SearchOptions, VectorIndex
from chatkit.retrieval.layout import IndexFolder
from chatkit.retrieval.legs import Legs
from chatkit.retrieval.live import LiveIndexes
from chatkit.retrieval.manifest import Manifest
from tests.retrieval.bad_manifests import BAD_MANIFESTS, spoil

QUERY = "Which port does the service listen on?"
OPTIONS = SearchOptions(min_score=0.35)


@pytest.fixture
def build(corpus, indexes, encoder):
    def run(port=8080, name="docs"):
        (corpus / "network.md").write_text(f"# Guide\n\n## Ports\n\nThe service listens on port {port}.\n")
        return build_index(["corpus"], indexes, name=name, encoder=encoder)

    return run


@pytest.fixture
def live(build, indexes, encoder):
    """Return a function that opens the service's indexes; the default one is built first."""
    opened = []

    def open_(default="docs", named=None, **options):
        if not (indexes / default).exists():
            build(name=default)
        options = {"check_every_s": 0.01, "options": OPTIONS, **options}
        opened.append(LiveIndexes(indexes, encoder, default=default, named=named, **options))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def ask(live, index=None, query=QUERY):
    return [hit.text for hit in asyncio.run(live.search(query, k=1, index=index))]


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def point(indexes, version, name="docs"):
    IndexFolder(indexes, name).make_live(version)


def copy_of(folder, version):
    return shutil.copytree(folder, folder.parent / version)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_new_version_takes_over(live, build, caplog):
    caplog.set_level("INFO")
    service = live()
    assert ask(service) == ["The service listens on port 8080."]
    build(9090)
    until(lambda: ask(service) == ["The service listens on port 9090."])
    assert warnings(caplog) == []
    assert "index 'docs' is at version 000002 now: 4 passages" in caplog.text


def test_a_version_of_the_same_number_takes_over_after_the_folder_was_removed(live, build, indexes):
    service = live()
    shutil.rmtree(indexes / "docs")
    assert build(9090).version == "000001"
    until(lambda: ask(service) == ["The service listens on port 9090."])


def other_encoder(folder):
    table = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps(table | {"encoder": table["encoder"] | {"fingerprint": "mean-l2-512-other"}})
    )


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


BAD = {
    "another encoder": (other_encoder, "'mean-l2-512-other'"),
    "vectors edited": (lambda f: flipped(f / "vectors.faiss"), "vectors.faiss' was changed after the build"),
    "passages edited": (lambda f: flipped(f / "passages.parquet"), "passages.parquet' was changed after the build"),
    "passages cut": (lambda f: os.truncate(f / "passages.parquet", 10), "passages.parquet' has 10 bytes, expected"),
    "vectors missing": (lambda f: (f / "vectors.faiss").unlink(), "vectors.faiss' is missing"),
    "half-written": (lambda f: (f / "manifest.json").unlink(), "manifest.json' cannot be read"),
    "no manifest's words": (lambda f: (f / "manifest.json").write_text("{]"), "manifest.json' is damaged"),
    "gone": (shutil.rmtree, "names the version '000002', which does not exist"),
}


@pytest.mark.parametrize("damage", BAD)
def test_a_bad_version_is_warned_of_once_and_the_good_one_goes_on(live, build, indexes, caplog, damage):
    spoil, problem = BAD[damage]
    service = live()
    spoil(copy_of(indexes / "docs" / "000001", "000002"))
    point(indexes, "000002")
    until(lambda: warnings(caplog))
    for _ in range(10):
        assert ask(service) == ["The service listens on port 8080."]
        time.sleep(0.01)
    (line,) = warnings(caplog)
    assert line.startswith("index 'docs' stays at version 000001: ")
    assert problem in line
    assert "chatkit index use docs previous" in line
    assert "\n" not in line
    build(9090)
    until(lambda: ask(service) == ["The service listens on port 9090."])
    assert len(warnings(caplog)) == 1


def test_a_manifest_of_every_wrong_kind_is_warned_of_once_and_good_versions_still_take_over(live, indexes, caplog):
    service = live()
    good = indexes / "docs" / "000001"
    for number, damage in enumerate(BAD_MANIFESTS, start=2):
        version = copy_of(good, f"{number:06d}")
        spoil(version, damage)
        caplog.clear()
        point(indexes, version.name)
        until(lambda: warnings(caplog))
        (line,) = warnings(caplog)
        assert line.startswith("index 'docs' stays at version 000001: index file ")
        assert BAD_MANIFESTS[damage][1] in line, damage
        assert len(line) < 1000
        line.encode()
        shutil.rmtree(version)
    copy_of(good, "000099")
    caplog.set_level("INFO")
    point(indexes, "000099")
    until(lambda: "index 'docs' is at version 000099 now" in caplog.text)
    assert ask(service) == ["The service listens on port 8080."]


def test_whatever_opening_a_version_raises_the_other_indexes_are_followed(live, build, monkeypatch, caplog):
    build(1111, "one")
    service = live()
    ask(service, "one")
    read = Manifest.read

    def fail(folder):
        if folder.parent.name == "docs":
            raise ZeroDivisionError("division\nby zero")
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "read", fail)
        copy_of(IndexFolder(service._indexes, "docs").folder / "000001", "000002")
        point(service._indexes, "000002")
        until(lambda: warnings(caplog))
        shutil.copytree(service._indexes / "one" / "000001", service._indexes / "one" / "000002")
        caplog.set_level("INFO")
        point(service._indexes, "000002", "one")
        until(lambda: "index 'one' is at version 000002 now" in caplog.text)
    assert warnings(caplog) == ["index 'docs' stays at version 000001: ZeroDivisionError: division by zero"]
    build(9090)
    until(lambda: ask(service) == ["The service listens on port 9090."])


def test_whatever_opening_a_named_index_raises_the_caller_is_told_that_it_cannot_be_used(
    live, build, monkeypatch, caplog
):
    build(1111, "one")
    service = live()
    monkeypatch.setattr(Manifest, "read", lambda folder: 1 // 0)
    for _ in range(2):
        with pytest.raises(BadIndex, match="'one' is there but cannot be used"):
            ask(service, "one")
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].startswith("index 'one' cannot be opened: ZeroDivisionError: ")


def test_an_index_that_is_removed_goes_on_answering_and_names_the_build(live, indexes, caplog):
    service = live()
    shutil.rmtree(indexes / "docs")
    until(lambda: warnings(caplog))
    assert ask(service) == ["The service listens on port 8080."]
    assert warnings(caplog) == [
        f"index 'docs' stays at version 000001: there is no index 'docs' in {str(indexes)!r}; build it again with: "
        f"chatkit prepare-index SOURCE… --name docs"
    ]


def test_the_advice_passes_over_versions_that_are_bad_too(build, indexes, encoder):
    good = build().folder
    other_encoder(copy_of(good, "000002"))
    flipped(copy_of(good, "000003") / "vectors.faiss")
    shutil.copytree(good, good.parent / "000005")
    point(indexes, "000004")
    with pytest.raises(BrokenIndex, match="chatkit index use docs previous, or build it again"):
        VectorIndex.open(indexes / "docs", encoder, min_score=0.0)
    shutil.rmtree(good)
    with pytest.raises(BrokenIndex, match="chatkit index use docs 000005, or build it again"):
        VectorIndex.open(indexes / "docs", encoder, min_score=0.0)


def test_a_bad_default_index_is_refused_at_the_start(build, indexes, encoder):
    other_encoder(build().folder)
    with pytest.raises(IndexMismatch, match="chatkit prepare-index SOURCE… --name docs"):
        LiveIndexes(indexes, encoder, default="docs", named=None, options=OPTIONS)
    with pytest.raises(BadIndex, match=r"no index 'absent'.*chatkit prepare-index SOURCE… --name absent"):
        LiveIndexes(indexes, encoder, default="absent", named=None, options=OPTIONS)


def test_a_search_ends_in_the_version_it_began_in_which_is_closed_then(live, build, monkeypatch):
    service = live()
    closed = []
    close, find = VectorIndex.close, Legs.find
    going, go_on = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        if not going.is_set():
            going.set()
            assert go_on.wait(20)
        return find(*args, **kwargs)

    monkeypatch.setattr(VectorIndex, "close", lambda self: (closed.append(self), close(self)))
    monkeypatch.setattr(Legs, "find", slow)

    async def during_a_switch():
        old = asyncio.create_task(service.search(QUERY, k=1))
        await asyncio.to_thread(going.wait, 20)
        await asyncio.to_thread(build, 9090)
        for _ in range(4000):
            new = await service.search(QUERY, k=1)
            if new[0].text.endswith("9090."):
                break
            await asyncio.sleep(0.005)
        assert closed == []
        go_on.set()
        return await old, new

    old, new = asyncio.run(during_a_switch())
    assert old[0].text == "The service listens on port 8080."
    assert new[0].text == "The service listens on port 9090."
    until(lambda: len(closed) == 1)


def test_a_request_may_name_any_index_or_only_those_of_the_setting(live, build):
    build(1111, "one")
    build(2222, "two")
    everything, some, none = live(), live(named={"one"}), live(named={""})
    assert ask(everything, "two") == ["The service listens on port 2222."]
    assert ask(some, "one") == ["The service listens on port 1111."]
    refused = set()
    for service, name in ((everything, "absent"), (some, "two"), (none, "one")):
        with pytest.raises(NotFound) as refusal:
            ask(service, name)
        refused.add(str(refusal.value).replace(name, "NAME"))
        assert ask(service, "docs") == ask(service) != []
    assert refused == {"there is no index 'NAME' that a request may name; `chatkit index list` shows those there are"}


@pytest.mark.parametrize("name", ["", "../docs", "a/b", ".hidden", "x" * 65, "a\0b", "docs\n"])
def test_a_malformed_name_is_no_name(live, name):
    with pytest.raises(InvalidRequest, match="index name"):
        ask(live(), name)


def test_an_index_is_opened_once_for_all_who_ask_at_once(live, build, monkeypatch):
    build(1111, "one")
    service = live()
    opened = []
    open_ = VectorIndex.open
    monkeypatch.setattr(
        VectorIndex, "open", lambda *args, **kw: (opened.append(args), time.sleep(0.05), open_(*args, **kw))[2]
    )

    async def many():
        asked = [asyncio.create_task(service.search(QUERY, k=1, index="one")) for _ in range(20)]
        await asyncio.sleep(0.01)
        asked[0].cancel()  # who leaves takes nothing from the others
        return await asyncio.gather(*asked, return_exceptions=True)

    first, *others = asyncio.run(many())
    assert isinstance(first, asyncio.CancelledError)
    assert {hits[0].text for hits in others} == {"The service listens on port 1111."}
    assert len(opened) == 1


def test_a_named_index_that_is_bad_is_read_once_and_again_when_its_pointer_changes(live, build, caplog, monkeypatch):
    bad = build(1111, "one").folder
    flipped(bad / "vectors.faiss")
    service = live()
    checked = []
    verify = Manifest.verify
    monkeypatch.setattr(Manifest, "verify", lambda *args, **kw: (checked.append(args[1]), verify(*args, **kw))[1])
    for _ in range(3):
        with pytest.raises(BadIndex, match="'one' is there but cannot be used") as refusal:
            ask(service, "one")
        assert str(bad) not in str(refusal.value)
    assert checked == [bad]
    (line,) = warnings(caplog)
    assert "vectors.faiss' was changed" in line
    assert "chatkit prepare-index SOURCE… --name one" in line
    build(2222, "one")
    assert ask(service, "one") == ["The service listens on port 2222."]


def test_named_indexes_are_followed_as_well(live, build):
    build(1111, "one")
    service = live()
    assert ask(service, "one") == ["The service listens on port 1111."]
    build(2222, "one")
    until(lambda: ask(service, "one") == ["The service listens on port 2222."])


def test_the_index_not_asked_for_the_longest_is_closed_when_too_many_are_open(live, build, monkeypatch):
    for number, name in enumerate(("one", "two", "three")):
        build(1000 + number, name)
    service = live(most_open=3)
    closed = []
    close = VectorIndex.close
    monkeypatch.setattr(VectorIndex, "close", lambda self: (closed.append(self.manifest.name), close(self)))
    for name in ("one", "two", "one", "three"):
        ask(service, name)
    until(lambda: closed == ["two"])
    assert ask(service, "two") == ["The service listens on port 1001."]
    until(lambda: closed == ["two", "one"])
    assert ask(service) != []


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "mapped"])
@pytest.mark.parametrize("damage", ["overwritten", "truncated", "deleted"])
def test_the_files_of_the_open_version_may_be_spoilt(live, build, monkeypatch, mapped, damage):
    if mapped:
        monkeypatch.setattr(vectors, "MAPPED_FROM", 0)
    folder = build().folder
    service = live()
    for file in (folder / "vectors.faiss", folder / "passages.parquet"):
        size = file.stat().st_size
        if damage == "overwritten":
            with file.open("r+b") as stream:
                stream.write(b"\xff" * size)
        elif damage == "truncated":
            os.truncate(file, 10)
        else:
            file.unlink()
    if mapped and damage == "truncated":
        with pytest.raises(BrokenIndex, match="cut short while it was open; build it again"):
            ask(service)
    elif not mapped or damage == "deleted":
        assert ask(service) == ["The service listens on port 8080."]
    else:
        ask(service)  # whatever it finds, it comes back
    build(9090)

    def answers_again():
        with contextlib.suppress(BrokenIndex):
            return ask(service) == ["The service listens on port 9090."]

    until(answers_again)


def test_versions_may_come_faster_than_they_are_opened(live, build, caplog):
    service = live(check_every_s=0.001)
    for port in range(9000, 9012):
        build(port)
    until(lambda: ask(service) == ["The service listens on port 9011."])
    assert warnings(caplog) == []


def test_closing_waits_for_nobody_and_may_be_done_while_an_index_is_opened(live, build):
    build(1111, "one")
    service = live()

    async def ask_and_close():
        asked = asyncio.create_task(service.search(QUERY, k=1, index="one"))
        await asyncio.sleep(0)
        await asyncio.to_thread(service.close)
        return await asyncio.gather(asked, return_exceptions=True)

    (result,) = asyncio.run(ask_and_close())
    assert isinstance(result, Exception) or result[0].text.endswith("1111.")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("watch", "open-index"))]
