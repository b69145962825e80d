"""What the lexical index counts as a word: the same for passages and for queries."""

import re
import unicodedata
from typing import Any

from chatkit.errors import ConfigError

# Changes with every change of how words are cut, so that an index says how it was made.
ANALYSERS = ("english-1",)
DEFAULT = ANALYSERS[0]

# Function words of English, question words included: with these left out, questions find more than with the 33 words
# that search engines leave out by default (mtrag-un nDCG@10 .788 against .760, cacm .487 against .476).
_FUNCTION_WORDS = """
a about above after again all also am an and any are as at be because been before being below between both but
by can could did do does doing don down during each few for from further had has have having he her here hers
him his how i if in into is it its just may me might more most must my no not now of off on once only or other
our ours out over own s same shall she should so some such t than that the their them then there these they
this those through to too under until up us very was we were what when where which while who whom whose why
will with would you your yours
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())

# Scripts that put no space between words are read in pairs of characters: Han, kana, Hangul (whose words carry their
# particles), Thai, Lao, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
_WORD = r"[\p{L}\p{M}\p{N}]+"
# A longer run of letters is no word that anybody asks for. Bytes.
_LONGEST = 80


def paired(text: str) -> str:
    """Return `text` in its compatible form, with every run of an unspaced script as overlapping pairs."""
    if text.isascii():
        return text
    return _UNSPACED.sub(_pairs, unicodedata.normalize("NFKC", text))


def _pairs(match: re.Match[str]) -> str:
    run = match.group()
    pairs = [run] if len(run) == 1 else [run[at : at + 2] for at in range(len(run) - 1)]
    return f" {' '.join(pairs)} "


def is_pair(word: str) -> bool:
    """Return whether a word is of those that `paired` makes: two characters of an unspaced script, or one alone."""
    return _UNSPACED.fullmatch(word) is not None


def analyser(name: str) -> Any:
    """Return the tantivy analyser of that name: lower case, accents folded, stop words out, English stems.

    Raises:
        ConfigError: there is none.
    """
    if name not in ANALYSERS:
        raise ConfigError(f"the lexical analyser is {name[:40]!r}, expected {' or '.join(map(repr, ANALYSERS))}")
    import tantivy

    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(_WORD))
    filters = (
        tantivy.Filter.remove_long(_LONGEST),
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
        tantivy.Filter.custom_stopword(sorted(STOP_WORDS)),
        tantivy.Filter.stemmer("english"),
    )
    for each in filters:
        builder = builder.filter(each)
    return builder.build()
