"""Who may call: keys, compared in constant time, and the rule that binds them to the address."""

import hmac
import ipaddress
import logging
from collections.abc import Mapping

from chatkit.errors import ConfigError, Unauthorized
from chatkit.server.callers import DEFAULT_SCOPES, METRICS, SCOPES, Caller
from chatkit.server.keys import digest_of, read_keys
from chatkit.settings import Settings
from chatkit.types import Owner

log = logging.getLogger(__name__)


def require_safe_bind(settings: Settings) -> None:
    """Refuse to listen beyond this machine without keys; SageMaker mode may, since IAM is in front of it.

    Raises:
        ConfigError: with the ways out.
    """
    if is_loopback(settings.host):
        return
    if settings.sagemaker:
        log.warning("SageMaker mode: whoever reaches %s may act for any user, no key is asked for", settings.host)
    elif settings.api_key is None and settings.keys_file is None:
        raise ConfigError(
            f"host is {settings.host!r}, which others can reach, and no API key is set; set CHATKIT_API_KEY, "
            "CHATKIT_API_KEY_FILE or CHATKIT_KEYS_FILE, or use 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gatekeeper:
    """Tells who calls by the key of a request; where no key is asked for, everybody is the one anonymous owner.

    Raises:
        ConfigError: the key file is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._everybody: Caller | None = None
        self._keys: tuple[tuple[bytes, Caller], ...] = ()
        if settings.keys_file is not None:
            self._keys = read_keys(settings.keys_file.expanduser())
        elif settings.api_key is not None:
            caller = Caller(Owner.behind(settings.api_key), DEFAULT_SCOPES)
            self._keys = ((digest_of(settings.api_key), caller),)
        else:
            # On loopback whoever calls is on this machine: metrics are no secret there.
            scopes = frozenset(SCOPES) if settings.sagemaker else DEFAULT_SCOPES | {METRICS}
            self._everybody = Caller(Owner(), scopes)

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return who sends a request with these headers.

        Raises:
            Unauthorized: the key is missing or wrong.
        """
        if self._everybody is not None:
            return self._everybody
        kind, _, key = headers.get("authorization", "").partition(" ")
        digest, found = digest_of(key.strip()), None
        for known, caller in self._keys:  # all of them, so that the time does not tell which one is near
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None or kind.lower() != "bearer":
            raise Unauthorized("the API key is missing or wrong; send it as `Authorization: Bearer KEY`")
        return found
