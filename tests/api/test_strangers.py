"""Who gets in: nobody unasked, by whatever path, and then only to what a role grants."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
from fastapi.routing import APIRoute

from nexus_ray.api.app import build_app
from nexus_ray.api.gate import OPEN_PATHS
from nexus_ray.config import RuntimeSettings
from nexus_ray.ledger.goal import GoalQuery
from nexus_ray.security.policy import ACTIONS, Decision, PolicyRequest
from tests.api.conftest import Door, is_problem, submit

# The routes do not depend on what stands behind them, so they can be listed before there is anything.
ROUTES = [
    (method, route.path_format)
    for route in build_app(None, RuntimeSettings()).routes  # type: ignore[arg-type]
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
]
CLOSED = [(method, path) for method, path in ROUTES if path not in OPEN_PATHS]
STRANGERS: dict[str, list[tuple[bytes, bytes]]] = {
    "no header": [],
    "basic": [(b"authorization", b"Basic YWRhOmFkYQ==")],
    "empty": [(b"authorization", b"")],
    "empty bearer": [(b"authorization", b"Bearer ")],
    "no scheme": [(b"authorization", b"x.y.z")],
    "garbage": [(b"authorization", b"Bearer x.y.z")],
    "not ascii": [(b"authorization", "Bearer \u00fc".encode("latin-1"))],
    "long": [(b"authorization", b"Bearer " + b"x" * 10_000)],
}


class Away:
    """A policy engine that never decides. Implements `PolicyEngine`."""

    revision = "1"

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        return request

    def decide(self, request: PolicyRequest) -> Decision:
        return Decision(False, "engine_timeout", self.revision)


def test_the_list_of_routes_is_not_empty() -> None:
    assert ("POST", "/v1/goals") in CLOSED and ("GET", "/health") not in CLOSED
    assert len(CLOSED) >= 13


def test_what_is_open_is_health_and_the_four_ways_to_log_in() -> None:
    assert {path for _, path in ROUTES} & OPEN_PATHS == OPEN_PATHS
    assert {"/health", "/v1/token", "/v1/saml/login", "/v1/saml/acs", "/v1/saml/metadata"} == OPEN_PATHS


@pytest.mark.parametrize("who", STRANGERS)
async def test_every_closed_route_refuses_a_stranger_with_the_same_answer(door: Door, who: str) -> None:
    async with door.client() as client:
        answers = [
            await client.request(method, path.replace("{goal_id}", "goal-0"), headers=STRANGERS[who])
            for method, path in CLOSED
        ]

    for answer in answers:
        assert is_problem(answer, 401, "unauthenticated") == answers[0].json()
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.content == answers[0].content
        assert dict(answer.headers) == dict(answers[0].headers)


async def test_all_strangers_are_refused_alike(door: Door) -> None:
    async with door.client() as client:
        answers = [await client.get("/v1/goals", headers=headers) for headers in STRANGERS.values()]

    assert len({(answer.status_code, answer.content) for answer in answers}) == 1


async def test_a_token_is_let_in_and_two_at_once_are_not(door: Door) -> None:
    good = (b"Authorization", f"Bearer {door.token('reader')}".encode())

    async with door.client() as client:
        assert (await client.get("/v1/goals", headers=[good])).status_code == 200
        assert (await client.get("/v1/goals", headers=[(good[0], good[1].replace(b"Bearer", b"bEARER"))])).is_success
        is_problem(await client.get("/v1/goals", headers=[good, good]), 401, "unauthenticated")
        is_problem(await client.get("/v1/goals", params={"access_token": "x"}), 401, "unauthenticated")


async def test_a_token_of_another_fleet_is_a_strangers(doors: Callable[..., Door], tmp_path: Any) -> None:
    door = doors()
    other = Door(door.fleet, door.front, door.app, tmp_path / "other")
    other.folder.mkdir(mode=0o700)

    async with other.client("operator") as client:
        is_problem(await client.get("/v1/goals"), 401, "unauthenticated")


ODD_PATHS = (
    "/v1/goals", "//v1/goals", "/v1//goals", "/v1%2fgoals", "/v1/goals/", "/V1/Goals", "/health/../v1/goals",
    "/health/%2e%2e/v1/goals", "/v1/goals;/health", "/v1/goals/..%2f..%2fhealth", "/health/", "//health", "/HEALTH",
    "/docs", "/redoc", "/openapi.json", "/", "/nowhere", "/v1/goals%00", "/metrics/", "/.%2fv1/goals",
)  # fmt: skip


async def test_no_way_of_writing_a_request_gets_round_the_gate(door: Door) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    methods = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW", "get")
    for method, path in itertools.product(methods, ODD_PATHS):
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(b"host", b"fleet")], "client": None, "server": None,
        }  # fmt: skip
        sent: list[dict[str, Any]] = []

        await door.app(scope, receive, send)

        assert sent[0]["status"] == 401, (method, path)


async def test_whoever_is_known_is_told_that_there_is_nothing(operator: httpx2.AsyncClient) -> None:
    for path in ("//v1/goals", "/v1/goals/", "/V1/Goals", "/nowhere", "/docs", "/health/"):
        is_problem(await operator.get(f"http://fleet{path}"), 404, "not_found")


async def test_a_method_that_a_route_does_not_have_is_refused_with_those_it_has(operator: httpx2.AsyncClient) -> None:
    answer = await operator.request("DELETE", "/v1/goals/goal-0")

    is_problem(answer, 405, "invalid_argument")
    assert answer.headers["allow"] == "GET"


async def test_a_websocket_is_refused_too(door: Door) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": "websocket", "path": "/v1/goals", "headers": [], "query_string": b"", "subprotocols": []}
    await door.app(scope, receive, send)

    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_reader_reads_and_may_neither_submit_nor_cancel(door: Door) -> None:
    async with door.client("operator") as operator, door.client("reader") as reader:
        place = (await submit(operator, "forever")).headers["location"]
        before = len(await door.fleet.ledger.goals(GoalQuery()))

        assert (await reader.get(place)).status_code == 200
        assert (await reader.get("/metrics")).status_code == 200
        is_problem(await submit(reader), 403, "permission_denied")
        is_problem(await reader.post(f"{place}/cancel"), 403, "permission_denied")
        assert (await operator.get(place)).json()["status"] in ("accepted", "running")
        assert len(await door.fleet.ledger.goals(GoalQuery())) == before
        assert (await operator.post(f"{place}/cancel")).status_code == 202


@pytest.mark.parametrize("roles", [("nobody",), ("Operator",), ("operators", "read")])
async def test_a_role_that_nobody_knows_opens_nothing(door: Door, roles: tuple[str, ...]) -> None:
    async with door.client(*roles) as client:
        is_problem(await client.get("/v1/goals"), 403, "permission_denied")
        is_problem(await submit(client), 403, "permission_denied")


# What is behind `/ray/` decides by its path: see test_dashboard.
@pytest.mark.parametrize(("method", "path"), [one for one in CLOSED if not one[1].startswith("/ray/")])
async def test_a_route_needs_exactly_the_action_that_the_document_names(
    doors: Callable[..., Door], method: str, path: str
) -> None:
    first = doors()
    async with first.client("operator") as client:
        operation = (await client.get("/openapi.json")).json()["paths"][path][method.lower()]
        place = (await submit(client, "asks" if "{key}" in path else "forever", {})).headers["location"]
        while "{key}" in path and not (await client.get("/v1/questions")).json()["questions"]:
            await asyncio.sleep(0.005)
    action = operation.get("x-nexus-action")
    door = doors(roles={"only": frozenset({action or "goal:read"}), "others": frozenset(set(ACTIONS) - {action})})
    body = {"json": {"type": "double", "payload": {"n": 1}}} if path == "/v1/goals" and method == "POST" else {}
    body = {"json": {"approved": True}} if "{key}" in path else body
    if path.endswith(":batch"):
        body = {"content": b'{"type":"echo"}', "headers": {"Content-Type": "application/x-ndjson"}}
    url = path.replace("/v1/goals/{goal_id}", place).replace("{host}", "host-0").replace("{type}", "tally")
    url = url.replace("{key}", "main").replace("{seq}", "0").replace("{name}", "case-7")
    if path.endswith("/consistency"):
        url += "?size=1"
    if path == "/v1/audit/holds/{name}":
        body = {"json": {"field": "goal", "value": "goal-1"}}
        if method == "DELETE":
            async with door.client("only") as client:
                await client.put(url, **body)
    if path.startswith(("/v1/sessions:", "/v1/identities:")):
        url += "?id=9f2c&principal=somebody"

    if path.endswith("/events"):  # So that the stream ends.
        async with first.client("operator") as client:
            await client.post(f"{place}/cancel")
    away = doors(engine=Away())
    async with door.client("only") as only, door.client("others") as others, away.client("operator") as unsure:
        refused = await others.request(method, url, **body)
        undecided = await unsure.request(method, url, **body)
        allowed = await only.request(method, url, **body)

    assert allowed.is_success, allowed.text
    if action:
        is_problem(refused, 403, "permission_denied")
        is_problem(undecided, 503, "unavailable")
        assert int(undecided.headers["retry-after"]) >= 1
    else:
        assert refused.is_success


async def test_who_may_submit_but_not_read_learns_the_id_and_no_more(doors: Callable[..., Door]) -> None:
    door = doors(roles={"submitter": frozenset({"goal:submit"})})

    async with door.client("submitter") as client:
        accepted = await submit(client, **{"Prefer": "wait=5"})
        read = await client.get(accepted.headers["location"])

    assert accepted.status_code == 202
    assert set(accepted.json()) == {"id", "type", "status"}
    is_problem(read, 403, "permission_denied")
    assert len(await door.fleet.ledger.goals(GoalQuery())) == 1
