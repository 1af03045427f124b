"""A fleet in one process and without Ray: real hosts over a ledger, joined by a carrier of function calls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson

from nexus_ray.app import App
from nexus_ray.config import Settings
from nexus_ray.core.clock import Clock
from nexus_ray.core.context import CallContext
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import FailedPreconditionError, NotFoundError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.core.ids import new_id
from nexus_ray.goals.rights import Rights
from nexus_ray.ledger.goal import Goal, GoalRecord, Outcome
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.ledger.ports import Ledger
from nexus_ray.runtime.items import Item
from nexus_ray.runtime.placement import Member, Membership
from nexus_ray.runtime.process import HostProcess

SESSION = Session("s", "tester", "test", ("operator",), 9e9)


class InProcessFleet:
    """Implements `Carrier` and `front.Fleet` over hosts in this process."""

    def __init__(
        self, app: App, ledger: Ledger, settings: Settings, isolation: Any = None, clock: Clock | None = None,
        rights: Rights | None = None,
    ) -> None:
        self.app = app
        self.ledger = ledger
        self.settings = settings
        self.isolation = isolation
        self.clock = clock
        self.rights = rights
        self.hosts_by_name: dict[str, HostProcess] = {}
        self.epoch = 0
        self.drained: set[str] = set()

    def add(self, name: str) -> HostProcess:
        host = HostProcess(
            host=name, node="here", app=self.app, settings=self.settings, ledger=self.ledger, carrier=self,
            isolation=self.isolation, clock=self.clock, rights=self.rights,
        )  # fmt: skip
        host.start()
        self.hosts_by_name[name] = host
        return host

    def publish(self) -> None:
        self.epoch += 1
        members = (Member(name, "here", "", weight=float(name not in self.drained)) for name in self.hosts_by_name)
        membership = Membership(self.epoch, tuple(members))
        for host in self.hosts_by_name.values():
            host.set_membership(membership)

    async def drain(self, target: str, is_undone: bool = False) -> list[str]:
        if target not in self.hosts_by_name:
            raise NotFoundError(f"there is no host or node {target!r}")
        drained = self.drained - {target} if is_undone else self.drained | {target}
        if not self.hosts_by_name.keys() - drained:
            raise FailedPreconditionError("no host would be left that takes goals")
        self.drained = drained
        self.publish()
        return [target]

    async def lose(self, name: str) -> None:
        """A host dies: it is fenced, the others hear of it, and nothing it still does can be recorded."""
        host = self.hosts_by_name.pop(name)
        await self.ledger.fence(name)
        self.publish()
        await host.close()

    async def carry(self, member: Member, origin: str, epoch: int, items: Sequence[Item]) -> None:
        await asyncio.sleep(0)
        host = self.hosts_by_name.get(member.host)
        if host is None:
            raise UnavailableError("gone")
        host.deliver(origin, epoch, items)

    async def hand_on(self, member: Member, goals: Sequence[Goal]) -> None:
        await asyncio.sleep(0)
        if member.host not in self.hosts_by_name:
            raise UnavailableError("gone")
        self.hosts_by_name[member.host].poke(goals)

    async def poke(self, goals: Sequence[Goal]) -> None:
        for host in self.hosts_by_name.values():
            host.poke(goals)

    async def poke_cancel(self, record: GoalRecord, by: str) -> None:
        if record.host in self.hosts_by_name:
            self.hosts_by_name[record.host].coordinator.cancel(record.goal.id, by)

    async def agents(self, limit: int, tenant: str = "") -> list[dict[str, Any]]:
        return [row for host in self.hosts_by_name.values() for row in host.agents(limit, tenant)][:limit]

    async def hosts(self) -> list[dict[str, Any]]:
        return [host.status() for host in self.hosts_by_name.values()]

    def goal(self, type_name: str, payload: Any = None, *, timeout_s: float = 30.0, key: str = "") -> Goal:
        now = next(iter(self.hosts_by_name.values())).clock.now()
        headers = CallContext(SESSION, Deadline(now + timeout_s)).to_headers()
        return Goal(
            id=new_id("goal"), type=type_name, payload=orjson.dumps(payload), principal="tester", accepted_at=now,
            deadline_at=now + timeout_s, headers=headers, idempotency_key=key,
        )  # fmt: skip

    async def run(self, type_name: str, payload: Any = None, *, timeout_s: float = 30.0) -> Outcome:
        goal = self.goal(type_name, payload, timeout_s=timeout_s)
        await self.ledger.accept([goal])
        await self.poke([goal])
        return await self.outcome(goal)

    async def outcome(self, goal: Goal) -> Outcome:
        host = next(iter(self.hosts_by_name.values()))
        return await host.coordinator.wait(goal.id, goal.deadline_at)


@contextlib.asynccontextmanager
async def in_process_fleet(
    app: App, *, hosts: int = 2, ledger: Ledger | None = None, settings: Settings | None = None, isolation: Any = None,
    clock: Clock | None = None,
) -> AsyncIterator[InProcessFleet]:  # fmt: skip
    fleet = InProcessFleet(app, ledger or MemoryLedger(), settings or Settings(), isolation, clock)
    for number in range(hosts):
        fleet.add(f"host-{number}")
    fleet.publish()
    try:
        yield fleet
    finally:
        for host in fleet.hosts_by_name.values():
            await host.close()
