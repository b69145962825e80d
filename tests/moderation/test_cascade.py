"""The cascade asks the expensive scorer in its band only, counts that, and covers up for none that cannot say."""

import pytest

from chatkit.errors import EngineFailed
from chatkit.moderation.cascade import CascadeScorer
from chatkit.types import Scores

pytestmark = pytest.mark.anyio


class Fixed:
    def __init__(self, found) -> None:
        self.found = found
        self.asked = []

    async def score(self, text, *, direction, before="", history=()):
        self.asked.append((text, direction, before, history))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found if isinstance(self.found, Scores) else self.found(text)


def harm(text: str) -> Scores:
    return Scores({"harm": float(text), "profanity": 0.3, "hate": 0.9}, {"casual": 1.0}, model="cheap")


SURE = Scores({"harm": 0.99, "hate": 0.1}, {"needs intervention": 1.0}, model="guard")


async def test_only_the_uncertain_band_is_sent_on_and_counted() -> None:
    cheap, expensive = Fixed(harm), Fixed(SURE)
    cascade = CascadeScorer(cheap, expensive, low=0.2, high=0.9)
    models = [(await cascade.score(text, direction="input")).model for text in ("0", ".19", ".2", ".5", ".9", ".91")]
    assert models == ["cheap", "cheap", "guard", "guard", "guard", "cheap"]
    assert [text for text, *_ in expensive.asked] == [".2", ".5", ".9"]
    assert (cascade.counts.checks, cascade.counts.sent_on, cascade.counts.share) == (6, 3, 0.5)
    await cascade.score(".5", direction="output", before="b", history=("h",))
    assert expensive.asked[-1] == (".5", "output", "b", ("h",))


async def test_inside_the_band_kinds_that_the_expensive_one_lacks_are_kept() -> None:
    found = await CascadeScorer(Fixed(harm), Fixed(SURE), low=0, high=1).score(".5", direction="input")
    assert found.scores == {"harm": 0.99, "hate": 0.1, "profanity": 0.3}
    assert (found.levels, found.model) == ({"needs intervention": 1.0}, "guard")


async def test_who_cannot_say_is_not_covered_up() -> None:
    unable = Scores(unavailable=True, model="guard")
    cascade = CascadeScorer(Fixed(harm), Fixed(unable), low=0.2, high=0.9)
    assert (await cascade.score(".5", direction="input")).unavailable
    assert not (await cascade.score(".1", direction="input")).unavailable
    assert cascade.counts.unavailable == 1
    with pytest.raises(EngineFailed):
        await CascadeScorer(Fixed(harm), Fixed(EngineFailed("x")), low=0, high=1).score(".5", direction="input")
    blind = CascadeScorer(Fixed(unable), Fixed(SURE), low=0.2, high=0.9)
    assert (await blind.score(".5", direction="input")).unavailable
    assert (await CascadeScorer(Fixed(Scores()), Fixed(SURE), low=0.2, high=1).score("x", direction="input")) == SURE
