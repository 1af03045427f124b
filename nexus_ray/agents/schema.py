"""Schemas: what a payload, a result or a state must look like, checked once at the door.

Law: what crosses Nexus is JSON in UTF-8 bytes, with keys in a fixed order, so equal content has equal bytes.
Pydantic models, dataclasses and plain JSON values are all that is taken; nothing is ever unpickled.
"""

import dataclasses
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from nexus_ray.core.errors import DataLossError, InvalidArgumentError

_PROBLEMS_MAX = 20  # More would only bury the first one.
# What pydantic always writes in the same order. In everything else there may be a mapping or a set.
_ORDERED = frozenset({
    "none", "bool", "int", "float", "str", "bytes", "decimal", "date", "time", "datetime", "timedelta", "uuid", "url",
    "multi-host-url", "enum", "literal", "default", "nullable", "union", "tagged-union", "list", "tuple", "model",
    "model-fields", "model-field", "dataclass", "dataclass-args", "dataclass-field", "definitions", "definition-ref",
})  # fmt: skip


class Schema:
    """The shape of a payload, a result or a state; `Any` takes every JSON value."""

    def __init__(self, annotation: Any = Any) -> None:
        self._adapter: TypeAdapter[Any] | None = None
        if annotation is not Any:
            self._adapter = TypeAdapter(annotation)
            # The adapter's own methods only wrap these, at half their cost again; every task passes through four.
            self._validate_python = self._adapter.validator.validate_python
            self._validate_json = self._adapter.validator.validate_json
            self._to_json = self._adapter.serializer.to_json

    def encode(self, value: Any, what: str = "payload") -> bytes:
        """Check a Python value and return its JSON bytes.

        Raises:
            InvalidArgumentError: The value does not fit; `details["problems"]` lists field and reason.
        """
        if self._adapter is None:
            return dump_json(value, what)
        try:
            checked = self._validate_python(value)
            if self._is_ordered:
                return self._to_json(checked)
            plain = self._adapter.dump_python(checked, mode="json")
        except ValidationError as error:
            raise _refusal(error, what) from None
        except PydanticSerializationError as error:
            raise InvalidArgumentError(f"the {what} cannot be written as JSON: {error}") from None
        return _dump_plain(_in_order(checked, plain), what)

    @cached_property
    def _is_ordered(self) -> bool:
        assert self._adapter is not None
        return all(kind in _ORDERED for kind in _kinds(self._adapter.core_schema))

    def decode(self, body: bytes, what: str = "payload") -> Any:
        """Check JSON bytes and return the Python value.

        Raises:
            InvalidArgumentError: Not JSON, or it does not fit; `details["problems"]` lists field and reason.
        """
        try:
            return orjson.loads(body) if self._adapter is None else self._validate_json(body)
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


def _kinds(schema: Any) -> Iterator[str]:
    """Name the kinds of schema that a pydantic core schema is made of; `extra` where a model takes any field."""
    if isinstance(schema, list | tuple):
        for inner in schema:
            yield from _kinds(inner)
    elif isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema["type"]
        if "allow" in (schema.get("extra_behavior"), schema.get("extra_fields_behavior")):
            yield "extra"
        for name, inner in schema.items():
            if name not in ("metadata", "default", "expected"):
                yield from _kinds(inner)


def _in_order(value: Any, plain: Any) -> Any:
    """Return `plain`, which is `value` in JSON, with sets sorted: their own order differs between processes."""
    if isinstance(plain, list):
        if isinstance(value, set | frozenset):
            return sorted(plain, key=lambda item: json.dumps(item, sort_keys=True))
        if isinstance(value, list | tuple) and len(value) == len(plain):
            return [_in_order(one, other) for one, other in zip(value, plain, strict=True)]
    elif isinstance(plain, dict):
        if isinstance(value, dict) and len(value) == len(plain):
            return {key: _in_order(one, plain[key]) for one, key in zip(value.values(), plain, strict=True)}
        if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
            return {name: _in_order(getattr(value, name, None), inner) for name, inner in plain.items()}
    return plain


def _dump_plain(plain: Any, what: str) -> bytes:
    try:
        return orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # A whole number of more than 64 bits, which JSON has and orjson has not.
        try:
            return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"the {what} cannot be written as JSON: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _in_order(value, value.model_dump(mode="json"))
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
