"""One DynamoDB table: its client, its calls within a time budget, what AWS's errors mean, and how it is made."""

import logging
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

from chatkit.errors import ChatkitError, ConfigError, MissingExtra, StoreFailed
from chatkit.sessions.attributes import Attribute, decode_item, encode, expressions
from chatkit.sessions.budget import Budget

log = logging.getLogger(__name__)
Action = dict[str, dict[str, Any]]

# Calls that run at once; each has a connection of its own.
THREADS = 32
INDEX = "by-owner"
_KEYS = [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}]
_INDEX_KEYS = [{"AttributeName": "owner", "KeyType": "HASH"}, {"AttributeName": "created_at", "KeyType": "RANGE"}]
_TYPES = {"pk": "S", "sk": "S", "owner": "S", "created_at": "N"}
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


class ConditionFailed(Exception):
    """The condition of an update did not hold."""


class Table:
    """One table, named by the settings. Its methods wait; any thread may call them.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: AWS's own settings name no region, or a profile that is not there.
    """

    def __init__(self, name: str, *, region: str = "", endpoint: str = "") -> None:
        try:
            import boto3
            from botocore import exceptions
        except ImportError:
            raise MissingExtra("boto3", "aws") from None
        # At DEBUG botocore logs the body of each request, and with it messages and answers.
        if logging.getLogger("botocore").level == logging.NOTSET:
            logging.getLogger("botocore").setLevel(logging.WARNING)
        self.name = name
        self._errors = exceptions
        self._endpoint = endpoint
        try:
            session = boto3.session.Session(region_name=region or None)
            # The machines that AWS runs for others name their region in AWS_REGION, which the SDK does not read.
            self._region = session.region_name or os.environ.get("AWS_REGION")
            self.client = session.client(
                "dynamodb", region_name=self._region, endpoint_url=endpoint or None, config=_config()
            )
        except (exceptions.BotoCoreError, ValueError) as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def check(self) -> None:
        """Read a key that nothing has: the table is there, has the right keys, and may be read.

        Raises:
            ConfigError: it is not.
            StoreFailed: nobody answers.
        """
        try:
            self.get(Budget(10), "-", "-")
        except StoreFailed as error:
            if _code_of(error.__cause__) == "ValidationException":
                raise self._other_keys() from error
            raise self._out_of_reach(error) from error

    def call(self, budget: Budget, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation of the table; what passes by itself is tried again.

        Raises:
            ConditionFailed: the condition of a single write did not hold.
            StoreFailed: AWS did not acknowledge it within the budget.
            ConfigError: the table, a permission or the credentials are missing.
        """
        while True:
            budget.check()
            try:
                answer: dict[str, Any] = getattr(self.client, operation)(**parameters)
                return answer
            except self._errors.ClientError as error:
                code = _code_of(error)
                if code == "ConditionalCheckFailedException":
                    raise ConditionFailed from None
                if code not in _PASSING:
                    raise self._explained(error) from error
            except self._errors.BotoCoreError as error:
                raise self._explained(error) from error
            budget.pause()

    def get(self, budget: Budget, partition: str, key: str) -> dict[str, Any] | None:
        """Return an item as it is now; None where there is none."""
        place = {"TableName": self.name, "Key": _key(partition, key)}
        found = self.call(budget, "get_item", **place, ConsistentRead=True).get("Item")
        return None if found is None else decode_item(found)

    def update(self, budget: Budget, partition: str, key: str, **written: Any) -> None:
        """Update one item; `written` as in attributes.expressions."""
        place = {"TableName": self.name, "Key": _key(partition, key)}
        self.call(budget, "update_item", **place, **expressions(**written))

    def query(self, budget: Budget, *, limit: int | None = None, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield items in order, page after page of at most 1 MB, to the end or to `limit`."""
        left = limit
        while True:
            bound = {} if left is None else {"Limit": left}
            page = self.call(budget, "query", TableName=self.name, **bound, **parameters)
            yield from map(decode_item, page["Items"])
            if left is not None:
                left -= len(page["Items"])
            if "LastEvaluatedKey" not in page or left == 0:
                return
            parameters["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def transact(self, budget: Budget, *actions: Action) -> dict[int, dict[str, Any] | None]:
        """Apply all of the actions, or none; the SDK's own re-sending applies them once.

        Returns:
            Empty when they are applied; otherwise, by number, the actions whose condition did not hold, each with the
            item that stands there, None where none does.

        Raises:
            StoreFailed, ConfigError: as `call`.
        """
        # One token for all sendings of one try. It is not derived from the turn: two instances that get one request in
        # the same millisecond would agree on token and body, and both be told it was theirs.
        token = secrets.token_hex(18)
        while True:
            budget.check()
            try:
                self.client.transact_write_items(TransactItems=list(actions), ClientRequestToken=token)
                return {}
            except self._errors.ClientError as error:
                reasons = error.response.get("CancellationReasons") or [error.response["Error"]]
                codes = {reason.get("Code") for reason in reasons} - {"None", None}
                if _FAILED in codes:
                    return {at: _stored(reason) for at, reason in enumerate(reasons) if reason.get("Code") == _FAILED}
                if not codes or codes - _PASSING:
                    raise self._explained(error) from error
                if codes != {"TransactionInProgressException"}:  # else this try may still be applied
                    token = secrets.token_hex(18)
            except self._errors.BotoCoreError as error:
                raise self._explained(error) from error
            budget.pause()

    def put(self, partition: str, key: str, item: dict[str, Any], condition: str, **values: Any) -> Action:
        """Return the action that puts an item where the condition holds; when it does not, what is there comes back."""
        attributes = _key(partition, key) | {name: encode(value) for name, value in item.items()}
        return {"Put": {"TableName": self.name, "Item": attributes} | _conditional(condition=condition, **values)}

    def change(self, partition: str, key: str, update: str, condition: str, **values: Any) -> Action:
        """Return the action that updates an item, as `put`."""
        place = {"TableName": self.name, "Key": _key(partition, key)}
        return {"Update": place | _conditional(update=update, condition=condition, **values)}

    def require(self, partition: str, key: str) -> Action:
        """Return the action that holds when there is such an item."""
        place = {"TableName": self.name, "Key": _key(partition, key)}
        return {"ConditionCheck": place | expressions(condition="attribute_exists(#pk)")}

    def heads(self, budget: Budget, partitions: list[str], key: str) -> dict[str, dict[str, Any]]:
        """Return one item of each partition as it is now, in the order asked; those that are gone are left out."""
        found: dict[str, dict[str, Any]] = {}
        asked = [_key(partition, key) for partition in partitions]
        while asked:
            wanted = {self.name: {"Keys": asked[:100], "ConsistentRead": True}}
            answer = self.call(budget, "batch_get_item", RequestItems=wanted)
            for item in map(decode_item, answer["Responses"].get(self.name, ())):
                found[item["pk"]] = item
            kept = answer.get("UnprocessedKeys", {}).get(self.name, {}).get("Keys", [])
            asked = kept + asked[100:]
            if kept:
                budget.pause()
        return {partition: found[partition] for partition in partitions if partition in found}

    def remove(self, budget: Budget, keys: list[tuple[str, str]]) -> None:
        """Remove items, 25 a call; those that are not there are no fault."""
        left = [{"DeleteRequest": {"Key": _key(*key)}} for key in keys]
        while left:
            answer = self.call(budget, "batch_write_item", RequestItems={self.name: left[:25]})
            kept = answer.get("UnprocessedItems", {}).get(self.name, [])
            left = kept + left[25:]
            if kept:
                budget.pause()

    def create(self, *, patience: float = 60.0) -> bool:
        """Create the table with its index, paid per request, and wait until both can be used.

        Returns:
            Whether it is new; one that somebody else creates at the same moment is not.

        Raises:
            ConfigError: there is a table of this name with other keys, or no permission.
            StoreFailed: it was not ready within `patience` seconds.
        """
        budget = Budget(patience)
        try:
            created = self._create()
            while not self._usable(budget):
                time.sleep(0.5)
        except StoreFailed as error:
            raise self._out_of_reach(error) from error
        return created

    def _create(self) -> bool:
        index = {"IndexName": INDEX, "KeySchema": _INDEX_KEYS, "Projection": {"ProjectionType": "KEYS_ONLY"}}
        try:
            self.client.create_table(
                TableName=self.name,
                AttributeDefinitions=[{"AttributeName": n, "AttributeType": t} for n, t in _TYPES.items()],
                KeySchema=_KEYS,
                GlobalSecondaryIndexes=[index],
                BillingMode="PAY_PER_REQUEST",
            )
        except self._errors.ClientError as error:
            if _code_of(error) == "ResourceInUseException":
                return False
            raise self._explained(error) from error
        except self._errors.BotoCoreError as error:
            raise self._explained(error) from error
        return True

    def _usable(self, budget: Budget) -> bool:
        try:
            table = self.call(budget, "describe_table", TableName=self.name)["Table"]
        except ConfigError as error:
            if _code_of(error.__cause__) == "ResourceNotFoundException":
                return False  # it was acknowledged a moment ago
            raise
        indexes = {index["IndexName"]: index for index in table.get("GlobalSecondaryIndexes", ())}
        types = {row["AttributeName"]: row["AttributeType"] for row in table["AttributeDefinitions"]}
        index = indexes.get(INDEX, {})
        if (table["KeySchema"], index.get("KeySchema")) != (_KEYS, _INDEX_KEYS) or not _TYPES.items() <= types.items():
            raise self._other_keys()
        return bool(table["TableStatus"] == index["IndexStatus"] == "ACTIVE")

    def _other_keys(self) -> ConfigError:
        return ConfigError(
            f"the DynamoDB table {self.name!r} has other keys than sessions need (pk and sk, and the index {INDEX!r}); "
            "name another with dynamodb_table"
        )

    def log_cause(self, error: StoreFailed) -> None:
        """Log what a failed call does not say: what stopped it, unless AWS answered; that was logged when it came."""
        if not _code_of(error.__cause__):
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
        kind, code = type(error).__name__, _code_of(error)
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


def _key(partition: str, key: str) -> dict[str, Attribute]:
    return {"pk": {"S": partition}, "sk": {"S": key}}


def _conditional(**written: Any) -> dict[str, Any]:
    return {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"} | expressions(**written)


def _stored(reason: dict[str, Any]) -> dict[str, Any] | None:
    item = reason.get("Item")
    return decode_item(item) if item else None


def _code_of(error: BaseException | None) -> str:
    """Return AWS's code of an error that AWS answered with; empty for any other."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _words(error: Any) -> str:
    reasons = [f"{row.get('Code')}: {row.get('Message')}" for row in error.response.get("CancellationReasons", ())]
    said = error.response["Error"]
    return "; ".join([f"{said['Code']}: {said.get('Message')}", *reasons])
