"""Policy files: TOML in, a `Policy` out, and for whatever is wrong the file, the line, the key and the next step."""

import difflib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

from chatkit.errors import ConfigError
from chatkit.moderation.domain import DomainRule
from chatkit.moderation.phrases import Phrases, words_of
from chatkit.moderation.policy import BLOCK_LIST, DIRECTIONS, DOMAIN, STEPS, PhraseRule, Policy, Thresholds
from chatkit.moderation.texts import DEFAULT, Texts
from chatkit.types import ACTIONS, CATEGORIES, HARM, LABELS, Action, Direction

FOLDER = Path(__file__).parent / "policies"
# Most words of a phrase and phrases of a policy: a list is held in memory, and each phrase once a word.
_MOST_WORDS = 32
_MOST_PHRASES = 200_000
_SCORED = (HARM, *CATEGORIES)
_MODEL_KEYS = ("doubt", "thresholds", "labels", *DIRECTIONS)
_KEYS = ("base", "language", "country", "models", "block", "allow", "domain", "texts", "help_lines", *_MODEL_KEYS)
_RULE_KEYS = ("phrases", "file", "directions", "action")
_DOMAIN_KEYS = ("about", "threshold", "directions", "action", "short")

Row = tuple[str, ...]  # a key with the tables around it


def built_in() -> tuple[str, ...]:
    """Return the names of the policies that are shipped."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def named(name: str) -> Policy:
    """Return the policy called `name`, or that of the file where it ends in .toml.

    Raises:
        ConfigError: there is none, or the file has a fault; the message says which and where.
    """
    if name.endswith(".toml"):
        return read_policy(Path(name).expanduser())
    if name not in built_in():
        known = ", ".join(built_in())
        raise ConfigError(
            f"policy is {name!r}, expected one of {known}, or a file that ends in .toml; "
            "set --policy or CHATKIT_POLICY, docs/moderation.md describes the file"
        )
    return _shipped(name)


@cache
def _shipped(name: str) -> Policy:
    return read_policy(FOLDER / f"{name}.toml")


@cache
def _model_tables(name: str | None) -> tuple[dict[str, dict[str, Any]], ...]:
    """Return the tables of models in a shipped policy, those of its base before them."""
    if name is None:
        return ()
    table = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return *_model_tables(table.get("base")), table.get("models", {})


def read_policy(file: Path) -> Policy:
    """Return the policy that a file describes, on top of its base.

    Raises:
        ConfigError: the file cannot be read or has a fault.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"the policy {str(file)!r} cannot be read ({reason}); name another with --policy") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the policy {str(file)!r} is not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"the policy {str(file)!r} nests lists or tables too deep; write them flat") from None
    return _Reader(file, text).policy(table)


class _Reader:
    """Reads one file; every fault it finds is a ConfigError that says where."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._text = text
        self._phrases = 0  # read so far

    def policy(self, table: dict[str, Any]) -> Policy:
        self._known(table, _KEYS, ())
        base = Policy("", {direction: {} for direction in DIRECTIONS})
        if "base" in table:
            if table["base"] not in built_in() or (self._file.parent == FOLDER and table["base"] == self._file.stem):
                self._fault(("base",), table["base"], f"one of {', '.join(built_in())}")
            base = _shipped(table["base"])
        found = self._judging(table, base, ())
        return replace(
            found,
            name=self._file.stem,
            block=(*base.block, *self._rules(table, "block", "action")),
            allow=(*base.allow, *self._rules(table, "allow")),
            domain=self._domain(table["domain"]) if "domain" in table else base.domain,
            texts=self._texts(table, base.texts),
            models=self._of_models(table, found),
        )

    def _of_models(self, table: dict[str, Any], found: Policy) -> dict[str, Policy]:
        """Return the policy of each model that has a table here or in a base: `found`, with its rows in their place.

        A table counts for names that begin longer as well, which have a table of their own on top.
        """
        for name, rows in self._tables(table, "models").items():
            if not name:
                self._fault(("models", name), name, "the beginning of a model's name")
            self._known(rows, _MODEL_KEYS, ("models", name))
        tables = [*_model_tables(table.get("base")), self._tables(table, "models")]
        models: dict[str, Policy] = {}
        names = sorted({name for of_file in tables for name in of_file}, key=len)
        for name in names:
            judging = Policy(name, found.table, found.doubt, found.labels)
            for start in (each for each in names if name.startswith(each)):
                for of_file in tables:
                    judging = self._judging(of_file.get(start, {}), judging, ("models", start))
            models[name] = judging
        return models

    def _judging(self, table: dict[str, Any], base: Policy, at: Row) -> Policy:
        """Return `base` with the thresholds, labels and doubt of `table`."""
        found = {direction: dict(rows) for direction, rows in base.table.items()}
        for name, row in self._tables(table, "thresholds", at).items():
            for direction in DIRECTIONS:
                found[direction][self._one_of(name, _SCORED, (*at, "thresholds", name))] = self._thresholds(
                    row, (*at, "thresholds", name)
                )
        for direction in DIRECTIONS:
            own = self._table(table.get(direction, {}), (*at, direction))
            self._known(own, ("thresholds",), (*at, direction))
            for name, row in self._tables(own, "thresholds", (*at, direction)).items():
                key = (*at, direction, "thresholds", name)
                found[direction][self._one_of(name, _SCORED, key)] = self._thresholds(row, key)
        labels = dict(base.labels)
        for label, row in self._tables(table, "labels", at).items():
            key = (*at, "labels", label)
            labels[self._one_of(label, LABELS, key)] = self._thresholds(row, key)
        doubt = self._share(table["doubt"], (*at, "doubt")) if "doubt" in table else base.doubt
        return replace(base, table=found, labels=labels, doubt=doubt)

    def _thresholds(self, row: dict[str, Any], at: Row) -> Thresholds:
        self._known(row, (*STEPS, "doubt"), at)
        values = {name: self._share(value, (*at, name)) for name, value in row.items()}
        steps = [(name, values[name]) for name in STEPS if name in values]
        for (milder, low), (graver, high) in itertools.pairwise(steps):
            if low > high:
                self._fault((*at, milder), low, f"at most {graver}, which is {high}")
        return Thresholds(**values)

    def _rules(self, table: dict[str, Any], name: str, *more: str) -> tuple[PhraseRule, ...]:
        rules = table.get(name, [])
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            self._fault((name,), rules, f"tables that each begin with [[{name}]]")
        return tuple(self._rule(rule, (name,), more) for rule in rules)

    def _rule(self, rule: dict[str, Any], at: Row, more: Sequence[str]) -> PhraseRule:
        self._known(rule, [key for key in _RULE_KEYS if key != "action" or more], at)
        phrases = list(self._strings(rule.get("phrases", []), (*at, "phrases")))
        if "file" in rule:
            phrases += self._lines(rule["file"], (*at, "file"))
        if not phrases:
            self._fault(at, rule, "phrases, or a file of them")
        self._phrases += len(phrases)
        if self._phrases > _MOST_PHRASES:
            self._fault((*at, "phrases"), self._phrases, f"at most {_MOST_PHRASES} phrases in all lists together")
        for phrase in phrases:
            if not 0 < len(words_of(phrase)) <= _MOST_WORDS:
                self._fault((*at, "phrases"), phrase, f"1 to {_MOST_WORDS} words, each of letters or digits")
        return PhraseRule(
            Phrases(phrases),
            self._directions(rule, at, DIRECTIONS),
            cast(Action, self._one_of(rule.get("action", "refuse"), ACTIONS[1:], (*at, "action"))),
        )

    def _lines(self, name: Any, at: Row) -> list[str]:
        if not isinstance(name, str):
            self._fault(at, name, "the name of a text file")
        try:
            text = (self._file.parent / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # of a name with a zero byte, or what is not UTF-8
            reason = getattr(error, "strerror", None) or ("it is not UTF-8" if "\0" not in name else "no such name")
            self._fault(at, name, f"a text file beside the policy, one phrase a line; it cannot be read ({reason})")
        lines = (line.strip() for line in text.split("\n"))
        return [line for line in lines if line and not line.startswith("#")]

    def _domain(self, table: Any) -> DomainRule:
        at = (DOMAIN,)
        self._known(self._table(table, at), _DOMAIN_KEYS, at)
        about = self._strings(table.get("about", []), (*at, "about"))
        if not about:
            self._fault((*at, "about"), about, "at least one text that says what this bot talks about")
        if "threshold" not in table:
            self._fault((*at, "threshold"), None, "a number from 0 to 1; 0.3 is a start")
        short = table.get("short", 4)
        if not isinstance(short, int) or isinstance(short, bool) or not 0 <= short <= 100:
            self._fault((*at, "short"), short, "a whole number of words from 0 to 100")
        return DomainRule(
            tuple(about),
            self._share(table["threshold"], (*at, "threshold")),
            self._directions(table, at, ("input",)),
            cast(Action, self._one_of(table.get("action", "refuse"), ACTIONS[1:], (*at, "action"))),
            short,
        )

    def _texts(self, table: dict[str, Any], base: Texts) -> Texts:
        kinds = (DEFAULT, BLOCK_LIST, DOMAIN, *_SCORED)
        found = {language: {step: dict(texts) for step, texts in of.items()} for language, of in base.table.items()}
        for language, steps in self._tables(table, "texts").items():
            self._language(language, ("texts", language))
            self._known(steps, STEPS[1:], ("texts", language))
            for step, texts in steps.items():
                at = ("texts", language, step)
                for kind, text in self._table(texts, at).items():
                    self._one_of(kind, kinds, (*at, kind))
                    found.setdefault(language, {}).setdefault(step, {})[kind] = self._words(text, (*at, kind))
        lines = dict(base.help_lines)
        for country, line in self._table(table.get("help_lines", {}), ("help_lines",)).items():
            self._country(country, ("help_lines", country))
            lines[country] = self._words(line, ("help_lines", country))
        language = table.get("language", base.language)
        if language != "auto":
            self._language(language, ("language",))
        country = table.get("country", base.country)
        if country not in ("", *lines):
            self._fault(("country",), country, f"one of help_lines ({', '.join(lines) or 'there are none'})")
        return Texts(found, language, base.fallback, country, lines)

    def _language(self, value: Any, at: Row) -> None:
        if not isinstance(value, str) or not re.fullmatch("[a-z]{2,3}", value):
            self._fault(at, value, "a language such as en, in two or three small letters")

    def _country(self, value: str, at: Row) -> None:
        if not re.fullmatch("[A-Z]{2}", value):
            self._fault(at, value, "a country such as US, in two capital letters")

    def _words(self, value: Any, at: Row) -> str:
        if not isinstance(value, str) or not value.strip():
            self._fault(at, value, "a text")
        return str(value).strip()

    def _strings(self, value: Any, at: Row) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            self._fault(at, value, "a list of texts")
        return cast(list[str], value)

    def _directions(self, table: dict[str, Any], at: Row, usual: tuple[Direction, ...]) -> tuple[Direction, ...]:
        given = table.get("directions", list(usual))
        if not isinstance(given, list) or not given:
            self._fault((*at, "directions"), given, f"a list of {', '.join(DIRECTIONS)}")
        return tuple(cast(Direction, self._one_of(one, DIRECTIONS, (*at, "directions"))) for one in given)

    def _share(self, value: Any, at: Row) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if not good:
            self._fault(at, value, "a number from 0 to 1")
        return float(value)

    def _table(self, value: Any, at: Row) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fault(at, value, "a table")
        return cast(dict[str, Any], value)

    def _tables(self, table: dict[str, Any], name: str, at: Row = ()) -> dict[str, dict[str, Any]]:
        """Return the tables in the table `name`, which may be absent."""
        found = self._table(table.get(name, {}), (*at, name))
        return {key: self._table(value, (*at, name, key)) for key, value in found.items()}

    def _known(self, table: Mapping[str, Any], names: Sequence[str], at: Row) -> None:
        for name in table:
            self._one_of(name, names, (*at, name))

    def _one_of(self, value: Any, names: Sequence[str], at: Row) -> str:
        if value not in names:
            near = difflib.get_close_matches(str(value), names, n=1)
            self._fault(at, value, f"one of {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return str(value)

    def _fault(self, at: Row, value: Any, expected: str) -> NoReturn:
        line = _line_of(self._text, at)
        where = f"{str(self._file)!r}, line {line}" if line else repr(str(self._file))
        raise ConfigError(
            f"the policy {where}: {'.'.join(at)} is {value!r:.60}, expected {expected}; "
            "check it with: chatkit moderation policy check FILE"
        )


def _line_of(text: str, at: Row) -> int:
    """Return the line on which a key is set, or the last table around it; 0 where neither is found.

    The parser keeps no positions; a key is looked for by its name below the header of its table.
    """
    header: Row = ()
    best, depth = 0, 0
    for number, line in enumerate(text.split("\n"), start=1):
        if match := re.match(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#|$)", line):
            header = _keys_of(match[1])
            here = header
        elif match := re.match(r"\s*((?:[\w-]+|\"[^\"]*\")(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"))*)\s*=", line):
            here = (*header, *_keys_of(match[1]))
        else:
            continue
        if at[: len(here)] == here and len(here) > depth:
            best, depth = number, len(here)
    return best


def _keys_of(dotted: str) -> Row:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", dotted))
