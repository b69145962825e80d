"""What a setting must look like, each check naming the setting, its value and where to set it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from chatkit.errors import ConfigError

if TYPE_CHECKING:
    from chatkit.settings import Settings


ENV_PREFIX = "CHATKIT_"
FILE_NAME = "chatkit.toml"
# What DynamoDB takes as a table's name: CreateTable, "TableName", in its API reference.
TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")

# What may go to an upstream beside the common fields; the third is llama.cpp's name for the second.
UPSTREAM_FIELDS = ("top_k", "repetition_penalty", "repeat_penalty", "max_completion_tokens")
_ADDRESS = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
# What KMS takes as a key: Decrypt, "KeyId", in its API reference.
_SESSION_KEYS = re.compile(r"file:[^\0]+|kms:[A-Za-z0-9:/_-]{1,2048}")
_RETRIEVER = re.compile(r"http:[^\0]+|python:[^\W\d][\w.]*:[^\W\d]\w*")
_OWN_HEADERS = ("authorization", "host", "content-length", "content-type", "transfer-encoding", "connection", "accept")


class Secret(str):
    """A string that does not print itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the value."""
        return "Secret('***')"


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Refuse a value that is not ok.

    Raises:
        ConfigError: naming it, what was expected, and where it is set.
    """
    if not ok:
        raise ConfigError(f"{name} is {value!r}, expected {expected}; set {ENV_PREFIX}{name.upper()} or {FILE_NAME}")


def check_address(name: str, url: str, example: str) -> None:
    """Refuse what is no address of a server, and one with a name or key in it, which errors would print."""
    shown = url if "@" not in url else "an address with a name or key in it"
    ok = _ADDRESS.fullmatch(url) is not None
    require(ok, name, shown, f"an address that starts http:// or https://, e.g. {example}")


def check_keys(settings: "Settings") -> None:
    """Check that one thing alone says who may call."""
    file, key = settings.keys_file, settings.api_key
    require(file is None or key is None, "keys_file", str(file), "nothing where api_key is set, or it alone")
    asks = file is not None or key is not None
    require(not (settings.sagemaker and asks), "sagemaker", True, "no api_key and no keys_file, for it asks for no key")


def check_session_keys(settings: "Settings") -> None:
    """Check that what encrypts the keys of sessions is named in one of its two forms."""
    named, table = settings.session_keys, settings.dynamodb_table
    ok = named == "" or _SESSION_KEYS.fullmatch(named) is not None
    require(ok, "session_keys", named, "file:PATH, kms: with the id, alias or ARN of a key, or nothing")
    short = not named or len(table) <= 250
    require(short, "dynamodb_table", table, "at most 250 characters, for the table of its keys ends in -keys")


def check_retrieval(settings: "Settings") -> None:
    """Check what is looked up and how.

    Raises:
        ConfigError: naming the setting.
    """
    named = settings.retriever == "" or _RETRIEVER.fullmatch(settings.retriever) is not None
    require(named, "retriever", settings.retriever, "http:FILE.toml, python:MODULE:NAME, or nothing")
    require(1 <= settings.k <= 50, "k", settings.k, "a number from 1 to 50")
    sentences = settings.source_sentences
    require(-1 <= sentences <= 64, "source_sentences", sentences, "a number from -1 to 64")
    require(0 <= settings.min_ratio <= 1, "min_ratio", settings.min_ratio, "a number from 0 to 1")
    require(-1 <= settings.min_score <= 1, "min_score", settings.min_score, "a number from -1 to 1")
    weight = settings.dense_weight
    require(weight == -1 or 0 <= weight <= 1, "dense_weight", weight, "a number from 0 to 1, or -1")
    require(0 <= settings.neighbours <= 10, "neighbours", settings.neighbours, "a number from 0 to 10")
    alike = settings.neighbour_score
    require(-1 <= alike <= 1, "neighbour_score", alike, "a number from -1 to 1")


def check_upstream(settings: "Settings") -> None:
    """Check what says how another server is used; its address is needed where it is the engine."""
    url, context = settings.upstream_url, settings.upstream_context
    if url or settings.engine == "openai":
        check_address("upstream_url", url, "http://127.0.0.1:8000/v1")
    if settings.upstream_proxy:
        check_address("upstream_proxy", settings.upstream_proxy, "http://proxy:3128")
    key = settings.upstream_key
    key_ok = key is None or (key != "" and key.isascii() and key.isprintable() and " " not in key)
    require(key_ok, "upstream_key", key, "a key of ASCII characters that is not empty, without spaces")
    require(0 <= context <= 1 << 24, "upstream_context", context, "a number from 0 to 16777216")
    asks = settings.engine != "openai" or settings.upstream_auth != "sagemaker" or context > 0
    require(asks, "upstream_context", context, "the model's context, since SageMaker does not tell it")
    unknown = set(settings.upstream_field_names) - set(UPSTREAM_FIELDS)
    require(not unknown, "upstream_fields", settings.upstream_fields, "names among " + ", ".join(UPSTREAM_FIELDS))
    headers_ok = all(_HEADER.fullmatch(name) and name.lower() not in _OWN_HEADERS for name in settings.session_headers)
    require(headers_ok, "upstream_session_header", settings.upstream_session_header, "names of headers of your own")
    for name in ("upstream_timeout_s", "upstream_stall_s"):
        require(0 < getattr(settings, name) <= 3600, name, getattr(settings, name), "a number above 0, at most 3600")


def key_in(file: Path, setting: str) -> Secret:
    """Return the key that a file holds for a setting, line end left out.

    Raises:
        ConfigError: there is no key in it, naming the file and never what it holds.
    """
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        problem = f"cannot be read ({error.strerror or type(error).__name__})"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    else:
        if key and key.isprintable():
            return Secret(key)
        problem = "holds more than one line, or a character that does not print" if key else "is empty"
    raise ConfigError(
        f"{setting}_file is {str(file)!r}, which {problem}; write the key into it, on one line, or set "
        f"{ENV_PREFIX}{setting.upper()}"
    )
