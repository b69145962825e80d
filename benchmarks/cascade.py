"""What a cascade saves: how many texts the embedded head sends on, and how many harmful ones are among them.

    python benchmarks/cascade.py FILE.jsonl [LOW HIGH]...

Lines hold "text" and "label", true or 1 for harmful. For each band it prints the share of texts that would be sent on,
the share of the harmful ones that are sent on or already scored above the band, the harmful ones that are lost below
it, and the average precision when the second model is never wrong: the most that any model can bring with this band.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from chatkit import wiring
from chatkit.moderation.cascade import CascadeScorer
from chatkit.moderation.figures import auprc
from chatkit.moderation.head import HeadScorer
from chatkit.settings import load_settings
from chatkit.types import HARM, Scores

BANDS = ((0.02, 1.0), (0.05, 0.98), (0.1, 0.95), (0.2, 0.95), (0.3, 0.9))


class Known:
    """Scores that were made before, by text."""

    def __init__(self, scores: dict[str, float]) -> None:
        self._scores = scores

    async def score(self, text: str, **_: Any) -> Scores:
        """Return what is known of a text."""
        return Scores({HARM: self._scores[text]})


async def head_scores(texts: list[str]) -> dict[str, float]:
    """Return what the embedded head says of each text."""
    settings = load_settings()
    encoder = wiring.moderation_encoder(settings)
    head = HeadScorer(encoder, None)
    found = {text: (await head.score(text, direction="input")).scores[HARM] for text in dict.fromkeys(texts)}
    encoder.close()
    return found


async def measure(rows: list[tuple[str, bool]], bands: list[tuple[float, float]]) -> list[dict[str, float]]:
    """Return the figures of every band."""
    cheap = await head_scores([text for text, _ in rows])
    truth = Known({text: 0.999 if harmful else 0.001 for text, harmful in rows})
    labels = [harmful for _, harmful in rows]
    alone = auprc(labels, [cheap[text] for text, _ in rows])
    figures = []
    for low, high in bands:
        cascade = CascadeScorer(Known(cheap), truth, low=low, high=high)
        scored = [(await cascade.score(text, direction="input")).scores[HARM] for text, _ in rows]
        lost = sum(harmful and cheap[text] < low for text, harmful in rows)
        figures.append(
            {
                "low": low,
                "high": high,
                "sent_on": round(cascade.counts.share, 4),
                "harmful_covered": round(1 - lost / max(1, sum(labels)), 4),
                "auprc_head": round(alone, 4),
                "auprc_with_a_perfect_model": round(auprc(labels, scored), 4),
            }
        )
    return figures


if __name__ == "__main__":
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    given = [float(value) for value in sys.argv[2:]]
    chosen = list(zip(given[::2], given[1::2], strict=True)) or list(BANDS)
    for row in asyncio.run(measure([(line["text"], bool(line["label"])) for line in lines], chosen)):
        sys.stdout.write(json.dumps(row) + "\n")
