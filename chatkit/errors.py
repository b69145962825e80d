"""Every error chatkit raises on purpose.

    ChatkitError
    ├── InvalidRequest            a field is missing, unknown, of the wrong type or out of range
    │   ├── TooLarge              the body, the message or the turn is over its cap
    │   └── TooSlow               the body did not arrive in time
    ├── Unauthorized              no key, or not a valid one
    ├── Forbidden                 the caller is known and may not do this
    ├── NotFound                  no such session or index for this caller
    │   └── UnknownModel          no model of that name answers here
    ├── Conflict                  the request id is in use, or was used for another message
    ├── Unavailable               try again later; `retry_after` says when
    │   ├── Overloaded            the queue is full
    │   ├── EngineFailed          the language model stopped, or does not answer
    │   ├── StoreFailed           the session store did not acknowledge a read or write
    │   └── NotSaved              the answer was made but could not be stored
    ├── ConfigError               a setting is wrong or two settings contradict each other
    │   └── MissingExtra          an optional dependency is not installed
    ├── ModelError                a model could not be named, fetched or read
    │   ├── Offline               the network that holds it cannot be reached
    │   └── BrokenModel           the files are there but damaged
    └── BadIndex                  an index directory is missing or cannot be used
        ├── IndexMismatch         built with another encoder
        └── BrokenIndex           a file is missing or was changed

HTTP status and exit codes are mapped from these classes in one place each: `server/app.py` and `cli/__init__.py`.

    try:
        reply = await service.reply(request)
    except chatkit.ChatkitError as error:
        print(error.code, error)
"""

from typing import ClassVar


class ChatkitError(Exception):
    """Base of the tree; its message is one line that may be shown to the caller."""

    code: ClassVar[str] = "error"


class InvalidRequest(ChatkitError):
    """The request cannot be understood; nothing was stored."""

    code = "invalid_request"


class TooLarge(InvalidRequest):
    """The body, message or turn is over its cap; refused before inference."""

    code = "too_large"


class TooSlow(InvalidRequest):
    """The body did not arrive in time; nothing was stored."""

    code = "too_slow"


class Unauthorized(ChatkitError):
    """No API key was sent, or it is not a valid one."""

    code = "unauthorized"


class Forbidden(ChatkitError):
    """The caller is known, and may not do this."""

    code = "forbidden"


class NotFound(ChatkitError):
    """Nothing by that id belongs to this caller."""

    code = "not_found"


class UnknownModel(NotFound):
    """The model that a request names does not answer here."""

    code = "model_not_found"


class Conflict(ChatkitError):
    """The request id is being answered elsewhere, or was used for a different message."""

    code = "conflict"


class Unavailable(ChatkitError):
    """Something this turn needs is not ready; the same request may be sent again."""

    code = "unavailable"
    retry_after: ClassVar[int] = 1


class Overloaded(Unavailable):
    """The queue is full."""

    code = "overloaded"


class EngineFailed(Unavailable):
    """The language model stopped, or does not answer.

    Final for an engine on this machine: `transformers` ends the service, `local` leaves it up and not ready. Another
    server may be back at the next try.
    """

    code = "engine_failed"
    retry_after = 30


class StoreFailed(Unavailable):
    """The session store did not acknowledge a read or write."""

    code = "store_failed"
    retry_after = 5


class NotSaved(Unavailable):
    """The answer was made, but the store did not acknowledge it, so it is not given out as one."""

    code = "not_saved"
    retry_after = 16  # the turn's lease of 15 s has to run out before the same request can run again


class ConfigError(ChatkitError):
    """A setting is wrong, or two settings contradict each other."""

    code = "config_error"


class MissingExtra(ConfigError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, module: str, extra: str) -> None:
        """Name the module that is missing and the extra that brings it."""
        super().__init__(f"{module!r} is not installed; run: pip install 'chatkit[{extra}]'")
        self.module = module
        self.extra = extra


class ModelError(ChatkitError):
    """A model could not be named, fetched or read."""

    code = "model_error"


class Offline(ModelError):
    """The place that holds the model cannot be reached from here."""

    code = "offline"


class BrokenModel(ModelError):
    """The model's files are there but damaged or of an unknown kind."""

    code = "broken_model"


class BadIndex(ChatkitError):
    """An index directory is missing or cannot be used."""

    code = "bad_index"


class IndexMismatch(BadIndex):
    """The index was built with another encoder than the one that would query it."""

    code = "index_mismatch"


class BrokenIndex(BadIndex):
    """A file of the index is missing, truncated or was changed."""

    code = "broken_index"
