"""The key file: TOML with one `[[key]]` a key, which says whose it is and what may be done with it."""

import hashlib
import logging
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from chatkit.errors import ConfigError
from chatkit.server.callers import DEFAULT_SCOPES, SCOPES, Caller, nameless, problem_of
from chatkit.types import Owner

log = logging.getLogger(__name__)
_FIELDS = ("key", "sha256", "user", "tenant", "scopes")
# A key is guessed over the network, and from its hash where that leaks; 16 characters at random hold 64 bits or more.
_SHORTEST = 16
_EXAMPLE = 'expected [[key]] entries such as: [[key]] key = "…" user = "alice"'


def digest_of(key: str) -> bytes:
    """Return what is compared in the place of a key."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(file: Path) -> tuple[tuple[bytes, Caller], ...]:
    """Return the digest of each key in a file, and who calls with it; warns where others may read or change the file.

    Raises:
        ConfigError: naming the file and the entry that is wrong, and never what may be a key.
    """
    entries = _entries(file, _table(file))
    known: dict[bytes, int] = {}
    found: list[tuple[bytes, Caller]] = []
    for at, entry in enumerate(entries, start=1):
        where = f"key {at} of {str(file)!r}"
        digest, caller = _caller(entry, where)
        if digest in known:
            raise ConfigError(f"{where} is the same key as key {known[digest]}; leave one of them out")
        known[digest] = at
        found.append((digest, caller))
    return tuple(found)


def _table(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            table = tomllib.load(opened)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or type(error).__name__})"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place = re.search(r"\((at [a-z0-9, ]+)\)$", str(error))  # the rest of the message may show a piece of a key
        problem = f"is not valid TOML{' ' + place[1] if place else ''}"
    else:
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("keys_file %s has mode %04o, so others may use it; run: chmod 600 %s", file, mode, file)
        return table
    raise ConfigError(f"keys_file is {str(file)!r}, which {problem}; {_EXAMPLE}")


def _entries(file: Path, table: dict[str, Any]) -> list[dict[str, Any]]:
    entries = table.pop("key", [])
    if table:
        raise ConfigError(f"keys_file {str(file)!r} has {_named(min(table))}; {_EXAMPLE}")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"keys_file {str(file)!r} has a 'key' that is no [[key]]; {_EXAMPLE}")
    if not entries:
        raise ConfigError(f"keys_file {str(file)!r} holds no key; {_EXAMPLE}")
    return entries


def _caller(entry: dict[str, Any], where: str) -> tuple[bytes, Caller]:
    for name, value in entry.items():
        if name not in _FIELDS:
            raise ConfigError(f"{where} has {_named(name)}, expected fields of {', '.join(_FIELDS)}")
        if name != "scopes" and not isinstance(value, str):
            raise ConfigError(f"{where} has a {name!r} that is no text, expected text in quotes")
    digest = _digest(entry, where)
    tenant = _name(entry, "tenant", where, reserved=False) or Owner().tenant
    user = _name(entry, "user", where)
    owner = nameless(tenant, digest) if user is None else Owner(tenant, user)
    return digest, Caller(owner, _scopes(entry, where), named=user is not None)


def _digest(entry: dict[str, Any], where: str) -> bytes:
    if ("key" in entry) == ("sha256" in entry):
        raise ConfigError(f"{where} has {'both' if 'key' in entry else 'none'} of 'key' and 'sha256', expected one")
    if "sha256" in entry:
        if not re.fullmatch(r"[0-9A-Fa-f]{64}", entry["sha256"]):
            raise ConfigError(f"{where} has a 'sha256' that is none, expected 64 hexadecimal digits")
        return bytes.fromhex(entry["sha256"])
    key = entry["key"]
    if len(key) < _SHORTEST:
        raise ConfigError(f"{where} is too short, expected at least {_SHORTEST} characters, made at random")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{where} has a character that no header takes, expected ASCII letters, digits and signs")
    return digest_of(key)


def _name(entry: dict[str, Any], field: str, where: str, *, reserved: bool = True) -> str | None:
    name: str | None = entry.get(field)
    wrong = "" if name is None else problem_of(name, reserved=reserved)
    if wrong:
        raise ConfigError(f"{where} has the {field} {name!r:.80}, {wrong}")
    return name


def _scopes(entry: dict[str, Any], where: str) -> frozenset[str]:
    if "scopes" not in entry:
        return DEFAULT_SCOPES
    scopes = entry["scopes"]
    if not isinstance(scopes, list) or not scopes:
        _wrong_scopes(where, "scopes that are no list, or an empty one")
    for scope in scopes:
        if scope not in SCOPES:
            _wrong_scopes(where, f"the scope {scope!r:.40}")
    return frozenset(scopes)


def _wrong_scopes(where: str, what: str) -> NoReturn:
    raise ConfigError(f"{where} has {what}, expected a list of some of {', '.join(SCOPES)}")


def _named(field: str) -> str:
    """Return a field's name for an error, unless it could be a key that stands in the wrong place."""
    return f"the unknown field {field!r}" if re.fullmatch(r"[a-z_]{1,15}", field) else "a field of an unknown name"
