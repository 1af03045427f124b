import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from nexus_ray.agents.schema import Schema, dump_json, load_json
from nexus_ray.core.errors import DataLossError, InvalidArgumentError

TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str] = dataclasses.field(default_factory=set)


class Order(BaseModel):
    point: Point
    prices: dict[str, dict[str, int]] = {}
    note: str = ""


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(inner, rng) for key, inner in items}
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


@given(JSON, st.randoms())
def test_any_json_value_comes_back_and_its_bytes_do_not_depend_on_the_order_of_keys(
    value: Any, rng: random.Random
) -> None:
    schema = Schema()

    body = schema.encode(value)

    assert schema.decode(body) == value
    assert schema.encode(shuffled(value, rng)) == body == schema.normalise(body)


@pytest.mark.parametrize(
    ("annotation", "one", "other"),
    [
        (dict, {"b": 1, "a": 2}, {"a": 2, "b": 1}),
        (dict[str, int], {"b": 1, "a": 2**70}, {"a": 2**70, "b": 1}),
        (Any, {"b": {"d": 1, "c": 2}}, {"b": {"c": 2, "d": 1}}),
        (list[dict[str, Any]], [{"b": 1, "a": 2}], [{"a": 2, "b": 1}]),
        (Order, {"point": {"x": 1}, "prices": {"b": {}, "a": {"y": 1, "x": 2}}},
         {"prices": {"a": {"x": 2, "y": 1}, "b": {}}, "point": {"x": 1}}),
        (Loose, {"b": 1, "a": 2}, {"a": 2, "b": 1}),
    ],
)  # fmt: skip
def test_equal_content_has_equal_bytes_in_every_schema(annotation: Any, one: Any, other: Any) -> None:
    schema = Schema(annotation)

    assert schema.encode(one) == schema.encode(other)
    assert schema.encode(schema.decode(schema.encode(one))) == schema.encode(one)


@pytest.mark.parametrize("annotation", [Order, dict[str, Any], Any])
def test_sets_are_written_in_one_order(annotation: Any) -> None:
    words = [f"w{n:02}" for n in range(20)]
    value: Any = {"point": Point(1, set(reversed(words)))} if annotation is Order else {"tags": set(reversed(words))}

    body = Schema(annotation).encode(value).decode()

    assert [body.index(word) for word in words] == sorted(body.index(word) for word in words)


def test_a_model_is_written_with_its_fields_in_the_order_of_the_class() -> None:
    class Plain(BaseModel):
        b: int
        a: list[str] = []

    assert Schema(Plain).encode({"a": ["x"], "b": 1}) == b'{"b":1,"a":["x"]}'


@pytest.mark.parametrize(
    ("annotation", "body", "field"),
    [(Order, b'{"point":{"x":"one"}}', "point.x"), (Order, b"{}", "point"), (int, b'"x"', "payload"),
     (list[int], b'[1,"x"]', "1"), (Point, b'{"x":1,"tags":3}', "tags"), (Order, b"no json", "payload")],
)  # fmt: skip
def test_a_refusal_names_the_field(annotation: Any, body: bytes, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Schema(annotation).decode(body)

    assert caught.value.details["problems"][0]["field"] == field and field in str(caught.value)


def test_a_refusal_does_not_repeat_what_was_sent_and_lists_no_more_than_twenty_problems() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Schema(list[int]).encode(["s3cret"] * 100)

    assert len(caught.value.details["problems"]) == 20 and "s3cret" not in str(caught.value.details)


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {object()}}, 2**70, "\ud800", b"x", {"a": Exception()}])
def test_what_json_does_not_have_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        dump_json(value)


def test_a_record_that_is_not_json_is_a_loss_and_a_payload_that_is_not_is_the_callers_fault() -> None:
    with pytest.raises(DataLossError):
        load_json(b"{", "step")
    with pytest.raises(InvalidArgumentError):
        Schema().decode(b"{")
    assert load_json(b"{}") == Schema().decode(b"{}") == {}


def test_a_schema_for_everything_says_nothing_and_one_for_a_model_says_its_fields() -> None:
    assert Schema().json_schema() == {}
    assert set(Schema(Order).json_schema()["properties"]) == {"point", "prices", "note"}
