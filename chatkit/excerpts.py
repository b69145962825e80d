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

# They ask, and say nothing of what is asked about.
_ASKING = COMMON | {"how", "many", "much"}
_HEADING = re.compile(r"#{1,6} ")


def nearest_sentences(text: str, asked: Sequence[str], most: int) -> str:
    """Return the sentences of `text` that share the most with what is asked, in their order.

    A word counts the more the fewer sentences of the text have it. Headings are left out. Where there are no more than
    `most` sentences, or none shares a word, the whole text is returned.

    Args:
        text: of a passage.
        asked: the message, then those before it, the newest first; one decides where all before it leave a tie.
        most: sentences that are kept; 0 keeps the whole text.
    """
    spans = [(start, end) for start, end in sentence_spans(text) if not _HEADING.match(text, start)] if most else []
    if len(spans) <= most:
        return text
    found = [{stem(word) for word in words_of(text[start:end])} for start, end in spans]
    having = Counter(word for words in found for word in words)
    wanted = [{stem(word) for word in words_of(one) if word.casefold() not in _ASKING} for one in asked]

    def score(at: int) -> list[float]:
        return [sum(math.log(1 + len(spans) / having[word]) for word in sorted(found[at] & own)) for own in wanted]

    scores = [score(at) for at in range(len(spans))]
    if not any(map(any, scores)):
        return text
    ranked = sorted(range(len(spans)), key=lambda at: scores[at], reverse=True)  # stable: of equals the first one
    return " ".join(text[slice(*spans[at])] for at in sorted(ranked[:most]))
