"""Clients that keep a ledger while the service they talk to is killed again and again, and who kills it."""

import heapq
import http.client
import itertools
import json
import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from chatkit.errors import InvalidRequest
from chatkit.evaluation.ledger import Acknowledged, Asked, Ledger
from chatkit.evaluation.scripted import REFUSED, ScriptedServer
from chatkit.sessions.items import LEASE_S

# The soonest that a server is killed after it is ready. Seconds.
SOONEST = 0.05
# How long clients go on asking for what they have no answer to once nothing is killed any more. Seconds.
_LAST_CALL = 4 * LEASE_S
# Of a client's requests, the share that open a session of the server's naming, go to such a session, are sent again
# although they were answered, and are sent twice at the same moment.
_OPENS, _GOES_ON, _AGAIN, _TWICE = 0.03, 0.1, 0.05, 0.03
# Of every 20 requests of a client, the one with a word that is refused, and the one that takes the place of a turn.
_EVERY, _BAD, _REPLACING = 20, 3, 6
# Requests that were answered and that each client sends once more after the last kill.
_SAMPLE = 10
# Clients that talk in one session, and messages of each before they go to the next.
_TOGETHER, _LENGTH = 2, 100
# A client that hears nothing for this long takes the connection for broken. Seconds.
_TIMEOUT = 30.0
# Error code → when the same request is sent again, seconds. A killed attempt holds its turn for the length of a lease.
_AGAIN_AFTER = {"conflict": LEASE_S + 0.5, "not_saved": LEASE_S + 0.5, "store_failed": 1.0, "unavailable": 0.5}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class KillBench:
    """What is done: so many kills under so many clients; `seed` decides the moments and the clients' choices.

    Attributes:
        latest: the longest that a server serves before it is killed, seconds.
    """

    kills: int
    clients: int = 8
    seed: int = 0
    latest: float = 0.8

    def __post_init__(self) -> None:
        """Check every bound."""
        if not SOONEST <= self.latest <= 60:
            raise InvalidRequest(f"latest is {self.latest}, expected {SOONEST} to 60 seconds")
        if self.kills < 1 or not 1 <= self.clients <= 64:
            raise InvalidRequest(f"kills is {self.kills} and clients {self.clients}, expected at least 1, and 1 to 64")


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: after how many seconds of serving, what was acknowledged since the one before, and what it broke."""

    after_s: float
    acknowledged: int
    broken: int


class _Broken(Exception):
    """The connection ended before the answer did."""


class _Refused(Exception):
    """The service answered with an error; the arguments are its code and its words."""


class _Line:
    """Where the service is; clients wait here while it is down.

    Attributes:
        over: there will be no server any more.
        last_call: nothing new is asked from then on, monotonic seconds.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._address: tuple[str, int] | None = None
        self._number = 0
        self.over = False
        self._broken: dict[int, list[float]] = defaultdict(list)
        self.last_call: float | None = None

    def up(self, address: tuple[str, int]) -> None:
        """Tell everybody where the next server is."""
        with self._changed:
            self._address, self._number = address, self._number + 1
            self._changed.notify_all()

    def down(self) -> int:
        """Let nobody begin anything, and return the number of the server that is to be killed."""
        with self._changed:
            self._address = None
            return self._number

    def close(self) -> None:
        """Let those go who wait."""
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def where(self) -> tuple[int, tuple[str, int]] | None:
        """Wait for a server and return its number and address; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or self._address is not None)
            return None if self.over or self._address is None else (self._number, self._address)

    def broke(self, number: int, sent_at: float) -> None:
        """Note a request that was sent to a server and not answered by it."""
        with self._changed:
            self._broken[number].append(sent_at)

    def broken(self, number: int, killed_at: float) -> int:
        """Return how many requests a server had before it was killed and did not answer."""
        with self._changed:
            return sum(sent_at < killed_at for sent_at in self._broken[number])


class _Client:
    """One client: a thread, a connection, and what it has no answer to yet."""

    def __init__(self, name: str, group: str, ledger: Ledger, line: _Line, seed: str) -> None:
        self._name, self._group = name, group
        self._ledger, self._line = ledger, line
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._parked: list[tuple[float, int, Asked]] = []
        self._order = itertools.count()
        self._answered: list[Asked] = []
        self._told: dict[str | None, int] = {}  # the number of the last turn of each session that it was told of
        self._sample: list[Asked] | None = None
        self._own_sessions: list[str] = []
        self._connections: tuple[int, list[http.client.HTTPConnection]] = (0, [])
        self._sent_at = math.inf  # when the request that is on its way had left whole, monotonic seconds

    def run(self) -> list[float]:
        """Ask until the last call, then until everything is answered; return the seconds each turn took its store."""
        spent: list[float] = []
        for asked in self._requests():
            place = self._line.where()
            if place is None:
                break
            self._sent_at = math.inf
            try:
                spent += self._exchange(asked, *place)
            except _Broken:
                self._line.broke(place[0], self._sent_at)
                self._hang_up()
                self._park(asked, 0.0)
            except _Refused as refused:
                code, words = refused.args
                self._hang_up()  # a twin may have an answer there that nobody reads
                self._ledger.refusals[asked.request_id] = words
                if code in _AGAIN_AFTER:
                    self._park(asked, _AGAIN_AFTER[code])
        self._hang_up()
        return spent

    def _requests(self) -> Iterator[Asked]:
        """Yield what is to be sent next: what is due again before anything new."""
        while not self._line.over:
            now, last_call = time.monotonic(), self._line.last_call
            if self._parked and self._parked[0][0] <= now:
                yield heapq.heappop(self._parked)[2]
            elif last_call is None:
                yield self._next()
            elif self._sample is None:
                self._sample = self._random.sample(self._answered, min(_SAMPLE, len(self._answered)))
                for asked in self._sample:
                    self._ledger.ask_again(asked.request_id)
            elif self._sample:
                yield self._sample.pop()
            elif self._parked and now < last_call + _LAST_CALL:
                time.sleep(max(0.0, min(0.1, self._parked[0][0] - now)))
            else:
                return

    def _next(self) -> Asked:
        chance = self._random.random()
        if self._answered and chance < _AGAIN:
            return self._random.choice(self._answered[-200:])
        number = next(self._numbers)
        session_id: str | None = f"{self._group}-{number // _LENGTH}"
        if chance > 1 - _OPENS:
            session_id = None
        elif self._own_sessions and chance > 1 - _OPENS - _GOES_ON:
            session_id = self._random.choice(self._own_sessions[-3:])
        request_id = f"{self._name}-{number}"
        text = f"Question {request_id} {'with many words ' * self._random.randrange(20)}"
        refused = number % _EVERY == _BAD
        if refused:  # a repeat is known by its session, since no text of it is
            text, session_id = text + REFUSED, session_id or f"{self._group}-{number // _LENGTH}"
        replaces = self._told.get(session_id) if number % _EVERY == _REPLACING else None
        stream = self._random.random() < 0.5
        return self._ledger.ask(Asked(request_id, session_id, text, stream, refused, replaces))

    def _exchange(self, asked: Asked, number: int, address: tuple[str, int]) -> list[float]:
        """Send a request, sometimes twice at once, and note every answer that comes."""
        if self._connections[0] != number:
            self._hang_up()
            both = [http.client.HTTPConnection(*address, timeout=_TIMEOUT) for _ in range(2)]
            self._connections = (number, both)
        used = self._connections[1][: 2 if self._random.random() < _TWICE else 1]
        for connection in used:
            _send(connection, asked)
        self._sent_at = time.monotonic()
        return [seconds for connection in used for seconds in self._hear(connection, asked)]

    def _hear(self, connection: http.client.HTTPConnection, asked: Asked) -> Iterator[float]:
        """Read one answer, note it, and yield the seconds that its store took, unless it is a repeat."""
        told = _receive(connection)
        answer = Acknowledged(asked.request_id, told["session_id"], told["seq"], told["outputs"])
        self._ledger.acknowledge(answer)
        self._answered.append(asked)
        self._told[answer.session_id] = answer.seq
        if asked.session_id is None:
            self._own_sessions.append(answer.session_id)
        spent = told["timings"]
        if not told["replayed"] and "finish" in spent:  # what is refused is written at once
            yield spent["accept"] + spent["finish"] - spent["generation"]

    def _park(self, asked: Asked, seconds: float) -> None:
        heapq.heappush(self._parked, (time.monotonic() + seconds, next(self._order), asked))

    def _hang_up(self) -> None:
        for connection in self._connections[1]:
            connection.close()
        self._connections = (0, [])


def _send(connection: http.client.HTTPConnection, asked: Asked) -> None:
    named = {"request_id": asked.request_id, "session_id": asked.session_id, "replaces": asked.replaces}
    parameters = {name: value for name, value in named.items() if value is not None}
    body = {"inputs": asked.text, "stream": asked.stream, "parameters": parameters}
    try:
        connection.request("POST", "/invocations", json.dumps(body).encode(), {"content-type": "application/json"})
    except (OSError, http.client.HTTPException):
        raise _Broken from None


def _receive(connection: http.client.HTTPConnection) -> Mapping[str, Any]:
    """Return the whole answer.

    Raises:
        _Broken: it did not come to its end.
        _Refused: it is an error.
    """
    told: dict[str, Any] | None = None
    try:
        response = connection.getresponse()
        for line in response if response.chunked else [response.read()]:  # a whole answer is one line
            event = json.loads(line)
            if event.get("event") in (None, "done", "error"):
                told = event
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()  # an answer that was whole before the connection broke counts
    if told is None:
        raise _Broken
    if "error" in told:
        raise _Refused(told["error"]["code"], told["error"]["message"])
    return told


def kill_again_and_again(
    server: ScriptedServer, bench: KillBench, ledger: Ledger, prefix: str, progress: Progress
) -> tuple[list[Kill], list[float]]:
    """Kill the server as often as asked while clients talk to it; then let them ask for what they have no answer to.

    Returns:
        The kills, and the seconds that each turn took its store.

    Raises:
        EngineFailed: a server did not come up, or ended by itself.
    """
    line, moments = _Line(), random.Random(bench.seed)
    clients = [
        _Client(f"{prefix}-{number}", f"{prefix}-session-{number // _TOGETHER}", ledger, line, f"{bench.seed} {number}")
        for number in range(bench.clients)
    ]
    rows: list[tuple[float, int, int, float]] = []
    with ThreadPoolExecutor(bench.clients) as pool:
        running = [pool.submit(client.run) for client in clients]
        try:
            for number in range(1, bench.kills + 1):
                after_s, before = moments.uniform(SOONEST, bench.latest), ledger.acknowledged
                line.up(server.start())
                time.sleep(after_s)
                dying = line.down()
                killed_at = server.kill()
                rows.append((after_s, ledger.acknowledged - before, dying, killed_at))
                if number % max(1, bench.kills // 10) == 0 or number == bench.kills:
                    progress(f"{number} of {bench.kills} kills, {ledger.acknowledged} turns acknowledged")
            progress("the last unanswered requests are sent again, and some of the others …")
            line.last_call = time.monotonic()
            line.up(server.start())
            spent = [seconds for client in running for seconds in client.result()]
        finally:
            line.close()
    kills = [Kill(after_s, came, line.broken(dying, killed_at)) for after_s, came, dying, killed_at in rows]
    server.kill()
    return kills, spent
