"""Vectors of the chat model beside its answers: what waits is bounded, passes are short, and nobody's are not made."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from chatkit.errors import Overloaded
from chatkit.models.chat import ChatModel, ChatOptions, open_chat
from chatkit.models.chat_scheduler import Limits, Scheduler
from chatkit.models.vectors import VectorRequests
from tests.models import tiny

pytestmark = pytest.mark.anyio
PIECE = 16


class Passes:
    """A runner that makes vectors of the first token; `sizes` are the padded tokens of each pass."""

    announce = None
    vocabulary = tiny.VOCABULARY

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def embed(self, rows):
        self.sizes.append(len(rows) * max(map(len, rows)))
        return torch.tensor([row[:1] for row in rows], dtype=torch.float32)


@pytest.fixture
def runner() -> Passes:
    return Passes()


@pytest.fixture
def events() -> list[dict]:
    return []


@pytest.fixture
def scheduler(runner, events) -> Scheduler:
    limits = Limits(cache_tokens=4096, window=512, max_running=8, piece=PIECE)
    return Scheduler(runner, tiny.tokenizer().backend_tokenizer, limits, events.append)


@pytest.fixture
def model(tmp_path) -> ChatModel:
    folder = tiny.make(tmp_path / "llama", "llama")
    return open_chat(folder, cache=tmp_path, options=ChatOptions(dtype="float32", threads=1), name="tiny-llama")


def test_a_pass_for_vectors_is_no_longer_than_a_piece_of_a_prompt(scheduler, runner, events) -> None:
    texts = [[number, *[1] * (number % 5)] for number in range(1, 41)]
    scheduler.apply({"embed": 1, "ids": [*texts, [7] * (3 * PIECE)]})
    steps = 0
    while not scheduler.idle:
        scheduler.work()
        steps += 1
    assert len(runner.sizes) == steps - 1  # the last finds no text left
    assert sorted(runner.sizes)[-2] <= PIECE < 3 * PIECE == max(runner.sizes)  # one text alone may be longer
    assert sorted(index for event in events for index in event["texts"]) == list(range(41))


def test_vectors_that_nobody_waits_for_any_more_are_not_made(scheduler, runner, events) -> None:
    scheduler.apply({"embed": 1, "ids": [[1] * PIECE] * 9})
    scheduler.apply({"embed": 2, "ids": [[2] * PIECE] * 2})
    scheduler.work()
    scheduler.apply({"cancel": 1})
    while not scheduler.idle:
        scheduler.work()
    assert [event["vectors"] for event in events] == [1, 2, 2]
    scheduler.apply({"cancel": 2})  # it is over
    assert scheduler.idle


async def test_one_that_stops_waiting_tells_the_engine_and_one_that_is_answered_does_not(model, monkeypatch) -> None:
    sent: list[dict] = []
    monkeypatch.setattr(model, "_failure", None)
    monkeypatch.setattr(model, "_send", sent.append)
    answered = asyncio.create_task(model.vectors([[1], [2]]))
    left = asyncio.create_task(model.vectors([[3], [4]]))
    await asyncio.sleep(0)
    model._hand_out({"vectors": 0, "texts": [1, 0], "float32": "AAAAQAAAgD8="})
    assert np.frombuffer(await answered, dtype=np.float32).tolist() == [1.0, 2.0]
    model._hand_out({"vectors": 1, "texts": [0], "float32": "AACAPw=="})
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert sent == [{"embed": 0, "ids": [[1], [2]]}, {"embed": 1, "ids": [[3], [4]]}, {"cancel": 1}]


async def test_too_many_texts_that_wait_are_refused_and_one_request_alone_never_is() -> None:
    asked = VectorRequests()
    first = asked.add(0, 5000)
    with pytest.raises(
        Overloaded, match=r"5000 texts wait for their vectors, and with 1 more .* the 4096 that"
    ) as caught:
        asked.add(1, 1)
    assert "\n" not in str(caught.value)
    first.put(range(4000), b"\0" * 16000)
    asked.add(1, 3096)
    with pytest.raises(Overloaded):
        asked.add(2, 1)
    assert asked.remove(0)
    asked.add(2, 1000)


async def test_texts_are_read_beside_the_event_loop(model, monkeypatch) -> None:
    real, threads = model.embedder._rows, []

    def rows(texts):
        threads.append(threading.current_thread())
        return real(texts)

    monkeypatch.setattr(model.embedder, "_rows", rows)
    await model.start()
    alone = await model.embedder.encode(["rain and snow"])
    both = await asyncio.gather(*(model.embedder.encode(["rain and snow", word]) for word in ("owls", "books")))
    await model.close()
    assert [np.abs(vectors[0] - alone[0]).max() < 1e-5 for vectors in both] == [True, True]
    assert threading.main_thread() not in threads
    assert len(threads) == 3
