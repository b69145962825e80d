"""What `/hyperparameters` shows and sets: how the next answers are sampled and what is looked up for them."""

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chatkit.errors import InvalidRequest
from chatkit.types import RetrievalOptions, SamplingParams


def _on_off(word: str) -> bool:
    if word.lower() not in ("on", "off"):
        raise ValueError
    return word.lower() == "on"


# name → what reads its value, and what it expects
_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "max_new_tokens": (int, "a whole number"),
    "temperature": (float, "a number"),
    "top_p": (float, "a number"),
    "top_k": (int, "a whole number"),
    "repetition_penalty": (float, "a number"),
    "seed": (int, "a whole number"),
    "stop": (str, "a stop word"),
    "retrieval": (_on_off, "on or off"),
    "k": (int, "a whole number"),
    "index": (str, "the name of an index"),
}
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
# What another answer is sampled with where no temperature is chosen: the likeliest tokens alone are the same once more.
_OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The values of the next turns.

    Attributes:
        defaults: what counts where nothing is chosen, as far as it is known; a running service keeps its own.
        chosen: what was set here, by name.
        searches: whether there is anything to look up.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    searches: bool = True

    def changed(self, words: str) -> "Hyperparameters":
        """Return these values with those of `name=value name=value …`; an empty value gives a name its default back.

        Raises:
            InvalidRequest: naming the first that is wrong; then none of them counts.
        """
        try:
            pairs = shlex.split(words)
        except ValueError as error:
            raise InvalidRequest(f"{words!r:.80} cannot be read ({error}), expected name=value") from None
        chosen = dict(self.chosen)
        for pair in pairs:
            name, sign, value = pair.partition("=")
            if not sign or name not in _KINDS:
                raise InvalidRequest(_unknown(name, sign))
            chosen.pop(name, None)
            if value:
                chosen[name] = _read(name, value)
        new = replace(self, chosen=chosen)
        new.sampling()
        new.retrieval()
        if not self.searches and (chosen.get("retrieval") or chosen.get("index")):
            raise InvalidRequest("there is no index open here; start again with --index and without --no-retrieval")
        return new

    def varied(self) -> tuple["Hyperparameters", str]:
        """Return these values, sampling where nothing was chosen against it, and in words what is to be expected.

        A service samples only where it is asked to, so one whose values are not known is taken to have temperature 0.
        """
        values = {**self.defaults, **self.chosen}
        if "temperature" not in self.chosen and not values.get("temperature"):
            sampling = replace(self, chosen={**self.chosen, "temperature": _OTHER_TEMPERATURE})
            return sampling, (
                f"asking with temperature {_OTHER_TEMPERATURE}, since at 0 the same answer would come; "
                "/hyperparameters temperature=… sets another"
            )
        for name, fixed in (("temperature", values["temperature"] == 0), ("seed", values.get("seed") is not None)):
            if fixed:
                step = f"/hyperparameters {name}= takes it back"
                return self, f"{name} is set to {values[name]}, so the same answer may come; {step}"
        return self, f"asking with temperature {values['temperature']}"

    def sampling(self) -> SamplingParams:
        """Return how the next answer is sampled."""
        values = {**self.defaults, **self.chosen}
        given = {name: values[name] for name in _SAMPLING if values.get(name) is not None}
        return SamplingParams(stop_words=(values["stop"],) if values.get("stop") else (), **given)

    def retrieval(self) -> RetrievalOptions:
        """Return what is looked up for the next message."""
        values = {**self.defaults, **self.chosen}
        given = {"k": values["k"]} if "k" in values else {}
        enabled = self.searches and values.get("retrieval", True)
        return RetrievalOptions(enabled=enabled, index=self.chosen.get("index") if enabled else None, **given)

    def parameters(self) -> dict[str, Any]:
        """Return what was chosen, as the native door names it."""
        named = {name: value for name, value in self.chosen.items() if name not in ("retrieval", "stop")}
        if "stop" in self.chosen:
            named["stop"] = [self.chosen["stop"]]
        if self.chosen.get("retrieval") is False:
            named["no_retrieval"] = True
        return named

    def rows(self) -> list[str]:
        """Return a line for each value, and whose it is where it was not chosen here."""
        return [f"{name:<20}{self._shown(name)}" for name in _KINDS]

    def _shown(self, name: str) -> str:
        if name == "retrieval" and not self.searches:
            return "off (no index is open)"
        known = {**self.defaults, **self.chosen}
        if name not in known:
            return "the service's own"
        value = known[name]
        if isinstance(value, bool):
            return "on" if value else "off"
        return "none" if value is None or value == "" else str(value)


def _read(name: str, value: str) -> Any:
    kind, expected = _KINDS[name]
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequest(f"{name} is {value!r:.40}, expected {expected}") from None


def _unknown(name: str, sign: str) -> str:
    if not sign:
        return f"{name!r:.40} is no setting, expected name=value, for instance temperature=0.7"
    near = difflib.get_close_matches(name, _KINDS, n=1)
    hint = f"did you mean {near[0]!r}" if near else f"known here: {', '.join(_KINDS)}"
    return f"{name!r:.40} is no hyperparameter; {hint}"
