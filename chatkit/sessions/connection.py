"""A client of DynamoDB for one table: its calls within a time budget, and what AWS's errors mean."""

import logging
import os
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from chatkit.errors import ChatkitError, ConfigError, MissingExtra, StoreFailed
from chatkit.sessions.attributes import decode_item
from chatkit.sessions.budget import Budget

log = logging.getLogger(__name__)
Action = dict[str, dict[str, Any]]

# How long one call is sent again to which no answer comes, also where there is more time for them all. Seconds.
_PATIENCE_S = 5.0
# Calls that run at once; each has a connection of its own.
THREADS = 32
# What ends by itself: others wrote the same item, or more was asked of a partition than it gives. The error codes and
# cancellation reasons of TransactWriteItems, in its API reference.
_PASSING = frozenset(
    {
        "TransactionConflict",
        "TransactionConflictException",
        "TransactionInProgressException",
        "IdempotentParameterMismatchException",  # sent again under a fresh token, the conditions tell what is there
        "ThrottlingError",
        "ThrottlingException",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
    }
)
# After these what was sent under a token is not applied, and will not be.
_ANOTHER_TRY = frozenset(
    {"TransactionConflict", "TransactionConflictException", "IdempotentParameterMismatchException"}
)
_REFUSED = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)
_CREDENTIALS = frozenset(
    {
        "CredentialRetrievalError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOTokenLoadError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
_FAILED = "ConditionalCheckFailed"
# HTTP status from which on an answer says that the server failed, whatever it did before.
_SERVER_FAULT = 500


class ConditionFailed(Exception):
    """The condition of a single write did not hold."""


class Connection:
    """The calls for one table, named by the settings. Its methods wait; any thread may call them.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: AWS's own settings name no region, or a profile that is not there.
    """

    def __init__(self, name: str, *, region: str = "", endpoint: str = "") -> None:
        boto3, exceptions = load_sdk()
        self.name = name
        self._errors = exceptions
        # What was sent may have been applied. Where nobody takes the last of the SDK's tries, one before may have been.
        self._unanswered = (exceptions.ConnectionClosedError, exceptions.ReadTimeoutError)
        self._not_taken = (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError)
        self._was_there = False  # an address where nobody ever was is a wrong setting, and fails at once
        self._endpoint = endpoint
        try:
            session = boto3.session.Session(region_name=region or None)
            self._region = region_of(session)
            self.client = session.client(
                "dynamodb", region_name=self._region, endpoint_url=endpoint or None, config=_config()
            )
        except (exceptions.BotoCoreError, ValueError) as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def call(self, budget: Budget, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation of the table; what passes by itself, and what got no answer, is tried again.

        So a write may be made twice, by the SDK as by this: the condition of a single one has to hold after it was
        made, or its failure to be no surprise.

        Raises:
            ConditionFailed: the condition of a single write did not hold.
            StoreFailed: AWS did not acknowledge it within the budget.
            ConfigError: the table, a permission or the credentials are missing.
        """
        patience = budget.part(_PATIENCE_S)
        while True:
            budget.check()
            try:
                answer: dict[str, Any] = getattr(self.client, operation)(**parameters)
                self._was_there = True
                return answer
            except self._errors.ClientError as error:
                code = code_of(error)
                if code == "ConditionalCheckFailedException":
                    raise ConditionFailed from None
                self._pause(budget, patience, error, passing=code in _PASSING)
            except self._errors.BotoCoreError as error:
                self._pause(budget, patience, error)

    def transact(
        self, budget: Budget, actions: Iterable[Action], token: Callable[[], str] = lambda: secrets.token_hex(18)
    ) -> dict[int, dict[str, Any] | None]:
        """Apply all of the actions, or none; sending them again where no answer came applies them once.

        Args:
            token: makes the token of each try, at most 36 characters; DynamoDB applies what has one token once.

        Returns:
            Empty when they are applied; otherwise, by number, the actions whose condition did not hold, each with the
            item that stands there, None where none does.

        Raises:
            StoreFailed, ConfigError: as `call`.
        """
        wanted, tried, patience = list(actions), token(), budget.part(_PATIENCE_S)
        while True:
            budget.check()
            try:
                self.client.transact_write_items(TransactItems=wanted, ClientRequestToken=tried)
                return {}
            except self._errors.ClientError as error:
                reasons = error.response.get("CancellationReasons") or [error.response["Error"]]
                codes = {reason.get("Code") for reason in reasons} - {"None", None}
                if _FAILED in codes:
                    return {at: _stored(reason) for at, reason in enumerate(reasons) if reason.get("Code") == _FAILED}
                self._pause(budget, patience, error, passing=bool(codes) and codes <= _PASSING)
                if codes & _ANOTHER_TRY:  # else what was sent may still be applied, or has been and its answer was lost
                    tried = token()
            except self._errors.BotoCoreError as error:
                self._pause(budget, patience, error)

    def _pause(self, budget: Budget, patience: Budget, error: Exception, *, passing: bool = False) -> None:
        """Wait before a call is tried again whose failure is `passing`, or to which no answer came at all.

        Args:
            patience: what there is of the budget for those that nobody answers.

        Raises:
            StoreFailed: it is spent, or the call would fail again.
            ConfigError: as `call`.
        """
        lost = isinstance(error, self._unanswered) or _status_of(error) >= _SERVER_FAULT
        lost = lost or (self._was_there and isinstance(error, self._not_taken))
        if passing:
            budget.pause()
        elif not lost:
            raise self._explained(error) from error
        else:
            try:
                patience.pause()
            except StoreFailed:
                raise self._explained(error) from error

    def log_cause(self, error: StoreFailed) -> None:
        """Log what a failed call does not say: what stopped it, unless AWS answered; that was logged when it came."""
        if not code_of(error.__cause__):
            log.error(
                "DynamoDB table %s: %s", self.name, error.__cause__ or "a call was given up, see its time and tries"
            )

    def _out_of_reach(self, error: StoreFailed) -> StoreFailed:
        where = self._endpoint or f"AWS region {self._region}"
        reason = str(error).partition(";")[0]
        return StoreFailed(
            f"the DynamoDB table {self.name!r} at {where} is out of reach: {reason}; "
            "check dynamodb_region, dynamodb_endpoint and the network"
        )

    def _explained(self, error: Exception) -> ChatkitError:
        """Return what an error of the SDK means for chatkit; what AWS said of a failure goes to the log."""
        kind, code = type(error).__name__, code_of(error)
        if code == "ResourceNotFoundException":
            flags = f" --dynamodb-table {self.name}" + (
                f" --dynamodb-endpoint {self._endpoint}" if self._endpoint else ""
            )
            return ConfigError(
                f"the DynamoDB table {self.name!r} does not exist; run: chatkit sessions create-table{flags}"
            )
        if code in _REFUSED:
            return ConfigError(
                f"AWS refused to let these credentials use the DynamoDB table {self.name!r} ({code}); "
                "docs/sessions.md lists the permissions that are needed"
            )
        if isinstance(error, self._errors.NoRegionError):
            return ConfigError(
                f"no AWS region is set for the DynamoDB table {self.name!r}; set CHATKIT_DYNAMODB_REGION, "
                "any name will do for a server of your own"
            )
        if kind in _CREDENTIALS:
            return ConfigError(
                f"no AWS credentials were found for the DynamoDB table {self.name!r} ({kind}); set AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            )
        if isinstance(error, ValueError):
            return ConfigError(
                f"dynamodb_endpoint is {self._endpoint!r}, which is no address; expected http://HOST:PORT"
            )
        if code:
            log.error("DynamoDB table %s: %s", self.name, _words(error))
        return StoreFailed(f"the session store did not answer ({code or kind}); send the request again later")


def load_sdk() -> tuple[Any, Any]:
    """Return boto3 and botocore's exceptions, the SDK's own log kept from telling what is sent and answered.

    Raises:
        MissingExtra: boto3 is not installed.
    """
    try:
        import boto3
        from botocore import exceptions
    except ImportError:
        raise MissingExtra("boto3", "aws") from None
    # At DEBUG botocore logs the body of each request and answer, and with it messages, answers and keys.
    if logging.getLogger("botocore").level == logging.NOTSET:
        logging.getLogger("botocore").setLevel(logging.WARNING)
    return boto3, exceptions


def region_of(session: Any) -> str | None:
    """Return the AWS region of an SDK's session, as the machine names it where nobody else does."""
    # The machines that AWS runs for others name their region in AWS_REGION, which the SDK does not read.
    return session.region_name or os.environ.get("AWS_REGION")


def code_of(error: BaseException | None) -> str:
    """Return AWS's code of an error that AWS answered with; empty for any other."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _status_of(error: Exception) -> int:
    """Return the HTTP status of an answer of AWS; 0 of an error that is none."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _config() -> Any:
    """Return the SDK's settings, all said: its defaults differ by version and let a call hang for a minute."""
    from botocore.config import Config

    return Config(
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=1,
        read_timeout=2,
        max_pool_connections=THREADS,
        tcp_keepalive=True,
    )


def _stored(reason: dict[str, Any]) -> dict[str, Any] | None:
    item = reason.get("Item")
    return decode_item(item) if item else None


def _words(error: Any) -> str:
    reasons = [f"{row.get('Code')}: {row.get('Message')}" for row in error.response.get("CancellationReasons", ())]
    said = error.response["Error"]
    return "; ".join([f"{said['Code']}: {said.get('Message')}", *reasons])
