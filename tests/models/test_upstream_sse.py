"""The event reader: the same events however the bytes are cut, and bounded memory."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkit.models.sse_reader import EventReader, EventTooLong

STREAM = (
    "\ufeff: a comment\n"
    "event: message\nid: 7\nretry: 10\n"
    'data: {"text": "naïve 漢字 🙂"}\n\n'
    "garbage without a colon\nmore: garbage\n\x00\x01\n"
    "data: first line\ndata:second line\ndata\n\n"
    "\n\n: ping\n\n"
    "data:\n\n"
    "data:  two spaces\n\n"
    "data: [DONE]\n\n"
)
EVENTS = ['{"text": "naïve 漢字 🙂"}', "first line\nsecond line\n", "", " two spaces", "[DONE]"]


def read(data: bytes, *cuts: int, **options) -> list[str]:
    reader = EventReader(**options)
    edges = [0, *sorted(cuts), len(data)]
    events = [e for a, b in itertools.pairwise(edges) for e in reader.feed(data[a:b])]
    return events + reader.end()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_stream_cut_at_any_byte_or_at_every_byte_has_the_same_events(ending) -> None:
    data = STREAM.replace("\n", ending).encode()
    assert read(data) == EVENTS
    for at in range(len(data) + 1):
        assert read(data, at) == EVENTS
    assert read(data, *range(len(data))) == EVENTS


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=200, deadline=None)
def test_any_cuts_give_the_same_events(cuts, ending) -> None:
    data = STREAM.replace("\n", ending).encode()
    assert read(data, *(min(cut, len(data)) for cut in cuts)) == EVENTS


def test_an_event_whose_lines_are_whole_counts_at_the_end_and_one_cut_in_its_line_does_not() -> None:
    assert read(b"data: one\n\ndata: two\n") == ["one", "two"]
    assert read(b"data: one\n\ndata: tw") == ["one"]


def test_bytes_that_are_no_utf8_harm_their_own_event_only() -> None:
    assert read(b"data: a\xff\xfe\n\ndata: b\n\n") == ["a\ufffd\ufffd", "b"]


def test_json_lines_are_events_of_a_line_each() -> None:
    rows = [{"n": 1}, {"n": 2}, {"n": 3}]
    data = b"\n\n".join(json.dumps(row).encode() for row in rows)
    for at in range(len(data) + 1):
        assert [json.loads(text) for text in read(data, at, by_line=True)] == rows


@pytest.mark.parametrize("start", [b"", b"data: ", b": "])
def test_a_line_without_an_end_is_given_up_at_the_cap_and_not_kept(start) -> None:
    reader = EventReader(most=1000)
    for _ in range(9):
        assert reader.feed(start + b"x" * 100) == []
    with pytest.raises(EventTooLong, match="longer than 1000 bytes"):
        reader.feed(b"x" * 200)


def test_an_event_of_endless_lines_is_given_up_at_the_cap() -> None:
    reader = EventReader(most=1000)
    for _ in range(100):
        assert reader.feed(b"data: 123456789\n") == []
    with pytest.raises(EventTooLong, match="longer than 1000 bytes"):
        reader.feed(b"data: 123456789\n")
