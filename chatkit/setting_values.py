"""Raw values of settings, from flags, variables and files, to the types of their fields."""

from dataclasses import Field, field
from typing import Any, Literal, get_args, get_origin

from chatkit.errors import ConfigError


def setting(default: Any, text: str, *, secret: bool = False, empty: bool = False) -> Any:
    """Return a field; `empty` where an empty variable is a value and not the same as none."""
    return field(default=default, metadata={"help": text, "secret": secret, "empty": empty})


def parse(spec: Field[Any], raw: Any, where: str) -> Any:
    """Convert one raw value to the field's type.

    Raises:
        ConfigError: it does not fit, naming `where` it stands, and the value unless it is a secret.
    """
    kind, literals = kind_of(spec)
    try:
        if literals and raw not in literals:
            raise ValueError
        if kind is bool:
            return _boolean(raw)
        if kind in (int, float) and isinstance(raw, bool):
            raise ValueError
        if issubclass(kind, str) and not isinstance(raw, str):
            raise ValueError
        if kind is int and isinstance(raw, float) and not raw.is_integer():
            raise ValueError
        return kind(raw)
    except (ValueError, TypeError):
        expected = "one of " + ", ".join(map(repr, literals)) if literals else f"a value of type {_type_name(kind)}"
        shown = "the value given" if spec.metadata["secret"] else repr(raw)
        raise ConfigError(f"{where} is {shown}, expected {expected}") from None


def kind_of(spec: Field[Any]) -> tuple[type, tuple[str, ...]]:
    """Return the plain type of a field and, for a Literal, its values."""
    hint: Any = spec.type
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    options = [o for o in get_args(hint) if o is not type(None)]
    return (options[0] if options else hint), ()


def _type_name(kind: type) -> str:
    return "str" if issubclass(kind, str) else kind.__name__


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError
