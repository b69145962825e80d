"""One DynamoDB table: what is read of it and written to it, and how it is made."""

import time
from collections.abc import Iterator
from typing import Any

from chatkit.errors import ConfigError, StoreFailed
from chatkit.sessions.attributes import Attribute, decode_item, encode, encode_item, expressions
from chatkit.sessions.budget import Budget
from chatkit.sessions.connection import Action, Connection, code_of

# What the list of an owner's sessions is read from; it has the sessions' own items alone, for no other has an owner.
INDEX = "by-owner"
# What DynamoDB is told to remove items by.
EXPIRY = "expires_at"
# The most actions of one transaction, deletions or writes of one batch, and reads of one.
ACTIONS, _WRITES, _READS = 100, 25, 100
_KEYS = [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}]
_INDEX_KEYS = [{"AttributeName": "owner", "KeyType": "HASH"}, {"AttributeName": "created_at", "KeyType": "RANGE"}]
_TYPES = {"pk": "S", "sk": "S", "owner": "S", "created_at": "N"}
_ON = ("ENABLED", "ENABLING")


class Table(Connection):
    """One table, named by the settings. Its methods wait; any thread may call them."""

    def check(self) -> None:
        """Read a key that nothing has: the table is there, has the right keys, and may be read.

        Raises:
            ConfigError: it is not.
            StoreFailed: nobody answers.
        """
        try:
            self.get(Budget(10), "-", "-")
        except StoreFailed as error:
            if code_of(error.__cause__) == "ValidationException":
                raise self._other_keys() from error
            raise self._out_of_reach(error) from error

    def get(self, budget: Budget, partition: str, key: str) -> dict[str, Any] | None:
        """Return an item as it is now; None where there is none."""
        place = {"TableName": self.name, "Key": key_of(partition, key)}
        found = self.call(budget, "get_item", **place, ConsistentRead=True).get("Item")
        return None if found is None else decode_item(found)

    def update(self, budget: Budget, partition: str, key: str, **written: Any) -> None:
        """Update one item; `written` as in attributes.expressions."""
        place = {"TableName": self.name, "Key": key_of(partition, key)}
        self.call(budget, "update_item", **place, **expressions(**written))

    def write(self, budget: Budget, partition: str, key: str, item: dict[str, Any], **condition: Any) -> None:
        """Put one item; `condition` as in attributes.expressions."""
        place = {"TableName": self.name, "Item": key_of(partition, key) | encode_item(item)}
        self.call(budget, "put_item", **place, **expressions(**condition))

    def delete(self, budget: Budget, partition: str, key: str, **condition: Any) -> None:
        """Remove one item; `condition` as in attributes.expressions."""
        place = {"TableName": self.name, "Key": key_of(partition, key)}
        self.call(budget, "delete_item", **place, **expressions(**condition))

    def page(self, budget: Budget, **parameters: Any) -> tuple[list[dict[str, Any]], dict[str, Attribute] | None]:
        """Return the items of one query, at most 1 MB of them, and the key after which it goes on; None at the end."""
        answer = self.call(budget, "query", TableName=self.name, **parameters)
        return [decode_item(item) for item in answer["Items"]], answer.get("LastEvaluatedKey")

    def query(self, budget: Budget, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield items in order to the end, a page whenever one is wanted; `Limit` is the length of a page."""
        while True:
            found, last = self.page(budget, **parameters)
            yield from found
            if last is None:
                return
            parameters["ExclusiveStartKey"] = last

    def put(self, partition: str, key: str, item: dict[str, Any], condition: str = "", **values: Any) -> Action:
        """Return the action that puts an item where the condition holds; when it does not, what is there comes back."""
        attributes = key_of(partition, key) | {name: encode(value) for name, value in item.items()}
        return {"Put": {"TableName": self.name, "Item": attributes} | _conditional(condition=condition, **values)}

    def change(self, partition: str, key: str, update: str, condition: str, **values: Any) -> Action:
        """Return the action that updates an item, as `put`."""
        place = {"TableName": self.name, "Key": key_of(partition, key)}
        return {"Update": place | _conditional(update=update, condition=condition, **values)}

    def require(self, partition: str, key: str, condition: str, **values: Any) -> Action:
        """Return the action that only asks for the condition, as `put`."""
        place = {"TableName": self.name, "Key": key_of(partition, key)}
        return {"ConditionCheck": place | _conditional(condition=condition, **values)}

    def drop(self, partition: str, key: str, condition: str = "", **values: Any) -> Action:
        """Return the action that removes an item, as `put`."""
        place = {"TableName": self.name, "Key": key_of(partition, key)}
        return {"Delete": place | _conditional(condition=condition, **values)}

    def heads(self, budget: Budget, partitions: list[str], key: str) -> dict[str, dict[str, Any]]:
        """Return one item of each partition as it is now, in the order asked; those that are gone are left out."""
        found: dict[str, dict[str, Any]] = {}
        asked = [key_of(partition, key) for partition in dict.fromkeys(partitions)]
        while asked:
            wanted = {self.name: {"Keys": asked[:_READS], "ConsistentRead": True}}
            answer = self.call(budget, "batch_get_item", RequestItems=wanted)
            for item in map(decode_item, answer["Responses"].get(self.name, ())):
                found[item["pk"]] = item
            kept = answer.get("UnprocessedKeys", {}).get(self.name, {}).get("Keys", [])
            asked = kept + asked[_READS:]
            if kept:
                budget.pause()
        return {partition: found[partition] for partition in partitions if partition in found}

    def remove(self, budget: Budget, partition: str, keys: list[str]) -> None:
        """Remove items of a partition, many a call; those that are not there are no fault."""
        left = [{"DeleteRequest": {"Key": key_of(partition, key)}} for key in keys]
        while left:
            answer = self.call(budget, "batch_write_item", RequestItems={self.name: left[:_WRITES]})
            kept = answer.get("UnprocessedItems", {}).get(self.name, [])
            left = kept + left[_WRITES:]
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

    def expire(self, *, patience: float = 60.0) -> bool:
        """Have DynamoDB remove what has expired, some time after it has.

        Returns:
            Whether that is new; where it is on already nothing is changed, for AWS takes one change an hour.

        Raises:
            ConfigError: items are removed by another attribute, or no permission.
            StoreFailed: it was not acknowledged.
        """
        budget = Budget(patience)
        wanted = {"Enabled": True, "AttributeName": EXPIRY}
        try:
            if self._expires(budget):
                return False
            try:
                self.call(budget, "update_time_to_live", TableName=self.name, TimeToLiveSpecification=wanted)
            except StoreFailed as error:
                # Somebody else was first, or has just switched it off.
                if code_of(error.__cause__) != "ValidationException" or not self._expires(budget):
                    raise
                return False
        except StoreFailed as error:
            raise self._out_of_reach(error) from error
        return True

    def _expires(self, budget: Budget) -> bool:
        found = self.call(budget, "describe_time_to_live", TableName=self.name)["TimeToLiveDescription"]
        if found["TimeToLiveStatus"] not in _ON:
            return False
        if found.get("AttributeName") != EXPIRY:
            raise ConfigError(
                f"the DynamoDB table {self.name!r} removes items by their {found.get('AttributeName')!r}, expected "
                f"{EXPIRY!r}; switch that off and run this again after an hour, or name another table"
            )
        return True

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
            if code_of(error) == "ResourceInUseException":
                return False
            raise self._explained(error) from error
        except self._errors.BotoCoreError as error:
            raise self._explained(error) from error
        return True

    def _usable(self, budget: Budget) -> bool:
        try:
            table = self.call(budget, "describe_table", TableName=self.name)["Table"]
        except ConfigError as error:
            if code_of(error.__cause__) == "ResourceNotFoundException":
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


def key_of(partition: str, key: str) -> dict[str, Attribute]:
    """Return the key of an item."""
    return {"pk": {"S": partition}, "sk": {"S": key}}


def _conditional(**written: Any) -> dict[str, Any]:
    answer = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"} if written["condition"] else {}
    return answer | expressions(**written)
