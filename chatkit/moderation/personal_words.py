"""What stands in for a language model under Presidio: tokens by rule, so that nothing has to be downloaded."""

from collections.abc import Iterable, Iterator
from typing import Any

import spacy
from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine


class Words(NlpEngine):
    """Tokens by rule; no entities, and a word's own form for its lemma."""

    def __init__(self) -> None:
        self._read = spacy.blank("en")

    def load(self) -> None:
        """Nothing is to be loaded."""

    def is_loaded(self) -> bool:
        """It always is."""
        return True

    def process_text(self, text: str, language: str) -> NlpArtifacts:
        """Return a text's tokens."""
        tokens = self._read(text)
        return NlpArtifacts(
            entities=[],
            tokens=tokens,
            tokens_indices=[token.idx for token in tokens],
            lemmas=[token.lower_ for token in tokens],
            nlp_engine=self,
            language=language,
        )

    def process_batch(self, texts: Iterable[str], language: str, **_: Any) -> Iterator[Any]:
        """Yield every text with its tokens."""
        for text in texts:
            yield text, self.process_text(text, language)

    def is_stopword(self, word: str, language: str) -> bool:
        """Whether a word says nothing by itself."""
        return bool(self._read.vocab[word].is_stop)

    def is_punct(self, word: str, language: str) -> bool:
        """Whether a word is none."""
        return bool(self._read.vocab[word].is_punct)

    def get_supported_entities(self) -> list[str]:
        """It finds none itself."""
        return []

    def get_supported_languages(self) -> list[str]:
        """English alone."""
        return ["en"]
