"""Personal data by Presidio's patterns: found without a model, nothing fetched; merged with another scorer's scores."""

import socket
import sys

import pytest

from chatkit.errors import MissingExtra
from chatkit.moderation.personal import PersonalData, WithPersonalData
from chatkit.types import Scores

pytestmark = pytest.mark.anyio
HARMLESS = (
    "The meeting is on Tuesday at nine in room 204.",
    "Python 3.12.4 fixed 1,024 bugs, see chapter 7 of the handbook.",
    "Paris is the capital of France and has some two million people.",
)


class Fixed:
    def __init__(self, found) -> None:
        self.found = found

    async def score(self, text, **_):
        return self.found


@pytest.mark.filterwarnings("default")  # of its libraries
async def test_patterns_are_found_and_nothing_is_fetched(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    personal = PersonalData()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for text in (
        "Write to jane.roe@example.com please.",
        "My card number is 4111 1111 1111 1111.",
        "Pay to IBAN DE89 3704 0044 0532 0130 00 today.",
        "word " * 6000 + "jane.roe@example.com",
    ):
        assert (await personal.score(text, direction="output")).scores["personal_data"] >= 0.8, text[-60:]
    split = await personal.score("@example.com", direction="output", before="Write to jane.roe")
    assert split.scores["personal_data"] >= 0.8
    for text in HARMLESS:
        assert (await personal.score(text, direction="output")).scores["personal_data"] < 0.5, text
    assert (await personal.score(HARMLESS[0], direction="input")).model == "presidio"


async def test_without_the_extra_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtra, match="presidio"):
        PersonalData()


async def test_scores_are_joined_and_who_cannot_say_is_not_covered_up() -> None:
    other = Scores({"harm": 0.2, "personal_data": 0.4}, {"casual": 1.0}, model="head")
    found = await WithPersonalData(Fixed(other), Fixed(Scores({"personal_data": 0.9}))).score("x", direction="input")
    assert found == Scores({"harm": 0.2, "personal_data": 0.9}, {"casual": 1.0}, model="head")
    for pair in ((other, Scores(unavailable=True)), (Scores(unavailable=True), Scores({"personal_data": 0.1}))):
        found = await WithPersonalData(*map(Fixed, pair)).score("x", direction="input")
        assert (found.unavailable, found.scores) == (True, {})
