"""Revoked sessions and suspended identities: who may come in no more, how soon, and what becomes of their goals."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from nexus_ray.core.clock import ManualClock, SystemClock
from nexus_ray.core.errors import UnauthenticatedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.ledger.marks import Mark
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.security.revocation import Revocations, RevocationSettings
from nexus_ray.security.throttle import ThrottleSettings
from tests.api.conftest import Door, is_problem, submit

PATIENCE_S = 5.0


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await is_so():
            await asyncio.sleep(0.02)


async def test_a_suspended_identity_is_refused_at_every_front_door_until_it_is_restored(
    doors: Callable[..., Door],
) -> None:
    here, there = doors(), doors()

    async with here.client("operator", name="eve") as eve, there.client("operator") as ada:
        assert (await ada.get("/v1/goals")).status_code == 200
        told = await eve.post("/v1/identities:suspend", params={"principal": "ada"})
        suspended_at = time.perf_counter()

        async def is_refused() -> bool:
            return (await ada.get("/v1/goals")).status_code == 401

        await until(is_refused)
        print(f"\nsuspended to refused at another front door: {(time.perf_counter() - suspended_at) * 1000:.0f} ms")
        assert told.json()["principal"] == "ada"
        is_problem(await ada.get("/v1/goals"), 401, "unauthenticated")
        async with here.client("operator") as another_token:
            assert (await another_token.get("/v1/goals")).status_code == 401
        assert [one["principal"] for one in (await eve.get("/v1/identities")).json()["identities"]] == ["ada"]
        assert (await eve.get("/v1/goals")).status_code == 200

        await eve.post("/v1/identities:restore", params={"principal": "ada"})

        async def is_in() -> bool:
            return (await ada.get("/v1/goals")).status_code == 200

        await until(is_in)
        assert (await eve.get("/v1/identities")).json()["identities"] == []


async def test_a_revoked_session_is_refused_and_the_same_persons_other_one_is_not(door: Door) -> None:
    async with (
        door.client("operator", name="eve") as eve, door.client("operator") as first, door.client("operator") as second,
    ):  # fmt: skip
        await first.get("/v1/goals")

        async def seen() -> list[dict[str, Any]]:
            found = (await eve.get("/v1/sessions")).json()["sessions"]
            return [one for one in found if one["principal"] == "ada"]

        await until(seen)
        (ada,) = await seen()
        assert (ada["tenant"], ada["roles"], ada["is_revoked"]) == ("main", ["operator"], False)

        await eve.post("/v1/sessions:revoke", params={"id": ada["id"]})

        is_problem(await first.get("/v1/goals"), 401, "unauthenticated")
        assert (await second.get("/v1/goals")).status_code == 200
        assert [one["is_revoked"] for one in await seen() if one["id"] == ada["id"]] == [True]


async def test_a_suspended_users_live_stream_ends(door: Door) -> None:
    async with door.client("operator", name="eve") as eve, door.client("operator") as ada:
        goal_id = (await submit(ada, "forever")).json()["id"]
        session = await door.front.identify(ada.headers["authorization"].removeprefix("Bearer "))
        seen = []

        async def follow() -> None:
            async for entry in door.front.follow(session, goal_id, 0):
                seen.append(entry.kind.value)

        following = asyncio.create_task(follow())

        async def is_following() -> bool:
            return "accepted" in seen

        await until(is_following)

        told = await eve.post("/v1/identities:suspend", params={"principal": "ada"})

        with pytest.raises(UnauthenticatedError):
            await asyncio.wait_for(following, PATIENCE_S)
        assert told.status_code == 200 and "finished" not in seen


async def test_a_session_that_has_ended_reads_no_further(door: Door) -> None:
    session = await door.front.identify(door.token("operator"))
    now = time.time()

    await door.front.access.check(replace(session, expires_at=now - 60))

    with pytest.raises(UnauthenticatedError):
        await door.front.access.check(replace(session, expires_at=now - 181))


@pytest.mark.parametrize("cancels", [True, False])
async def test_the_goals_of_a_suspended_identity_go_on_or_are_cancelled_by_choice(door: Door, cancels: bool) -> None:
    async with door.client("operator", name="eve") as eve, door.client("operator") as ada:
        goal_id = (await submit(ada, "forever")).json()["id"]
        other_id = (await submit(eve, "forever")).json()["id"]
        query = {"principal": "ada", "cancel_goals": cancels}

        told = (await eve.post("/v1/identities:suspend", params=query)).json()

        assert told["goals_cancelled"] == int(cancels)
        status = (await eve.get(f"/v1/goals/{goal_id}", params={"wait": 5 if cancels else 0})).json()["status"]
        assert status == "cancelled" if cancels else status in ("accepted", "running")
        assert (await eve.get(f"/v1/goals/{other_id}")).json()["status"] in ("accepted", "running")
        assert (await submit(ada, "echo")).status_code == 401


async def test_nobody_suspends_himself_or_whom_another_tenant_has(door: Door) -> None:
    async with door.client("operator") as ada, door.client("operator", name="eve", tenant="acme") as eve:
        is_problem(await ada.post("/v1/identities:suspend", params={"principal": "ada"}), 409, "failed_precondition")
        query = {"principal": "ada", "tenant": "main"}
        is_problem(await eve.post("/v1/identities:suspend", params=query), 422, "invalid_argument")
        assert (await eve.post("/v1/identities:suspend", params={"principal": "ada"})).status_code == 200

        assert (await ada.get("/v1/goals")).status_code == 200
        assert (await ada.get("/v1/identities")).json()["identities"] == []
        tenants = {one["tenant"] for one in (await ada.get("/v1/sessions")).json()["sessions"]}
        assert tenants <= {"main"}


class Deaf(MemoryLedger):
    """A ledger whose list can be unreadable."""

    is_deaf = False

    async def marks(self, kinds: Sequence[str], after_version: int, limit: int) -> list[Mark]:
        if self.is_deaf:
            raise UnavailableError("the ledger is away")
        return await super().marks(kinds, after_version, limit)


async def test_a_list_that_is_too_old_or_was_never_read_lets_nobody_in() -> None:
    record, clock = Deaf(), ManualClock()
    session = Session("s", "ada", "test", (), 9e9)
    known, never = (Revocations(record, RevocationSettings(), clock) for _ in range(2))
    await known.check(session)

    record.is_deaf = True

    with pytest.raises(UnavailableError):
        await never.check(session)
    clock.advance(9.0)
    await known.check(session)
    clock.advance(2.0)
    with pytest.raises(UnavailableError):
        await known.check(session)
    record.is_deaf = False
    await known.check(session)
    await known.close()
    await never.close()


async def test_how_long_after_a_suspension_the_last_action_is_let_in() -> None:
    """Prints the figure; what it may be is the machine's business, that there is an end is ours."""
    ledger, took = MemoryLedger(), []
    gateways = [Revocations(ledger, RevocationSettings(look_every_s=0.05), SystemClock()) for _ in range(3)]
    for turn in range(20):
        session = Session(f"s{turn}", f"user-{turn}", "test", (), 9e9)
        for gateway in gateways:
            await gateway.check(session)
        await ledger.put_mark(Mark("identity", f"4:main/user-{turn}", 1.0, 9e9))
        suspended_at = time.perf_counter()

        async def last_allowed(gateway: Revocations, session: Session = session, since: float = suspended_at) -> float:
            last = 0.0
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        await gateway.check(session)
                    except UnauthenticatedError:
                        return last
                    last = time.perf_counter() - since
                    await asyncio.sleep(0.001)

        took += await asyncio.gather(*(last_allowed(gateway) for gateway in gateways))
        for gateway in gateways:
            with pytest.raises(UnauthenticatedError):
                await gateway.check(session)
    for gateway in gateways:
        await gateway.close()

    took.sort()
    print(f"\nlast allowed action after a suspension, look every 50 ms: p50 {took[len(took) // 2] * 1000:.0f} ms,"
          f" p99 {took[-1] * 1000:.0f} ms over {len(took)}")  # fmt: skip
    assert len(took) == 60


async def test_who_fails_too_often_is_told_to_wait_and_others_are_not(doors: Callable[..., Door]) -> None:
    door = doors(throttle=ThrottleSettings(name_failures_max=3))
    head, claims, signature = door.token("operator").split(".")
    forged = {"Authorization": f"Bearer {head}.{claims}.{'A' * len(signature)}"}

    async with door.client("operator") as ada, door.client("operator", name="eve") as eve, door.client() as stranger:
        answers = [await stranger.get("/v1/goals", headers=forged) for _ in range(5)]
        locked = await ada.get("/v1/goals")

        assert [answer.status_code for answer in answers] == [401, 401, 401, 401, 429]
        assert int(is_problem_of(answers[-1]).headers["retry-after"]) >= 1
        assert locked.status_code == 429  # From the same address, under the same name.
        assert (await eve.get("/v1/goals")).status_code == 200
        assert (await stranger.get("/v1/goals")).status_code == 401
        elsewhere = httpx2.ASGITransport(app=door.app, client=("203.0.113.9", 1))
        async with httpx2.AsyncClient(transport=elsewhere, base_url="http://fleet", headers=ada.headers) as at_home:
            assert (await at_home.get("/v1/goals")).status_code == 200


def is_problem_of(response: httpx2.Response) -> httpx2.Response:
    is_problem(response, 429, "resource_exhausted")
    return response
