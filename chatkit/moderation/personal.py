"""Personal data by its patterns, found by Presidio: addresses, numbers and accounts, no names of people.

Presidio is asked for its pattern recognisers alone. They need no language model, so nothing is downloaded: the words
around a match, which raise its score, come from a tokenizer that is a rule.
"""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from chatkit.errors import MissingExtra
from chatkit.protocols import Scorer
from chatkit.release import tail
from chatkit.squeeze import squeezed
from chatkit.types import Direction, Scores

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

# What patterns find with few mistakes. Dates, addresses of pages and network addresses are nobody's in particular.
ENTITIES = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "MEDICAL_LICENSE",
    "PHONE_NUMBER",
    "UK_NHS",
    "US_BANK_NUMBER",
    "US_DRIVER_LICENSE",
    "US_ITIN",
    "US_PASSPORT",
    "US_SSN",
)
# A text is read in parts of this length, so that one check stops no others for long. Characters.
_PART = 20_000


class PersonalData:
    """Scores `personal_data`: how sure the surest recogniser is of what it found.

    Raises:
        MissingExtra: Presidio is not installed.
    """

    def __init__(self) -> None:
        self._engine = _engine()
        self._version = _version()

    async def score(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> Scores:
        """Score `text` in a thread."""
        said = tail(before)
        score = await asyncio.to_thread(lambda: self._surest(said + squeezed(text), len(said)))
        return Scores({"personal_data": score}, model="presidio", version=self._version)

    def _surest(self, text: str, start: int) -> float:
        """Return the highest score of what ends after `start`."""
        best = 0.0
        for begin in range(0, len(text), _PART):
            from_here = max(begin - 100, 0)
            found = self._engine.analyze(text[from_here : begin + _PART], language="en", entities=list(ENTITIES))
            best = max([best, *(one.score for one in found if from_here + one.end > start)])
        return min(max(best, 0.0), 1.0)


class WithPersonalData:
    """Another scorer's scores, with personal data in them too; both run side by side.

    Args:
        scorer: the other one; what it says of personal data counts where it is higher.
        personal: finds personal data.
    """

    def __init__(self, scorer: Scorer, personal: Scorer) -> None:
        self._scorer = scorer
        self._personal = personal

    async def score(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> Scores:
        """Score `text`; what either cannot say is unavailable."""
        both = (self._scorer, self._personal)
        scored = (one.score(text, direction=direction, before=before, history=history) for one in both)
        found, own = await asyncio.gather(*scored)
        if found.unavailable or own.unavailable:
            return replace(found, scores={}, levels={}, unavailable=True)
        highest = max(found.scores.get("personal_data", 0.0), own.scores["personal_data"])
        return replace(found, scores={**found.scores, "personal_data": highest})


def _engine() -> "AnalyzerEngine":
    """Return an engine of pattern recognisers over a tokenizer without a model."""
    try:
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry

        from chatkit.moderation.personal_words import Words
    except ImportError as error:
        raise MissingExtra(error.name or "presidio_analyzer", "presidio") from error
    _stay_at_home()
    words = Words()
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=words)
    registry.recognizers = [one for one in registry.recognizers if set(one.supported_entities) & set(ENTITIES)]
    return AnalyzerEngine(registry=registry, nlp_engine=words, supported_languages=["en"])


def _stay_at_home() -> None:
    """Let addresses be judged by the list of domains that is installed; fetching a newer one is the library's habit."""
    import tldextract
    import tldextract.tldextract as library

    library.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    tldextract.extract = library.TLD_EXTRACTOR.__call__


def _version() -> str:
    from importlib.metadata import version

    return version("presidio-analyzer")
