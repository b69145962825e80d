"""What one check of the embedded head costs: normalising, tokenising, the encoder and the head, a sentence at a time.

    taskset -c 0 python benchmarks/moderation_cost.py [--checks 150]

Sentences of 25 tokens (the two that frame a text included) and of 6 to 28, no two alike, each checked once. Prints
JSON: the median, the fastest tenth and the slowest tenth of the milliseconds of a check, of each kind. The encoder
takes as many threads as it has cores: `taskset` gives it one.
"""

import argparse
import asyncio
import json
import statistics
import time

from chatkit import wiring
from chatkit.protocols import Moderator
from chatkit.retrieval.encoder import SentenceEncoder
from chatkit.settings import load_settings

WORDS = "the service listens on a port of this machine and answers what people ask about their own documents in plain"


def sentences(encoder: SentenceEncoder, tokens: int, count: int) -> list[str]:
    """Return different sentences of so many tokens."""
    made = []
    for number in range(count):
        words = [str(100 + number), *(WORDS.split() * 2)]
        lengths = range(1, len(words))
        fitting = next(n for n in lengths if encoder.count_tokens(" ".join(words[:n])) >= tokens)
        made.append(" ".join(words[:fitting]))
    return made


async def milliseconds(moderator: Moderator, texts: list[str]) -> dict[str, float]:
    """Return how long the checks of `texts` take, the first fifth left out."""
    taken = []
    for text in texts:
        begun = time.perf_counter()
        await moderator.check(text, direction="input")
        taken.append(1000 * (time.perf_counter() - begun))
    cuts = statistics.quantiles(taken[len(taken) // 5 :], n=10)
    return {"median": round(cuts[4], 2), "fastest_tenth": round(cuts[0], 2), "slowest_tenth": round(cuts[8], 2)}


async def measure(checks: int) -> dict[str, dict[str, float]]:
    """Return the figures of both kinds."""
    settings = load_settings({"index": ""})
    encoder = wiring.open_encoder(settings)
    try:
        moderator = wiring.open_moderator(settings, encoder)
        await milliseconds(moderator, sentences(encoder, 24, 40))  # what is compiled at the first texts is
        mixed = [text for tokens in range(6, 29) for text in sentences(encoder, tokens, 1 + checks // 23)]
        mixed = list(dict.fromkeys(mixed))
        return {
            "tokens_25": await milliseconds(moderator, sentences(encoder, 25, checks)),
            "tokens_6_to_28": await milliseconds(moderator, [text for n in (0, 3, 5) for text in mixed[n::7]]),
        }
    finally:
        encoder.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=150)
    print(json.dumps(asyncio.run(measure(parser.parse_args().checks))))


if __name__ == "__main__":
    main()
