"""The manifest of defaults: the models that `default` stands for, by profile and role."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any, Literal

from chatkit.errors import ModelError
from chatkit.models import huggingface
from chatkit.models.wheels import Expected

Role = Literal["chat", "encoder"]
ROLES: tuple[Role, ...] = ("chat", "encoder")
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Default:
    """One model of the manifest.

    Attributes:
        expected: None where the manifest has no hashes: what is pulled is compared with what its hub publishes.
        source_prompt: what this chat model is told to do with passages; "" is what any model is told.
        source_sentences: of a passage in a prompt for this chat model; 0 is all of them.
    """

    source: str
    role: Role
    name: str
    licence: str
    page: str
    expected: Expected | None
    source_prompt: str = ""
    source_sentences: int = 0


@once
def profiles() -> Mapping[str, Mapping[Role, Default]]:
    """Return every profile's models, by role."""
    table = tomllib.loads(Path(__file__).with_name("defaults.toml").read_text(encoding="utf-8"))
    return {profile: {role: _default(table, profile, role) for role in ROLES} for profile in table}


def _default(table: Mapping[str, Any], profile: str, role: Role) -> Default:
    row = table[profile][role]
    if isinstance(row, str):
        return _default(table, row, role)
    expected = None
    if files := row.get("files"):
        expected = Expected(
            download_bytes=row["download_bytes"],
            unpacked_bytes=sum(file["bytes"] for file in files.values()),
            hashes={path: file["sha256"] for path, file in files.items()},
        )
    page = f"{huggingface.ADDRESS}/{row['model']}"
    told = {name: row[name] for name in ("source_prompt", "source_sentences") if name in row}
    return Default(row["source"], role, row["name"], row["licence"], page, expected, **told)


def default(profile: str, role: Role) -> Default:
    """Return the model that `default` stands for.

    Raises:
        ModelError: there is no such profile.
    """
    if profile not in profiles():
        raise ModelError(f"there is no profile {profile!r}; expected one of {', '.join(map(repr, profiles()))}")
    return profiles()[profile][role]


def named_in(source: str) -> dict[str, Default]:
    """Return the profiles that name a source, and the row of each."""
    found = {}
    for profile, rows in profiles().items():
        for row in rows.values():
            if row.source == source:
                found[profile] = row
    return found


def known(source: str) -> Default | None:
    """Return the manifest's row for a source, None where no profile names it."""
    return next(iter(named_in(source).values()), None)
