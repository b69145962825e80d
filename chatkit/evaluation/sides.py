"""What stands side by side in `bench engine --peers`: chatkit's own service, the bare pipeline, and peers' servers."""

import http.client
import itertools
import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chatkit.errors import EngineFailed, Unavailable
from chatkit.evaluation.bare import BarePipeline
from chatkit.evaluation.driving import Streamed, drive, stream_chat
from chatkit.evaluation.peers import Peer, PeerServer
from chatkit.evaluation.processes import tree_cpu_seconds, tree_rss_bytes
from chatkit.evaluation.served import ServedChatkit
from chatkit.evaluation.workload import Workload

# A side that answers one request at a time keeps the last of many clients waiting. Seconds.
_TIMEOUT = 900.0
# After a pause, until the threads of a server have found out that time went by. Seconds.
_SETTLE = 0.3

Recount = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class SideRound:
    """One round of one side.

    Attributes:
        tokens: of each answer.
        prompts_counted: whether the server told for each prompt how many tokens it read; where not, nothing shows that
            it read what was meant.
        counted_by: "server", or "tokenizer" where the server does not say.
        cpu_s: processor time of all its processes, the clients' not among them.
        rss_bytes: of all its processes, at the end of the round.
    """

    seconds: float
    tokens: Sequence[int]
    first_delta_s: float
    counted_by: str
    cpu_s: float
    rss_bytes: int
    prompts_counted: bool = True


class Side(Protocol):
    """One that answers prompts."""

    name: str
    precision: str

    @property
    def pid(self) -> int:
        """The process that all others of this side descend from."""
        ...

    def run(self, work: Sequence[Workload], clients: int, new_tokens: int) -> SideRound:
        """Answer every prompt, `clients` of them at any time."""
        ...

    def pause(self) -> None:
        """Take no processor time until the next `run`."""
        ...


class HttpSide:
    """A server with OpenAI's door; chatkit's is asked for a stored turn of a new session by a `session_id`."""

    def __init__(
        self,
        name: str,
        server: ServedChatkit | PeerServer,
        body: Callable[[Workload, int], dict[str, Any]],
        recount: Recount,
        *,
        precision: str,
    ) -> None:
        self.name, self.precision = name, precision
        self._server, self._body, self._recount = server, body, recount
        self._paused = False

    @property
    def pid(self) -> int:
        """The server's first process."""
        return self._server.pid

    def run(self, work: Sequence[Workload], clients: int, new_tokens: int) -> SideRound:
        """Stream every answer.

        Raises:
            EngineFailed: the server died, refused, or reads another prompt than was meant.
        """
        self._resume()
        bodies = [self._body(one, new_tokens) for one in work]
        try:
            done = drive(self._server.address, bodies, stream_chat, self._cpu_s, clients=clients, timeout_s=_TIMEOUT)
        except (OSError, http.client.HTTPException, Unavailable) as error:
            seen = f"{type(error).__name__}: {error}"
            failure = self._server.failure(seen) if isinstance(self._server, PeerServer) else None
            raise failure or EngineFailed(f"{self.name}: {seen}") from error
        for one, answer in zip(work, done.answers, strict=True):
            if answer.prompt_tokens not in (0, len(one.ids)):
                raise EngineFailed(
                    f"{self.name}: reads {answer.prompt_tokens} tokens of a prompt that has {len(one.ids)} in chatkit; "
                    "its chat template is another one"
                )
        counted = all(answer.tokens for answer in done.answers)
        return SideRound(
            done.seconds,
            [answer.tokens if counted else self._recount(answer.text) for answer in done.answers],
            _median_first(done.answers),
            "server" if counted else "tokenizer",
            done.cpu_s["server"],
            tree_rss_bytes(self.pid),
            all(answer.prompt_tokens for answer in done.answers),
        )

    def _cpu_s(self) -> Mapping[str, float]:
        return {"server": tree_cpu_seconds(self.pid)}

    def pause(self) -> None:
        """Stop the processes of a peer; chatkit's own idle ones wait for work."""
        if isinstance(self._server, PeerServer):
            self._server.pause()
            self._paused = True

    def _resume(self) -> None:
        if self._paused and isinstance(self._server, PeerServer):
            self._server.resume()
            time.sleep(_SETTLE)
            self._paused = False


class BareSide:
    """The bare OpenVINO pipeline: no HTTP, no gate, no store."""

    name = "bare"

    def __init__(self, pipeline: BarePipeline, eos_ids: Sequence[int], precision: str) -> None:
        self._pipeline, self._eos_ids, self.precision = pipeline, list(eos_ids), precision

    @property
    def pid(self) -> int:
        """The pipeline's process."""
        return self._pipeline.pid

    def run(self, work: Sequence[Workload], clients: int, new_tokens: int) -> SideRound:
        """Answer every prompt in a plain loop; its first token counts as its first text."""
        config = greedy(new_tokens, self._eos_ids)
        done = self._pipeline.run([one.ids for one in work], clients=clients, config=config)
        tokens = [len(answer.ids) for answer in done.answers]
        first = statistics.median(answer.at[0] for answer in done.answers)
        return SideRound(done.seconds, tokens, first, "server", done.cpu_s, tree_rss_bytes(self.pid))

    def pause(self) -> None:
        """Do nothing: it waits for a line."""


def greedy(new_tokens: int, eos_ids: Sequence[int]) -> dict[str, object]:
    """Return the bare pipeline's options for the likeliest tokens, as the service asks for them at temperature 0."""
    return {
        "max_new_tokens": new_tokens,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "stop_words": [],
        "eos_ids": list(eos_ids),
    }


def chatkit_body(one: Workload, new_tokens: int) -> dict[str, Any]:
    """Return the request that chatkit is sent: its own system prompt stands, the session is new and stored."""
    session = f"bench-{uuid.uuid4().hex}"
    return {**_body([{"role": "user", "content": one.message}], new_tokens), "session_id": session}


def unstored_body(one: Workload, new_tokens: int) -> dict[str, Any]:
    """Return the same request without a session: the store is not asked."""
    return _body([{"role": "user", "content": one.message}], new_tokens)


def peer_body(peer: Peer, system: str) -> Callable[[Workload, int], dict[str, Any]]:
    """Return what makes the requests that a peer is sent: the same prompt, and its own way to a fixed length."""

    def body(one: Workload, new_tokens: int) -> dict[str, Any]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": one.message}]
        fields = {**_body(messages, new_tokens), **peer.body}
        return {name: value for name, value in fields.items() if value is not None}

    return body


def _body(messages: list[dict[str, str]], new_tokens: int) -> dict[str, Any]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return {"messages": messages, "max_tokens": new_tokens, "temperature": 0.0, **options}


def _median_first(answers: Sequence[Streamed]) -> float:
    return statistics.median(answer.first_delta_s for answer in answers)


def idle_cores(sides: Sequence[Side], *, seconds: float) -> dict[str, float]:
    """Return the cores that each side uses while nothing is asked of any."""
    before = [tree_cpu_seconds(side.pid) for side in sides]
    began = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - began
    return {
        side.name: max(0.0, tree_cpu_seconds(side.pid) - used) / took for side, used in zip(sides, before, strict=True)
    }


def order(sides: Sequence[Side], number: int) -> list[Side]:
    """Return the order of a round: every round starts one further, so that each follows after each."""
    start = number % len(sides)
    return list(itertools.islice(itertools.cycle(sides), start, start + len(sides)))
