"""Who may call: one API key, compared in constant time, and the rule that binds it to the address."""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

from chatkit.errors import ConfigError, Unauthorized
from chatkit.types import Owner


def require_safe_bind(host: str, api_key: str | None) -> None:
    """Refuse to listen beyond this machine without a key.

    Raises:
        ConfigError: with the two ways out.
    """
    if api_key is None and not _is_loopback(host):
        raise ConfigError(
            f"host is {host!r}, which others can reach, and no API key is set; set CHATKIT_API_KEY or "
            "CHATKIT_API_KEY_FILE, or use 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gatekeeper:
    """Tells the owner of a request by its key; without a key everybody is the one anonymous owner."""

    def __init__(self, api_key: str | None) -> None:
        self._digest = _digest(api_key) if api_key is not None else None
        self._owner = Owner.behind(api_key)

    def owner(self, headers: Mapping[str, str]) -> Owner:
        """Return whose sessions this caller may use.

        Raises:
            Unauthorized: the key is missing or wrong.
        """
        if self._digest is None:
            return self._owner
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._digest):
            raise Unauthorized("the API key is missing or wrong; send it as `Authorization: Bearer KEY`")
        return self._owner


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
