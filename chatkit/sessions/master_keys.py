"""What the keys of sessions are wrapped under: a key in a file, or a key of AWS KMS."""

import base64
import binascii
import hashlib
import logging
import os
import re
import secrets
import shlex
import stat
from pathlib import Path
from typing import Any

from chatkit.errors import ChatkitError, ConfigError, MissingExtra, StoreFailed
from chatkit.sessions.connection import code_of, load_sdk, region_of
from chatkit.sessions.sealing import KEY_BYTES
from chatkit.sessions.session_keys import CannotUnwrap, MasterKey

log = logging.getLogger(__name__)

_FILE_KEY_BYTES, _NONCE_BYTES, _NAME_BYTES = 32, 12, 8
# What a wrapped key begins with, by what wrapped it.
_BY_FILE, _BY_KMS = b"f1", b"k1"
_ARN = re.compile(r"arn:[a-z-]+:kms:([a-z0-9-]+):")
# What ends by itself; everything else that AWS answers with is a setting, a permission or the state of the key. The
# errors of GenerateDataKey and Decrypt, in the API reference of KMS.
_PASSING = frozenset(
    {
        "DependencyTimeoutException",
        "InternalFailure",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestTimeout",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "ThrottlingException",
    }
)
_DAMAGED = frozenset({"IncorrectKeyException", "InvalidCiphertextException"})


def open_master(setting: str, *, region: str = "") -> MasterKey:
    """Open the master key that the setting `session_keys` names, which is file:PATH or kms:KEY.

    Raises:
        MissingExtra: a library is not installed.
        ConfigError: there is no such key, or it may not be used.
    """
    kind, _, name = setting.partition(":")
    return KeyFile(Path(name).expanduser()) if kind == "file" else KmsKey(name, region=region)


class KeyFile:
    """A master key in a file: 32 random bytes as base64, for its owner's eyes alone. Wraps with AES-256-GCM.

    Each wrapping takes 96 random bits, so that one file is good for some billions of sessions.
    """

    def __init__(self, file: Path) -> None:
        key = _read(file)
        self._cipher = _gcm(key)
        # Tells one file's keys from another's, and nothing of the key.
        self._name = _BY_FILE + hashlib.sha256(b"chatkit session_keys" + key).digest()[:_NAME_BYTES]

    def new(self, session: str) -> tuple[bytes, bytes]:
        """Return a fresh key for a session, and the same wrapped; see session_keys.MasterKey."""
        key, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
        return key, self._name + nonce + self._cipher.encrypt(nonce, key, session.encode())

    def unwrap(self, wrapped: bytes, session: str) -> bytes:
        """Return the key that was wrapped; see session_keys.MasterKey."""
        from cryptography.exceptions import InvalidTag

        if not wrapped.startswith(self._name):
            raise CannotUnwrap
        start = len(self._name)
        nonce, sealed = wrapped[start : start + _NONCE_BYTES], wrapped[start + _NONCE_BYTES :]
        try:
            key: bytes = self._cipher.decrypt(nonce, sealed, session.encode())
        except (InvalidTag, ValueError):  # too short to be a nonce
            raise CannotUnwrap from None
        return key

    def close(self) -> None:
        """Nothing is held."""


def _gcm(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise MissingExtra("cryptography", "encryption") from None
    return AESGCM(key)


def _read(file: Path) -> bytes:
    """Return the key in a file.

    Raises:
        ConfigError: there is none, or others may read it; never with what the file holds.
    """
    make = f"(umask 077 && head -c 32 /dev/urandom | base64 > {shlex.quote(str(file))})"
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(4096)
    except FileNotFoundError:
        raise ConfigError(f"session_keys names {str(file)!r}, which does not exist; make a key with {make}") from None
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise ConfigError(f"session_keys names {str(file)!r}, which cannot be read: {problem}") from error
    if mode & 0o077:
        raise ConfigError(
            f"session_keys names {str(file)!r}, which others than its owner may read or write (mode {mode:04o}); run: "
            f"chmod 600 {shlex.quote(str(file))}"
        )
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _FILE_KEY_BYTES:
        raise ConfigError(
            f"session_keys names {str(file)!r}, which holds no key, expected {_FILE_KEY_BYTES} bytes as base64; make a "
            f"key, once and for all of these sessions, with {make}"
        )
    return key


class KmsKey:
    """A key of AWS KMS, by its id, alias or ARN. It never leaves KMS: each wrapping and unwrapping is a call.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: AWS's own settings name no region, or a profile that is not there.
    """

    def __init__(self, key: str, *, region: str = "") -> None:
        boto3, exceptions = load_sdk()
        from botocore.config import Config

        self._key = key
        self._errors = exceptions
        own = _ARN.match(key)
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=1,
            read_timeout=1,
            max_pool_connections=32,
        )
        try:
            session = boto3.session.Session(region_name=own.group(1) if own else region or None)
            self._client = session.client("kms", region_name=region_of(session), config=config)
        except (exceptions.BotoCoreError, ValueError) as error:
            raise self._explained(error) from error

    def new(self, session: str) -> tuple[bytes, bytes]:
        """Return a fresh key for a session, and the same wrapped; see session_keys.MasterKey."""
        made = self._call(
            "generate_data_key", KeyId=self._key, NumberOfBytes=KEY_BYTES, EncryptionContext=_context(session)
        )
        return made["Plaintext"], _BY_KMS + made["CiphertextBlob"]

    def unwrap(self, wrapped: bytes, session: str) -> bytes:
        """Return the key that was wrapped; see session_keys.MasterKey."""
        if not wrapped.startswith(_BY_KMS):
            raise CannotUnwrap
        blob = wrapped.removeprefix(_BY_KMS)
        try:
            answer = self._call("decrypt", KeyId=self._key, CiphertextBlob=blob, EncryptionContext=_context(session))
        except ConfigError as error:
            if code_of(error.__cause__) in _DAMAGED:
                raise CannotUnwrap from None
            raise
        key: bytes = answer["Plaintext"]
        return key

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**parameters)
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            raise self._explained(error) from error
        return answer

    def _explained(self, error: Exception) -> ChatkitError:
        """Return what an error of the SDK means for chatkit; what passes by itself goes to the log too."""
        code, kind = code_of(error), type(error).__name__
        if code and code not in _PASSING:
            return ConfigError(
                f"AWS refused to use the KMS key {self._key!r} of session_keys ({code}); it has to be there, enabled, "
                "symmetric, and allow these credentials kms:GenerateDataKey and kms:Decrypt"
            )
        if kind in ("NoRegionError", "ValueError"):
            return ConfigError(f"no AWS region is set for the KMS key {self._key!r}; name its ARN or set AWS_REGION")
        if "Credential" in kind or kind in ("ProfileNotFound", "SSOTokenLoadError", "TokenRetrievalError"):
            return ConfigError(
                f"no AWS credentials were found for the KMS key {self._key!r} ({kind}); set AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            )
        log.error("the KMS key %s: %s", self._key, error)
        return StoreFailed(f"the keys of sessions did not answer ({code or kind}); send the request again later")


def _context(session: str) -> dict[str, str]:
    """Return what a wrapped key is bound to. AWS writes it into the trail of calls, so it is the digest alone."""
    return {"chatkit:session": session}
