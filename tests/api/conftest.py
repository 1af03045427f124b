"""The front door over a fleet in this process: everything is real but Ray and the socket."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

import nexus_ray as nexus
from nexus_ray.audit.auditor import Auditor
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.config import RuntimeSettings, Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.goals.spec import Specs
from nexus_ray.ledger.ports import Ledger
from nexus_ray.ledger.sqlite import SqliteLedger
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.runtime.log_ins import open_token_exchange
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.authz import Authorizer, ensure_role_file, load_roles
from nexus_ray.security.keys import KeySet, load_key_set, load_or_create_issuer_key
from nexus_ray.security.policy import PolicyEngine
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.throttle import ThrottleSettings
from nexus_ray.security.tokens import TokenSettings, issue_token
from tests.support.apps import Standing, borrow, engine_of, give_back
from tests.support.auditing import auditor_of
from tests.support.in_process import InProcessFleet, in_process_fleet


class Order(BaseModel):
    n: int = 0


def make_app() -> nexus.App:
    app = nexus.App("shop")

    @app.agent
    class Doubler(nexus.Agent):
        async def handle(self, payload: Order) -> int:
            return payload.n * 2

    @app.agent
    class Tally(nexus.Agent):
        state: Order

        async def handle(self, payload: int) -> int:
            self.state.n += payload
            return self.state.n

    @app.goal
    async def double(request: Order, team: nexus.Team) -> int:
        """Double a number."""
        return await team.ask("doubler", request)

    @app.goal
    async def echo(request: Any, team: nexus.Team) -> Any:
        return request

    @app.goal
    async def count(request: int, team: nexus.Team) -> int:
        return await team.ask("tally", request)

    @app.goal
    async def nested(request: Any, team: nexus.Team) -> Any:
        return await team.goal("echo", request)

    @app.goal
    async def forever(request: Any, team: nexus.Team) -> Any:
        await asyncio.Event().wait()

    @app.goal
    async def asks(request: dict[str, Any], team: nexus.Team) -> list[Any]:
        answer = await team.approval("Ship it?", **request)
        return [answer.approved, answer.by, answer.comment]

    @app.goal
    async def broken(request: Any, team: nexus.Team) -> Any:
        raise ValueError("a secret of the inside")

    return app


@dataclass
class Door:
    """A front door, the fleet behind it, and clients for it."""

    fleet: InProcessFleet
    front: FrontDoor
    app: Any
    folder: Path
    standing: Standing | None = None

    def token(self, *roles: str, name: str = "ada", tenant: str = "main") -> str:
        key = load_or_create_issuer_key(self.folder)
        return issue_token(key, TokenSettings(), name, roles, 600.0, time.time(), tenant=tenant)

    def client(self, *roles: str, name: str = "ada", tenant: str = "main") -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token(*roles, name=name, tenant=tenant)}"} if roles else {}
        transport = httpx2.ASGITransport(app=self.app)
        return httpx2.AsyncClient(transport=transport, base_url="http://fleet", headers=headers)

    async def close(self) -> None:
        await self.front.close()
        if self.standing is not None:
            give_back(self.standing)


def make_door(
    fleet: InProcessFleet,
    folder: Path,
    *,
    ledger: Ledger | None = None,
    runtime: RuntimeSettings | None = None,
    keys: KeySet | None = None,
    roles: dict[str, frozenset[str]] | None = None,
    front_fleet: Any = None,
    throttle: ThrottleSettings | None = None,
    audit: AuditSettings | None = None,
    auditor: Auditor | None = None,
    security: SecuritySettings | None = None,
    engine: PolicyEngine | None = None,
) -> Door:
    folder.mkdir(mode=0o700, exist_ok=True)
    load_or_create_issuer_key(folder)
    ensure_role_file(folder)
    clock = SystemClock()
    granted = {**load_roles(folder), **(roles or {})}
    front = FrontDoor(
        specs=Specs(fleet.app.agents, fleet.app.goals),
        ledger=ledger or fleet.ledger,
        fleet=front_fleet or fleet,
        authenticator=Authenticator(keys or load_key_set(folder), TokenSettings(), clock, security=security),
        authorizer=Authorizer(granted, engine=engine or engine_of(granted)),
        clock=clock,
        settings=fleet.settings.goals,
        trace_folder=folder / "traces",
        auditor=auditor or auditor_of(Settings(state_dir=folder, audit=audit or AuditSettings()), clock),
    )
    settings = Settings(
        state_dir=folder, throttle=throttle or ThrottleSettings(), security=security or SecuritySettings()
    )
    front.token_exchange = open_token_exchange(settings, front, clock, front._auditor)
    standing = borrow(front, runtime or RuntimeSettings(wait_s_max=5.0), throttle)
    return Door(fleet, front, standing.app, folder, standing)


@contextlib.asynccontextmanager
async def make_fleet(folder: Path, hosts: int = 2) -> AsyncIterator[InProcessFleet]:
    ledger = await SqliteLedger.open(folder / "ledger.sqlite")
    try:
        async with in_process_fleet(make_app(), ledger=ledger, settings=Settings(), hosts=hosts) as fleet:
            yield fleet
    finally:
        await ledger.close()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[InProcessFleet]:
    async with make_fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
async def doors(fleet: InProcessFleet, tmp_path: Path) -> AsyncIterator[Callable[..., Door]]:
    made: list[Door] = []
    # One log for all of them, as a fleet has one.
    auditor = auditor_of(Settings(state_dir=tmp_path / "state"), SystemClock())

    def make(**options: Any) -> Door:
        if "audit" not in options:
            options["auditor"] = auditor
        made.append(make_door(fleet, tmp_path / "state", **options))
        return made[-1]

    yield make
    for door in made:
        await door.close()


@pytest.fixture
def door(doors: Callable[..., Door]) -> Door:
    return doors()


@pytest.fixture
async def operator(door: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client("operator") as client:
        yield client


@pytest.fixture
async def reader(door: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client("reader") as client:
        yield client


async def submit(client: httpx2.AsyncClient, type: str = "double", payload: Any = None, **headers: str) -> Any:
    body = {"type": type, "payload": {"n": 21} if payload is None else payload}
    return await client.post("/v1/goals", json=body, headers=headers)


def is_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem document as RFC 9457 has it, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:nexus:problem:{code}"
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"] and body["detail"]
    return body
