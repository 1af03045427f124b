"""What is not taken: bodies of every wrong kind, too much of anything, and a ledger or a bug in the way."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from nexus_ray.api.limits import SECURITY_HEADERS
from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import DataLossError, FencedError, UnavailableError
from nexus_ray.ledger.goal import GoalQuery
from nexus_ray.ledger.ports import Ledger
from nexus_ray.security.keys import KeySet
from tests.api.conftest import Door, is_problem, submit
from tests.support.in_process import InProcessFleet

JSON = {"Content-Type": "application/json"}


async def test_an_unknown_goal_type_is_not_found_and_the_known_ones_are_named(operator: httpx2.AsyncClient) -> None:
    detail = is_problem(await submit(operator, "triple"), 404, "not_found")["detail"]

    assert "triple" in detail
    assert all(name in detail for name in ("double", "echo", "forever", "broken"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"type": "double", "payload": {"n": "many"}}, "n"),
        ({"type": "double", "payload": []}, "payload"),
        ({"type": "double", "payload": {"n": 1}, "extra": 1}, "extra"),
        ({"type": 7}, "type"),
        ({"type": ""}, "type"),
        ({"type": "x" * 64}, "type"),
        ({}, "type"),
        ([], "body"),
        (None, "body"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_by_field_before_anything_is_accepted(
    door: Door, operator: httpx2.AsyncClient, body: Any, field: str
) -> None:
    response = await operator.post("/v1/goals", content=json.dumps(body), headers=JSON)

    problem = is_problem(response, 422, "invalid_argument")
    assert field in [error["field"] for error in problem["errors"]]
    assert await door.fleet.ledger.goals(GoalQuery()) == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{'type': 'double'}", b"\xff\xfe", b'{"type": NaN}', b'{"type":"echo","payload":NaN}',
        b'{"type":"echo","payload":Infinity}', b'{"type":"echo","payload":1e999}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"type":"echo","payload":"\\ud800"}', b'{"type":"echo"} {}',
    ],
)  # fmt: skip
async def test_what_is_not_json_is_refused(operator: httpx2.AsyncClient, body: bytes) -> None:
    is_problem(await operator.post("/v1/goals", content=body, headers=JSON), 400, "invalid_argument")


@pytest.mark.parametrize("depth", [260, 1000])
async def test_a_payload_that_is_too_deep_to_be_written_again_is_refused(
    operator: httpx2.AsyncClient, depth: int
) -> None:
    body = '{"type":"echo","payload":' + "[" * depth + "]" * depth + "}"

    is_problem(await operator.post("/v1/goals", content=body, headers=JSON), 422, "invalid_argument")


@pytest.mark.parametrize("text", ["\x00", "a\x1b[2Jb", "\u202e", "\ufffe", "🌵", '"}\n', "x" * 100_000])
async def test_odd_text_comes_back_as_it_was_sent(operator: httpx2.AsyncClient, text: str) -> None:
    response = await submit(operator, "echo", {text: text}, **{"Prefer": "wait=5"})

    assert response.json()["payload"] == response.json()["result"] == {text: text}


@pytest.mark.parametrize("type", ["double\x00", "dou\nble", "../double", "\u0000"])
async def test_an_odd_type_is_just_an_unknown_one(operator: httpx2.AsyncClient, type: str) -> None:
    is_problem(await submit(operator, type), 404, "not_found")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/xml", "", "application/jsonp", "multipart/form-data"]
)
async def test_another_media_type_is_refused(operator: httpx2.AsyncClient, media_type: str) -> None:
    response = await operator.post("/v1/goals", content=b'{"type":"echo"}', headers={"Content-Type": media_type})

    is_problem(response, 415, "invalid_argument")


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;"])
async def test_json_is_json_however_it_is_written(operator: httpx2.AsyncClient, media_type: str) -> None:
    response = await operator.post("/v1/goals", content=b'{"type":"echo"}', headers={"Content-Type": media_type})

    assert response.status_code == 202


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 100):
        yield body[at : at + 100]


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(doors: Callable[..., Door]) -> None:
    door = doors(runtime=RuntimeSettings(body_bytes_max=1000))
    frame = len('{"type":"echo","payload":""}')
    fits = ('{"type":"echo","payload":"' + "x" * (1000 - frame) + '"}').encode()
    large = fits.replace(b'x"', b'xx"')

    async with door.client("operator") as client:
        for body in (fits, in_pieces(fits)):
            assert (await client.post("/v1/goals", content=body, headers=JSON)).status_code == 202
        for body in (large, in_pieces(large)):
            problem = is_problem(await client.post("/v1/goals", content=body, headers=JSON), 413, "invalid_argument")
            assert "1000 bytes" in problem["detail"]

    assert len(await door.fleet.ledger.goals(GoalQuery())) == 2


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 5000, "1001"])
async def test_a_length_that_lies_is_refused(doors: Callable[..., Door], length: str) -> None:
    door = doors(runtime=RuntimeSettings(body_bytes_max=1000))

    async with door.client("operator") as client:
        response = await client.post("/v1/goals", content=b"{}", headers={**JSON, "Content-Length": length})

    is_problem(response, 413, "invalid_argument")


async def test_too_many_at_one_time_are_refused_and_told_when_to_come_back(doors: Callable[..., Door]) -> None:
    door = doors(runtime=RuntimeSettings(requests_in_flight_max=2, wait_s_max=30.0))
    async with door.client("operator") as client:
        place = (await submit(client, "forever")).headers["location"]

        waiting = [asyncio.create_task(client.get(place, params={"wait": 30})) for _ in range(2)]
        refused = await client.get("/health")
        for _ in range(1000):
            if refused.status_code == 503:
                break
            await asyncio.sleep(0)
            refused = await client.get("/health")

        is_problem(refused, 503, "unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert (await client.get("/health")).status_code == 200


class Failing:
    """A ledger whose named methods fail, as on a full disk; the rest is the real one."""

    def __init__(self, ledger: Ledger, error: Exception, *methods: str) -> None:
        self._ledger = ledger
        self._error = error
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        if name not in self._methods:
            return getattr(self._ledger, name)

        async def fail(*_: Any) -> Any:
            raise self._error

        return fail


async def test_a_ledger_that_cannot_write_refuses_and_nothing_is_accepted(
    fleet: InProcessFleet, doors: Callable[..., Door]
) -> None:
    full: Any = Failing(fleet.ledger, UnavailableError("the disk is full", retry_after_s=7), "accept")
    door = doors(ledger=full)

    async with door.client("operator") as client:
        response = await submit(client)

    is_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "7"
    assert await door.fleet.ledger.goals(GoalQuery()) == []


async def test_an_accepted_goal_is_told_as_accepted_even_if_it_cannot_be_read_back(doors: Callable[..., Door]) -> None:
    door = doors()
    door.front._ledger = Failing(door.fleet.ledger, UnavailableError("gone"), "goal")

    async with door.client("operator") as client:
        response = await submit(client, **{"Prefer": "wait=1"})

    assert response.status_code == 202
    assert (await door.fleet.ledger.goal(response.json()["id"])) is not None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnavailableError("gone"), 503, "unavailable"),
        (FencedError("fenced"), 409, "aborted"),
        (DataLossError("row 7 of /var/lib/secret is damaged"), 500, "data_loss"),
        (RuntimeError("a secret of the inside"), 500, "internal"),
    ],
)
async def test_what_goes_wrong_inside_is_a_problem_without_a_leak(
    doors: Callable[..., Door], error: Exception, status: int, code: str
) -> None:
    door = doors()
    door.front._ledger = Failing(door.fleet.ledger, error, "goals")

    async with door.client("operator") as client:
        response = await client.get("/v1/goals")

    is_problem(response, status, code)
    assert "secret" not in response.text and "Traceback" not in response.text
    for name, value in SECURITY_HEADERS.items():
        assert response.headers[name] == value


async def test_events_that_break_off_inside_end_the_stream_and_can_be_taken_up(doors: Callable[..., Door]) -> None:
    door = doors()
    async with door.client("operator") as client:
        place = (await submit(client, **{"Prefer": "wait=5"})).headers["location"]
        door.front._ledger = Failing(door.fleet.ledger, UnavailableError("gone"), "journal")
        broken = await client.get(f"{place}/events")
        door.front._ledger = door.fleet.ledger
        whole = await client.get(f"{place}/events")

    assert (broken.status_code, broken.text) == (200, "")
    assert "event: finished" in whole.text


@pytest.mark.parametrize("role", [(), ("reader",)])
async def test_every_answer_has_the_security_headers_and_no_banner(door: Door, role: tuple[str]) -> None:
    async with door.client(*role) as client:
        for path in ("/health", "/v1/goals", "/nowhere", "/metrics", "/ready", "/openapi.json"):
            response = await client.get(path)

            for name, value in SECURITY_HEADERS.items():
                assert response.headers.get_list(name) == [value]
            assert not {"server", "x-powered-by", "via"} & set(response.headers)
            assert "access-control-allow-origin" not in response.headers


async def test_the_stream_of_events_has_each_security_header_once(operator: httpx2.AsyncClient) -> None:
    place = (await submit(operator, **{"Prefer": "wait=5"})).headers["location"]

    response = await operator.get(f"{place}/events")

    for name, value in SECURITY_HEADERS.items():
        assert response.headers.get_list(name) == [value]


async def test_health_is_open_and_says_nothing(door: Door) -> None:
    async with door.client() as stranger:
        response = await stranger.get("/health")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready_is_yes_when_hosts_ledger_and_keys_answer(reader: httpx2.AsyncClient) -> None:
    response = await reader.get("/ready")

    assert response.status_code == 200
    assert response.json() == {"ready": True, "hosts": True, "ledger": True, "keys": True}


class Silent:
    """A fleet of which nobody answers, or that cannot be asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def hosts(self) -> list[dict[str, Any]]:
        if self._error:
            raise self._error
        return []


@pytest.mark.parametrize("error", [UnavailableError("full"), DataLossError("damaged")])
async def test_ready_is_no_while_the_ledger_does_not_answer(doors: Callable[..., Door], error: Exception) -> None:
    door = doors()
    door.front._ledger = Failing(door.fleet.ledger, error, "goals")

    async with door.client("reader") as client:
        response = await client.get("/ready")

    assert response.status_code == 503
    assert response.json() == {"ready": False, "hosts": True, "ledger": False, "keys": True}


@pytest.mark.parametrize("hosts", [Silent(), Silent(UnavailableError("no directory"))])
async def test_ready_is_no_while_no_host_answers(doors: Callable[..., Door], hosts: Silent) -> None:
    async with doors(front_fleet=hosts).client("reader") as client:
        response = await client.get("/ready")

    assert response.status_code == 503
    assert response.json() == {"ready": False, "hosts": False, "ledger": True, "keys": True}


async def test_without_keys_nobody_is_known_and_the_door_is_not_ready(doors: Callable[..., Door]) -> None:
    door = doors(keys=KeySet({}))

    assert (await door.front.ready())["keys"] is False
    async with door.client("reader") as client:
        is_problem(await client.get("/ready"), 401, "unauthenticated")


async def test_metrics_are_prometheus_text_that_counts_requests_by_route(operator: httpx2.AsyncClient) -> None:
    await operator.get("/v1/goals/goal-0")

    response = await operator.get("/metrics")

    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'route="/v1/goals/{goal_id}"' in response.text
    assert "goal-0" not in response.text
