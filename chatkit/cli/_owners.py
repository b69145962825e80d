"""Whose sessions a command means: those of the callers that a service with its settings has, or of somebody named."""

from collections.abc import Callable
from typing import Any

import click

from chatkit.errors import ConfigError, InvalidRequest
from chatkit.settings import Settings
from chatkit.types import Owner

# Characters of an owner's name: with a session's id, percent-encoded, they fit a key of DynamoDB.
_LONGEST_NAME = 64


def owner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--tenant` and `--user`."""
    command = click.option("--user", metavar="NAME", help="Whose sessions; without it the service's own callers.")(
        command
    )
    return click.option("--tenant", metavar="NAME", help="Of which tenant; without it the service's own.")(command)


def owner_of(settings: Settings, *, tenant: str | None, user: str | None) -> Owner:
    """Return whose sessions are meant: those of the callers that a service with these settings has, unless named.

    Raises:
        ConfigError: the settings have several owners, and nobody is named.
        InvalidRequest: a name can be nobody's.
    """
    own = Owner.behind(settings.api_key)
    if user is None and settings.keys_file is not None:
        raise ConfigError(
            f"keys_file {str(settings.keys_file)!r} has several owners; say whose with --user, and --tenant"
        )
    for name, value in (("--tenant", tenant), ("--user", user)):
        if value is not None and not (1 <= len(value) <= _LONGEST_NAME and value.isprintable()):
            raise InvalidRequest(
                f"{name} is {value[:80]!r}, expected 1 to {_LONGEST_NAME} characters that print; without it, "
                "chatkit sessions list shows the sessions of the service's own callers"
            )
    return Owner(own.tenant if tenant is None else tenant, own.user if user is None else user)
