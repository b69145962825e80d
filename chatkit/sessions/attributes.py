"""Items as DynamoDB writes them: every value under the name of its type, every number as decimal digits. Pure."""

import re
from decimal import Decimal
from typing import Any

Attribute = dict[str, Any]

_NAME = re.compile(r"#\w+")


def encode(value: Any) -> Attribute:
    """Return a value as an attribute; a float becomes the shortest digits that give it back."""
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": value}
        case int() | float():
            return {"N": str(int(value) if value == int(value) else Decimal(repr(value)))}
        case list():
            return {"L": [encode(entry) for entry in value]}
        case _:
            raise TypeError(f"an item holds a {type(value).__name__}, expected text, a number, None or a list of them")


def decode(attribute: Attribute) -> Any:
    """Return the value of an attribute, None for a type that `encode` never writes.

    A number without a fraction is an int, for DynamoDB drops the zeros of 1.0.
    """
    ((kind, value),) = attribute.items()
    match kind:
        case "S" | "BOOL":
            return value
        case "N":
            number = Decimal(value)
            return int(number) if number == number.to_integral_value() else float(number)
        case "L":
            return [decode(entry) for entry in value]
        case _:
            return None


def encode_item(item: dict[str, Any]) -> dict[str, Attribute]:
    """Return an item as attributes."""
    return {name: encode(value) for name, value in item.items()}


def decode_item(attributes: dict[str, Attribute]) -> dict[str, Any]:
    """Return the item that attributes stand for."""
    return {name: decode(value) for name, value in attributes.items()}


def size_of(item: dict[str, Any]) -> int:
    """Return the most bytes that DynamoDB counts for an item: names, UTF-8 of texts, up to 21 for a number."""
    return sum(len(name.encode()) + _size(value) for name, value in item.items())


def _size(value: Any) -> int:
    match value:
        case None | bool():
            return 1
        case str():
            return len(value.encode())
        case list():
            return 3 + sum(1 + _size(entry) for entry in value)
        case _:
            return 21


def expressions(
    *, condition: str = "", update: str = "", keys: str = "", projection: str = "", **values: Any
) -> dict[str, Any]:
    """Return the parameters of one call or action that hold its expressions, with their names and values.

    An expression writes an attribute as `#name`, so that it is none of the words DynamoDB keeps for itself, and a value
    as `:name`.
    """
    written = {
        "ConditionExpression": condition,
        "UpdateExpression": update,
        "KeyConditionExpression": keys,
        "ProjectionExpression": projection,
        "ExpressionAttributeNames": {w: w[1:] for e in (condition, update, keys, projection) for w in _NAME.findall(e)},
        "ExpressionAttributeValues": {f":{name}": encode(value) for name, value in values.items()},
    }
    return {name: value for name, value in written.items() if value}
