"""Clients: submit goals under idempotency keys, again and again until they are sure, wait, and sometimes cancel.

Law: a client believes only what it was told. What it was told is what the referee holds the fleet to.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from nexus_ray.core.context import CallContext
from nexus_ray.core.deadline import Deadline
from nexus_ray.core.errors import AlreadyExistsError, NexusError, ResourceExhaustedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.goals.questions import answer_question
from nexus_ray.ledger.goal import Goal, Outcome, RequestCancel
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

SESSION = Session("s", "tester", "test", ("operator",), 9e9)
TRACEPARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"
LONG_S = 90.0  # Longer than any trouble lasts: such a goal must reach its proper end.


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants: a goal, when, by which door, and whether it changes its mind after some seconds."""

    type: str
    payload: Any
    at: float
    timeout_s: float = LONG_S
    is_direct: bool = False
    cancel_after_s: float | None = None


def wishes(random: Random) -> list[Wish]:
    """Draw what the clients of a run want."""
    keys = ["a", "a", "b", "c"]
    drawn = []
    for _ in range(random.randint(2, 6)):
        type_ = random.choice(
            ["fan", "count", "count", "count", "clumsy", "tree", "race", "quorum", "late", "broken", "pay", "pay",
             "patient", "trip", "trip",
             "parent_of_the_late"]
        )  # fmt: skip
        payload: Any
        timeout_s = LONG_S
        match type_:
            case "fan":
                payload = random.sample(range(20), random.randint(1, 5))
            case "count" | "clumsy":
                payload = random.choices(keys, k=random.randint(2, 5))
            case "tree":
                payload = random.randint(0, 2)
            case "trip":
                payload = random.random() < 0.6
            case "race" | "patient":
                payload = random.choice(keys)
            case "late" | "parent_of_the_late":
                payload, timeout_s = 60.0, random.uniform(0.5, 4.0)
            case _:
                payload = random.randint(2, 5)
        drawn.append(
            Wish(
                type_,
                payload,
                at=random.uniform(0.0, 1.5),
                timeout_s=timeout_s,
                is_direct=random.random() < 0.4,
                cancel_after_s=random.uniform(0.0, 2.0) if random.random() < 0.15 else None,
            )
        )
    return drawn


class Client:
    """One caller with one wish; its process is never killed, only its calls."""

    def __init__(self, world: "World", number: int, wish: Wish, process: Process) -> None:
        self._world = world
        self._number = number
        self._wish = wish
        self._process = process
        self._random = Random(f"{world.seed} client {number}")
        self._ledger = world.ledger_client()
        self._attempt = 0

    async def run(self) -> None:
        wish, world = self._wish, self._world
        await asyncio.sleep(wish.at)
        goal_id, outcome = await self._insist(self._submit)
        world.tell("accepted", goal_id)
        if wish.cancel_after_s is not None and outcome is None:
            await asyncio.sleep(wish.cancel_after_s)
            await self._insist(lambda: self._cancel(goal_id))
        if outcome is None:
            outcome = await self._insist(lambda: self._wait(goal_id))
        world.tell("told", goal_id, outcome.status)
        world.referee.told(goal_id, outcome)
        if self._random.random() < 0.3:
            again, _ = await self._insist(self._accept)
            world.referee.same_goal(goal_id, again)

    async def _insist(self, work: Any) -> Any:
        while True:
            try:
                return await work()
            except (UnavailableError, ResourceExhaustedError):
                await asyncio.sleep(self._random.uniform(0.1, 0.6))

    def _goal(self) -> Goal:
        """Make the goal of this attempt: every attempt a new id, and all the same key."""
        self._attempt += 1
        wish, now = self._wish, self._process.now()
        headers = CallContext(SESSION, Deadline(now + wish.timeout_s), TRACEPARENT).to_headers()
        return Goal(
            id=f"goal-{self._number}-{self._attempt}", type=wish.type, payload=orjson.dumps(wish.payload),
            principal=SESSION.principal, accepted_at=now, deadline_at=now + wish.timeout_s, headers=headers,
            idempotency_key=f"key-{self._number}",
        )  # fmt: skip

    async def _submit(self) -> tuple[str, Outcome | None]:
        if self._wish.is_direct and self._attempt < 3:
            return await self._submit_direct()
        return await self._accept()

    async def _submit_direct(self) -> tuple[str, Outcome | None]:
        world = self._world
        members = world.placement.membership.members
        host = world.hosts[self._random.choice(members).host] if members else None
        if host is None or host.inside is None:
            raise UnavailableError("there is no host")
        acceptance, outcome = await world.network.call(host.process, "submit", host.accept_and_run, self._goal())
        return acceptance.goal_id, outcome

    async def _accept(self) -> tuple[str, Outcome | None]:
        """As `FrontDoor.submit`: on record first, then a poke for the owner."""
        world, goal = self._world, self._goal()
        (acceptance,) = await self._ledger.accept([goal])
        world.referee.accepted(acceptance.goal_id)
        if self._random.random() < 0.1:
            await self._try_another_payload(goal)
        if acceptance.is_new and self._random.random() < 0.8:
            self._process.start(self._poke(goal))
        return acceptance.goal_id, None

    async def _try_another_payload(self, goal: Goal) -> None:
        other = Goal(
            f"{goal.id}-x", goal.type, b"[]", goal.principal, goal.accepted_at, goal.deadline_at, goal.headers,
            goal.idempotency_key,
        )  # fmt: skip
        try:
            await self._ledger.accept([other])
        except AlreadyExistsError:
            return
        except UnavailableError:
            return
        self._world.referee.complain(f"{goal.idempotency_key} was taken for two requests")

    async def _poke(self, goal: Goal) -> None:
        with contextlib.suppress(NexusError):  # Hosts find it by themselves.
            host = self._world.hosts[self._world.placement.owner(goal.id).host]
            if host.inside is not None:
                await self._world.network.call(host.process, "poke", host.inside.poke, [goal])

    async def _wait(self, goal_id: str) -> Outcome:
        while True:
            record = await self._ledger.goal(goal_id)
            if record is None:
                self._world.referee.complain(f"{goal_id} was accepted, and is not there")
                raise AssertionError(goal_id)
            if record.outcome is not None:
                return record.outcome
            await asyncio.sleep(self._random.uniform(0.3, 0.9))

    async def _cancel(self, goal_id: str) -> None:
        """As `FrontDoor.cancel`: on record first, then a word to the host that runs it."""
        world = self._world
        await self._ledger.append("", [RequestCancel(goal_id, self._process.now(), SESSION.principal)])
        world.tell("cancelled", goal_id)
        world.referee.cancelled(goal_id)
        record = await self._ledger.goal(goal_id)
        host = world.hosts.get(record.host) if record is not None else None
        if host is not None and host.inside is not None and self._random.random() < 0.7:
            cancel = host.inside.coordinator.cancel
            self._process.start(self._tell_cancel(host.process, cancel, goal_id))

    async def _tell_cancel(self, process: Process, cancel: Any, goal_id: str) -> None:
        with contextlib.suppress(NexusError):  # The sweep finds it.
            await self._world.network.call(process, "cancel", cancel, goal_id, SESSION.principal)


async def answer_all(world: "World", process: Process) -> None:
    """What a person does: look for questions now and then, and say yes to each."""
    ledger = world.ledger_client()
    while True:
        await asyncio.sleep(0.7)
        with contextlib.suppress(NexusError):
            for entry in await ledger.questions(0, 100):
                record = await ledger.goal(entry.goal_id)
                if record is not None:
                    await answer_question(
                        ledger, record, SESSION, "may", approved=True, comment="", now=process.now()
                    )
                    world.tell("answered", entry.goal_id)


async def operate(world: "World", random: Random) -> None:
    """What an operator does: drain a host or a machine, and after a while let it work again."""
    await asyncio.sleep(random.uniform(0.3, 2.5))
    members = world.placement.membership.members
    if not members:
        return
    member = random.choice(members)
    target = random.choice([member.host, member.node])
    for is_undone in (False, True):
        world.tell("drain", target, is_undone)
        with contextlib.suppress(NexusError):  # Nobody would be left, or it has gone already.
            await world.drain(target, is_undone)
        await asyncio.sleep(random.uniform(0.2, 3.0))
