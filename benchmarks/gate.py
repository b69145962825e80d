"""What the release gate costs: the same local answer with the embedded head and with a moderator that looks at nothing.

    python benchmarks/gate.py [--turns 8] [--tokens 200]

One process, one engine, no prefix cache; turns with and without the head alternate. The policy is `monitor`. Prints
JSON: `total_ratio`, the median over pairs of the time a token takes until the last delta with the gate, over that
without, as answers may differ in length; `first_delta_after_window_ms`, the median and the worst time from the end of
the first window to its delta.
"""

import argparse
import asyncio
import json
import statistics

from chatkit import wiring
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService
from chatkit.settings import load_settings
from chatkit.testing import KeywordModerator, MemoryStore
from chatkit.types import ChatRequest, Reply, RetrievalOptions, SamplingParams

QUESTIONS = [
    "Explain how a database index works.",
    "Describe the life of a star from its birth to its end.",
    "What should I know before I bake bread for the first time?",
    "Tell me how the post travels from one country to another.",
    "Explain the rules of chess to a beginner.",
    "How do plants turn light into sugar?",
    "Describe how a bridge carries its load.",
    "What happens inside a computer when a program starts?",
]


async def turn(service: OpenChatKitService, question: str, number: str, tokens: int) -> Reply:
    """Return the reply to one question in a session of its own."""
    sampling = SamplingParams(max_new_tokens=tokens, temperature=0.0)
    options = RetrievalOptions(enabled=False)
    request = ChatRequest(question, f"request-{number}", sampling=sampling, retrieval=options)
    async for event in service.stream(request):
        if isinstance(event, Reply):
            return event
    raise AssertionError("a stream ends with a reply")


async def measure(turns: int, tokens: int) -> dict[str, object]:
    """Return the figures of `turns` pairs."""
    settings = load_settings(
        {"index": "", "store": "memory", "citations": "off", "prefix_cache": False, "policy": "monitor"}
    )
    gated = await wiring.build_service(settings)
    bare = OpenChatKitService(gated.model, KeywordModerator(), MemoryStore(), options=ServiceOptions())
    services = {"on": gated, "off": bare}
    ratios, waits, lengths = [], [], []
    try:
        for name, service in services.items():
            await turn(service, QUESTIONS[0], f"warm-{name}", tokens)
        for number in range(turns):
            question = QUESTIONS[number % len(QUESTIONS)]
            order = ("on", "off") if number % 2 else ("off", "on")
            replies = {name: await turn(services[name], question, f"{name}-{number}", tokens) for name in order}
            on, off = replies["on"], replies["off"]
            per_token = [one.timings["generation"] / one.usage.completion_tokens for one in (on, off)]
            ratios.append(per_token[0] / per_token[1])
            waits.append(1000 * (on.timings["first_delta"] - on.timings["first_window"]))
            lengths.append(on.usage.completion_tokens)
    finally:
        await gated.close(0)
    return {
        "total_ratio": round(statistics.median(ratios), 3),
        "first_delta_after_window_ms": round(statistics.median(waits), 1),
        "first_delta_after_window_ms_worst": round(max(waits), 1),
        "tokens": lengths,
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    print(json.dumps(asyncio.run(measure(given.turns, given.tokens))))


if __name__ == "__main__":
    main()
