"""What is said to the user in the place of a refused text, or after a softened one, in the user's language. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from chatkit.types import REFUSALS, Action

# Text of a category where the policy has none for it.
DEFAULT = "default"
# Replaced by the help lines of the policy's country.
HELP_LINES = "{help_lines}"
# Letters of these ranges tell the language, or one that is written so; kana before Han.
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
)
# Small words that are frequent in one of these languages and in few others.
_SMALL = {
    "en": "the and you is are my me how what do to of it not can this that want i'm i",
    "de": "der die das und ich du ist nicht wie was mir mein ein eine zu mit kann will bin wer",
    "fr": "le les et je tu est pas que une des du mon ma pour avec comment suis veux qui dans",
    "es": "el los y yo es no que una del mi para con cómo como qué quiero por estoy en",
    "it": "il gli e io è non che una del mio per con come sono voglio cosa di",
    "pt": "o os e eu é não que uma do meu para com como quero por estou em",
    "nl": "de het en ik je is niet een hoe wat mijn van met kan wil ben wie",
}
_SETS = {language: frozenset(words.split()) for language, words in _SMALL.items()}
# Words of a text that are looked at.
_LOOKED_AT = 200


def language_of(text: str) -> str:
    """Return a guess at the language of `text`, ISO 639-1, by script and small words; "" for no guess."""
    start = text[: 8 * _LOOKED_AT]
    letters = sum(map(str.isalpha, start))
    for language, script in _SCRIPTS:
        if 3 * len(script.findall(start)) > letters:
            return language
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", start.lower())[:_LOOKED_AT]
    counts = {language: sum(word in small for word in words) for language, small in _SETS.items()}
    best = max(counts, key=lambda language: counts[language])
    clear = counts[best] > 0 and sum(count == counts[best] for count in counts.values()) == 1
    return best if clear else ""


@dataclass(frozen=True, slots=True)
class Texts:
    """Canned texts.

    Attributes:
        table: language → "refuse", "soften" or "escalate" → category or "default" → text.
        language: the language of every text, or "auto" for that of the user's message.
        fallback: the language where there is no text in that one.
        country: whose help lines are named, ISO 3166-1; "" names all.
        help_lines: country → line.
    """

    table: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    language: str = "auto"
    fallback: str = "en"
    country: str = ""
    help_lines: Mapping[str, str] = field(default_factory=dict)

    def notice(self, action: Action, category: str | None, text: str) -> str:
        """Return what to say after `action`; "" where nothing is to be said, or the policy has no text.

        Args:
            text: what the user wrote, for its language.
        """
        if action not in (*REFUSALS, "soften"):
            return ""
        wanted = language_of(text) if self.language == "auto" else self.language
        steps = ("escalate", "refuse") if action == "escalate" else (action,)
        for language in (wanted, self.fallback):
            for step in steps:
                texts = self.table.get(language, {}).get(step, {})
                if found := texts.get(category or DEFAULT) or texts.get(DEFAULT):
                    return found.replace(HELP_LINES, self._help_lines())
        return ""

    def saying(self, refusal: str) -> "Texts":
        """Return the same texts with one refusal in every language, but those of single categories."""
        table = {language: dict(steps) for language, steps in {self.fallback: {}, **self.table}.items()}
        for steps in table.values():
            for step in ("refuse", "escalate"):
                steps[step] = {**steps.get(step, {}), DEFAULT: refusal}
        return replace(self, table=table)

    def _help_lines(self) -> str:
        if self.country in self.help_lines:
            return self.help_lines[self.country]
        return "; ".join(self.help_lines.values())
