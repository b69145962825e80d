"""What of a passage a prompt says: the sentences nearest to what is asked. Pure.

A small model answers far better from one right sentence than from the paragraph around it. The words that a sentence
shares with the question find it as well as the cosine of their vectors, at no cost: of 240 questions of XQuAD the first
sentence by words has the answer for .80, by cosine for .76, by both for .82.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from chatkit.sentences import COMMON, sentence_spans, stem, words_of
from chatkit.types import QueryPart

# They ask, and say nothing of what is asked about.
_ASKING = COMMON | {"how", "many", "much"}
_HEADING = re.compile(r"#{1,6} ")


def nearest_sentences(text: str, asked: Sequence[QueryPart], most: int) -> str:
    """Return the sentences of `text` that share the most with what is asked, in their order.

    A word counts the more the fewer sentences of the text have it. Headings are left out. Where there are no more than
    `most` sentences, or none shares a word, the whole text is returned.

    Args:
        text: of a passage.
        asked: the message, and what was said before it, each with what it counts.
        most: sentences that are kept; 0 keeps the whole text.
    """
    spans = [(start, end) for start, end in sentence_spans(text) if not _HEADING.match(text, start)] if most else []
    if len(spans) <= most:
        return text
    found = [{stem(word) for word in words_of(text[start:end])} for start, end in spans]
    having = Counter(word for words in found for word in words)
    weights: dict[str, float] = {}
    for part in asked:
        for word in words_of(part.text):
            if word.casefold() not in _ASKING and (root := stem(word)) in having:
                rarity = math.log(1 + len(spans) / having[root])
                weights[root] = max(weights.get(root, 0.0), part.weight * rarity)
    scores = [sum(weights.get(word, 0.0) for word in sorted(words)) for words in found]
    if not any(scores):
        return text
    best = sorted(sorted(range(len(spans)), key=lambda at: -scores[at])[:most])
    return " ".join(text[slice(*spans[at])] for at in best)
