"""Reading a JSON body against a schema: every fault is one line with the field, its value and what was expected."""

import json
from typing import Annotated, Any, Never, Protocol, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ValidationError

from chatkit.errors import InvalidRequest
from chatkit.types import RetrievalOptions

B = TypeVar("B", bound=BaseModel)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# A whole number; some clients write 8 as 8.0.
Whole = Annotated[int, BeforeValidator(_whole)]


class RetrievalFields(Protocol):
    """What a body may say of retrieval; see `types.RetrievalOptions`."""

    no_retrieval: bool
    k: int | None
    index: str | None
    where: dict[str, str] | None
    rerank: bool | None
    neighbours: int | None


def retrieval(given: RetrievalFields, k: int) -> RetrievalOptions:
    """Return what a body asks of retrieval; `k` where it does not say.

    Raises:
        InvalidRequest: for a value out of range.
    """
    return RetrievalOptions(
        enabled=not given.no_retrieval,
        k=k if given.k is None else given.k,
        index=given.index,
        where=tuple((given.where or {}).items()),
        rerank=given.rerank,
        neighbours=given.neighbours,
    )


def read(raw: bytes, schema: type[B], *, example: str, drop_null: bool = False) -> B:
    """Read a body.

    Args:
        drop_null: a null field counts as left out; where clients write every field they know.

    Raises:
        InvalidRequest: naming the first thing that is wrong.
    """
    try:
        table = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {raw[error.start]:#04x} at {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise InvalidRequest("the body holds a number of thousands of digits, expected one in range") from None
    except RecursionError:
        raise InvalidRequest(f"the body is nested too deeply, expected an object such as {example}") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f"the body is {short(table)}, expected an object such as {example}")
    if drop_null:
        table = _without_null(table)
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        raise InvalidRequest(_explain(error, schema, example)) from None


def _without_null(table: dict[str, Any]) -> dict[str, Any]:
    """Leave out null fields, of inner objects too; what stands in lists is left as it is."""
    kept = {name: value for name, value in table.items() if value is not None}
    return {name: _without_null(value) if isinstance(value, dict) else value for name, value in kept.items()}


def short(value: object) -> str:
    """Return a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _no_constant(name: str) -> Never:
    raise InvalidRequest(f"the body holds {name}, which is no JSON number; expected a finite one")


def _explain(error: ValidationError, schema: type[BaseModel], example: str) -> str:
    """Return the first fault in one line: the field, its value and what was expected."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:80]
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "missing":
            return f"{field!r} is missing, expected e.g. {example}{more}"
        case "extra_forbidden":
            known = ", ".join(_model_at(schema, first["loc"][:-1]).model_fields)
            return f"{field!r} is not known; known here: {known}{more}"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{field!r} is {short(first['input'])}, expected {expected}{more}"


def _model_at(schema: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    """Return the model that a place in the body is read by."""
    for name in path:
        found = schema.model_fields.get(name) if isinstance(name, str) else None
        if found is not None:
            kinds = [kind for kind in (found.annotation, *get_args(found.annotation)) if isinstance(kind, type)]
            schema = next((kind for kind in kinds if issubclass(kind, BaseModel)), schema)
    return schema
