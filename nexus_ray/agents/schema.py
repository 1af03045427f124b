"""Schemas: what a payload, a result or a state must look like, checked once at the door.

Law: what crosses Nexus is JSON in UTF-8 bytes, with keys in a fixed order, so equal content has equal bytes.
Pydantic models, dataclasses and plain JSON values are all that is taken; nothing is ever unpickled.
"""

from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from nexus_ray.core.errors import DataLossError, InvalidArgumentError

_PROBLEMS_MAX = 20  # More would only bury the first one.


class Schema:
    """The shape of a payload, a result or a state; `Any` takes every JSON value."""

    def __init__(self, annotation: Any = Any) -> None:
        self._adapter: TypeAdapter[Any] | None = None if annotation is Any else TypeAdapter(annotation)

    def encode(self, value: Any, what: str = "payload") -> bytes:
        """Check a Python value and return its JSON bytes.

        Raises:
            InvalidArgumentError: The value does not fit; `details["problems"]` lists field and reason.
        """
        if self._adapter is None:
            return dump_json(value, what)
        try:
            checked = self._adapter.validate_python(value)
            return self._adapter.dump_json(checked)
        except ValidationError as error:
            raise _refusal(error, what) from None
        except PydanticSerializationError as error:
            raise InvalidArgumentError(f"the {what} cannot be written as JSON: {error}") from None

    def decode(self, body: bytes, what: str = "payload") -> Any:
        """Check JSON bytes and return the Python value.

        Raises:
            InvalidArgumentError: Not JSON, or it does not fit; `details["problems"]` lists field and reason.
        """
        try:
            return orjson.loads(body) if self._adapter is None else self._adapter.validate_json(body)
        except orjson.JSONDecodeError as error:
            raise InvalidArgumentError(f"the {what} is not JSON: {error}") from None
        except ValidationError as error:
            raise _refusal(error, what) from None

    def normalise(self, body: bytes, what: str = "payload") -> bytes:
        """Check JSON bytes from outside and return them as `encode` would have written them."""
        return self.encode(self.decode(body, what), what)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema (draft 2020-12); `{}` takes everything."""
        return {} if self._adapter is None else self._adapter.json_schema()


def dump_json(value: Any, what: str = "value") -> bytes:
    """Return `value` as JSON bytes with sorted keys.

    Raises:
        InvalidArgumentError: It holds what JSON cannot.
    """
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise InvalidArgumentError(f"the {what} cannot be written as JSON: {error}") from None


def load_json(body: bytes, what: str = "record") -> Any:
    """Read JSON that Nexus itself wrote.

    Raises:
        DataLossError: It cannot be read back.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DataLossError(f"a {what} cannot be read back: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value, a pydantic model or a dataclass")


def _refusal(error: ValidationError, what: str) -> InvalidArgumentError:
    problems = [
        {"field": ".".join(str(part) for part in problem["loc"]) or what, "problem": problem["msg"]}
        for problem in error.errors(include_url=False, include_context=False, include_input=False)[:_PROBLEMS_MAX]
    ]
    first = problems[0]
    return InvalidArgumentError(f"the {what} does not fit: {first['field']}: {first['problem']}", problems=problems)
