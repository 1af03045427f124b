"""The ledger: its real decision machine over the simulated disk, in a process that can die at every point.

Law: as the SQLite ledger: calls that wait are decided together and committed in one transaction; nothing is answered
before it is on disk, and reads see only what is. A commit that fails makes the machine forget what it knew.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from nexus_ray.agents.task import AgentState
from nexus_ray.core.errors import NexusError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.bell import Bell
from nexus_ray.ledger.goal import Entry, Goal, GoalQuery, GoalRecord, Write
from nexus_ray.ledger.limits import LedgerSettings, check_goals, check_writes
from nexus_ray.ledger.machine import Accept, Append, Call, Fence, LedgerMachine, NextEpoch
from nexus_ray.ledger.ports import Acceptance
from tests.simulation.disk import Disk

Committed = Callable[[Sequence[Call], Sequence[Any]], None]


class LedgerServer:
    """Implements `Ledger` in the process that owns the disk."""

    machine_class: type[LedgerMachine] = LedgerMachine

    def __init__(
        self,
        disk: Disk,
        random: Random,
        settings: LedgerSettings | None = None,
        *,
        point: Callable[[str], bool] = lambda where: True,
        committed: Committed = lambda calls, answers: None,
        sync_s: float = 0.001,
        failing: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`committed` is told what has become durable; `failing()` is the share of commits that fail."""
        self.disk = disk
        self.settings = settings or LedgerSettings()
        self._random = random
        self._point = point
        self._committed = committed
        self._sync_s = sync_s
        self._failing = failing
        self._machine: LedgerMachine | None = None
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._bell = Bell(self.settings.waiters_max, self.settings.retry_after_s)
        self._is_closed = False

    # --- Writing.

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        check_goals(goals, self.settings)
        return list(await self._submit(Accept(tuple(goals), holder)))

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        check_writes(writes, self.settings)
        return list(await self._submit(Append(writer, tuple(writes))))

    async def fence(self, host: str) -> None:
        if not host:
            raise ValueError("the front door cannot be fenced")
        await self._submit(Fence(host))

    async def next_epoch(self) -> int:
        return int(await self._submit(NextEpoch()))

    def _submit(self, call: Call) -> "asyncio.Future[Any]":
        self._check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((call, future))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._write())
        return future

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._commit(batch)

    async def _commit(self, batch: "list[tuple[Call, asyncio.Future[Any]]]") -> None:
        calls = [call for call, _ in batch]
        machine = self._machine
        if machine is None:
            machine = self._machine = self.machine_class(self.disk.seq, self.disk.epoch)
            machine.fenced = set(self.disk.fenced)
        self.disk.load(machine, machine.needs(calls))
        answers = [machine.decide(call) for call in calls]
        rows = machine.take_rows()
        self.decided(batch, answers)
        if not self._point("before a commit"):
            await self._never()
        await asyncio.sleep(self._sync_s * (0.2 + self._random.random()))
        if self._random.random() < self._failing():
            self._machine = None
            for _, future in batch:
                _answer(future, UnavailableError("the disk is full; nothing of this call was kept"))
            return
        # A crash here may come before or after the moment in which the commit is whole.
        if not self._point("in a commit"):
            await self._never()
        self.disk.write(rows, machine.epoch)
        self._committed(calls, answers)
        self._trim(machine)
        if not self._point("after a commit"):
            await self._never()
        for (_, future), answer in zip(batch, answers, strict=True):
            _answer(future, answer)
        self._bell.ring()

    def decided(self, batch: "list[tuple[Call, asyncio.Future[Any]]]", answers: Sequence[Any]) -> None:
        """Called when it is decided, and nothing is durable yet."""

    def _trim(self, machine: LedgerMachine) -> None:
        # Now and then it forgets what it can read again, as the real one does at its limits.
        machine.keyed.clear()
        if self._random.random() < 0.2:
            machine.standings.clear()
            machine.steps_known = 0
            machine.versions.clear()

    async def _never(self) -> None:
        await asyncio.get_running_loop().create_future()

    # --- Reading.

    async def goal(self, goal_id: str) -> GoalRecord | None:
        self._check()
        return self.disk.record(goal_id)

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        self._check()
        return self.disk.records(query)[: self._rows(query.limit)]

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        self._check()
        return self.disk.unfinished(after)[: self._rows(limit)]

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        self._check()
        return self.disk.told(goal_id, after_seq)[: self._rows(limit)]

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        self._check()
        return self.disk.keyed.get((goal_id, step_key))

    async def questions(self, after_seq: int, limit: int) -> list[Entry]:
        self._check()
        return self.disk.questions(after_seq)[: self._rows(limit)]

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        self._check()
        if after_seq < 0:
            return self.disk.seq, []
        await self._bell.wait(lambda: self.disk.seq > after_seq or self._is_closed, wait_s)
        self._check()
        seen = self.disk.journal[after_seq : after_seq + self._rows(limit)]
        return max(self.disk.seq if not seen else after_seq + len(seen), 0), list(
            dict.fromkeys(entry.goal_id for entry in seen)
        )

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        self._check()
        return self.disk.states.get((agent.type, agent.key))

    async def close(self) -> None:
        """Commit what waits, and refuse the rest."""
        self._is_closed = True
        self._bell.ring()
        if self._writer is not None:
            await self._writer

    def _check(self) -> None:
        if self._is_closed:
            raise UnavailableError("the ledger is closed")

    def _rows(self, limit: int) -> int:
        return max(0, min(limit, self.settings.read_rows_max))


def _answer(future: "asyncio.Future[Any]", answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, NexusError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class LedgerClient:
    """Implements `Ledger` in every other process, over the network."""

    def __init__(self, call: Callable[..., Any], tries: int) -> None:
        """`call(method, *arguments)` reaches the ledger's process, whichever that is now."""
        self._call = call
        self._tries = tries

    async def _ask(self, method: str, *arguments: Any) -> Any:
        for attempt in range(self._tries):
            try:
                return await self._call(method, *arguments)
            except UnavailableError as error:
                if attempt + 1 >= self._tries or not error.details.get("is_lost"):
                    raise
                await asyncio.sleep(0.25)

    async def accept(self, goals: Sequence[Goal], holder: str = "") -> list[Acceptance]:
        return list(await self._ask("accept", goals, holder))

    async def append(self, writer: str, writes: Sequence[Write]) -> list[bool]:
        return list(await self._ask("append", writer, writes))

    async def goal(self, goal_id: str) -> GoalRecord | None:
        record: GoalRecord | None = await self._ask("goal", goal_id)
        return record

    async def goals(self, query: GoalQuery) -> list[GoalRecord]:
        return list(await self._ask("goals", query))

    async def unfinished(self, after: str, limit: int) -> list[GoalRecord]:
        return list(await self._ask("unfinished", after, limit))

    async def journal(self, goal_id: str, after_seq: int, limit: int) -> list[Entry]:
        return list(await self._ask("journal", goal_id, after_seq, limit))

    async def entry(self, goal_id: str, step_key: str) -> Entry | None:
        entry: Entry | None = await self._ask("entry", goal_id, step_key)
        return entry

    async def questions(self, after_seq: int, limit: int) -> list[Entry]:
        return list(await self._ask("questions", after_seq, limit))

    async def changes(self, after_seq: int, wait_s: float, limit: int) -> tuple[int, list[str]]:
        seq, goals = await self._ask("changes", after_seq, wait_s, limit)
        return int(seq), list(goals)

    async def agent_state(self, agent: AgentId) -> AgentState | None:
        state: AgentState | None = await self._ask("agent_state", agent)
        return state

    async def fence(self, host: str) -> None:
        await self._ask("fence", host)

    async def next_epoch(self) -> int:
        return int(await self._ask("next_epoch"))

    async def close(self) -> None:
        """Nothing to let go of."""
