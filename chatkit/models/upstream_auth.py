"""How a request to an upstream server says who asks: with a key, or with a token made of the AWS credentials."""

import asyncio
import base64
import logging
import re
from typing import Any, Protocol
from urllib.parse import urlsplit

from chatkit.errors import ConfigError, EngineFailed, MissingExtra

log = logging.getLogger(__name__)

# Docs of Amazon SageMaker AI, "Invoke endpoints with OpenAI-compatible APIs": a token lives twelve hours at the most.
# One is made for every request, so it only has to reach the endpoint. Seconds.
_TOKEN_LIFE = 900
_SIGNED_HOST = "sagemaker.amazonaws.com"
_RUNTIME_HOST = re.compile(
    r"runtime(?:-fips)?\.sagemaker\.(?P<region>[a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)


class Credentials(Protocol):
    """What makes the headers of one request."""

    async def headers(self) -> dict[str, str]:
        """Return the headers that say who asks.

        Raises:
            EngineFailed: there is nothing to say it with, now.
        """
        ...


class Key:
    """A fixed key; an empty one says nothing."""

    def __init__(self, key: str = "") -> None:
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def headers(self) -> dict[str, str]:
        """Return the key as a bearer token."""
        return dict(self._headers)


class SageMakerToken:
    """A bearer token for the OpenAI path of a SageMaker endpoint, made anew for every request, without a network call.

    The token is a presigned URL of the action CallWithBearerToken, which nobody ever opens: SageMaker reads in it whose
    credentials signed it. They come from where AWS's own tools find them, and may change while the service runs.

    Args:
        url: the endpoint's address, whose host names the region. The AWS settings name it for another host.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: no region or no credentials are set, or the AWS settings cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            import botocore.session
        except ImportError as error:
            raise MissingExtra("boto3", "aws") from error
        from botocore.exceptions import BotoCoreError

        session = botocore.session.get_session()
        host = urlsplit(url).hostname or ""
        match = _RUNTIME_HOST.fullmatch(host)
        try:
            self._region: str = match["region"] if match else session.get_config_variable("region") or ""
            self._credentials = session.get_credentials()
        except BotoCoreError as error:  # a profile that is not there, a file that cannot be read
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"the AWS settings cannot be used ({why}); correct them or AWS_PROFILE") from error
        if not self._region:
            raise ConfigError(f"no AWS region is set and {host!r} names none; set AWS_REGION")
        if self._credentials is None:
            raise ConfigError("there are no AWS credentials; set AWS_PROFILE, or a role for this machine or container")

    async def headers(self) -> dict[str, str]:
        """Return a new token; a refresh of the credentials may take a while, so it waits in a thread."""
        return {"authorization": f"Bearer {await asyncio.to_thread(self._token)}"}

    def _token(self) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            frozen = self._credentials.get_frozen_credentials()
        except (BotoCoreError, ClientError, RuntimeError) as error:  # the last where new ones have expired already
            log.error("the AWS credentials cannot be refreshed: %s", type(error).__name__)
            raise EngineFailed("the language model's server cannot be used now; try again shortly") from error
        return make_token(frozen, self._region)


def make_token(credentials: Any, region: str, *, life: int = _TOKEN_LIFE) -> str:
    """Return a token that the credentials sign for one region.

    Args:
        credentials: botocore's frozen ones, so that a refresh cannot come between key and secret.
        life: seconds until it ends, at most 43,200.
    """
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    request = AWSRequest(
        "POST", f"https://{_SIGNED_HOST}/", {"host": _SIGNED_HOST}, params={"Action": "CallWithBearerToken"}
    )
    SigV4QueryAuth(credentials, "sagemaker", region, expires=life).add_auth(request)
    signed = request.url.removeprefix("https://") + "&Version=1"
    return "sagemaker-api-key-" + base64.b64encode(signed.encode()).decode()
