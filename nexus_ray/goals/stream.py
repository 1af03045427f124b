"""The write stream of one host: everything it wants recorded, in order, many writes to a transaction.

Law: writes reach the ledger in the order they were made, so what is durable is always a prefix of what happened.
One transaction is under way at a time; what comes meanwhile goes into the next. A write that cannot be made now is
made again until it can, because every write is idempotent; only fencing ends that.
"""

import asyncio
from collections.abc import Sequence

from nexus_ray.agents.ports import Effects
from nexus_ray.agents.task import AgentState, TaskOrder, TaskResult
from nexus_ray.core.clock import Clock, SystemClock
from nexus_ray.core.errors import FencedError, NexusError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.goals.effects import EffectRecord
from nexus_ray.goals.step import step_body
from nexus_ray.ledger.goal import Goal, Step, Write
from nexus_ray.ledger.ports import Acceptance, Ledger
from nexus_ray.observe.logs import get_logger

log = get_logger("goals.stream")

_Waiting = tuple[Write, "asyncio.Future[bool] | None"]  # None where nobody waits for it.

_BATCH_WRITES_MAX = 2000  # Above some hundred writes a transaction gains nothing more, and its latency grows.
_LINGER_S = 0.002  # Longer than a small goal takes; what dies with a host within it is at worst done again.
_RETRY_FIRST_S = 0.05
_RETRY_CEILING_S = 1.0


class WriteStream:
    """Batches the writes of one host; used from one event loop only. Implements `Recorder`."""

    def __init__(self, ledger: Ledger, host: str, clock: Clock | None = None) -> None:
        self._ledger = ledger
        self._host = host
        self.effects: Effects = EffectRecord(host, ledger, clock or SystemClock(), self.write)
        self._waiting: list[_Waiting] = []
        self._accepting: list[tuple[Sequence[Goal], asyncio.Future[list[Acceptance]]]] = []
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._is_closing = False
        self.fenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="write-stream")

    def write(self, write: Write) -> "asyncio.Future[bool]":
        """Have something written; the future tells when it is durable and whether it took effect."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.fenced.done():
            _fail([(write, future)], FencedError("this host was declared dead and may not write", host=self._host))
            return future
        if self._is_closing:
            _fail([(write, future)], UnavailableError("the host is shutting down", host=self._host))
            return future
        self._waiting.append((write, future))
        self._has_work.set()
        return future

    def tell(self, write: Write) -> None:
        """Have something written that nobody waits for.

        It lingers for a moment, so that it goes in one transaction with what comes next.
        """
        if self._is_closing or self.fenced.done():
            return
        self._waiting.append((write, None))
        if self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER_S, self._lingered)

    def _lingered(self) -> None:
        self._lingering = None
        if self._waiting:
            self._has_work.set()

    def accept(self, goals: Sequence[Goal]) -> "asyncio.Future[list[Acceptance]]":
        """Have goals accepted as this host's own, together with whatever is written next; see `Ledger.accept`."""
        future: asyncio.Future[list[Acceptance]] = asyncio.get_running_loop().create_future()
        if self.fenced.done() or self._is_closing:
            future.set_exception(UnavailableError("the host is shutting down", host=self._host))
            return future
        self._accepting.append((goals, future))
        self._has_work.set()
        return future

    def record(self, order: TaskOrder, result: TaskResult, state: AgentState | None) -> "asyncio.Future[bool]":
        """Record a task's result, and its agent's state with it."""
        body = step_body(str(order.agent), result)
        return self.write(Step(order.goal_id, order.step_key, result.ended_at, body, state))

    def keep(self, order: TaskOrder, result: TaskResult) -> None:
        """Record a task's result that nobody waits for."""
        self.tell(Step(order.goal_id, order.step_key, result.ended_at, step_body(str(order.agent), result)))

    async def load(self, agent: AgentId) -> AgentState | None:
        """Return the last committed state of an agent."""
        return await self._ledger.agent_state(agent)

    async def close(self) -> None:
        """Write what waits, as long as the ledger takes it, then stop; what is not written is told so."""
        self._is_closing = True
        self._has_work.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while True:
                await self._has_work.wait()
                batch, self._waiting = self._waiting[:_BATCH_WRITES_MAX], self._waiting[_BATCH_WRITES_MAX:]
                accepting, self._accepting = self._accepting, []
                if not batch and not accepting and self._is_closing:
                    return
                if not self._waiting and not self._is_closing:
                    self._has_work.clear()
                # Both at once, so that the ledger finds both when it looks, and syncs once.
                taking = asyncio.ensure_future(self._take(accepting)) if accepting else None
                try:
                    if batch:
                        await self._carry_out(batch)
                finally:
                    if taking is not None:
                        await asyncio.wait([taking])
        except asyncio.CancelledError:
            self._give_up(batch, UnavailableError("the host is shutting down", host=self._host))
            raise
        except (FencedError, UnavailableError) as error:
            self._note_fence(error)
            self._give_up(batch, error)

    async def look_for_fence(self) -> None:
        """Find out whether this host was declared dead, which it would else learn only from its next write."""
        delay_s = _RETRY_FIRST_S
        while not self.fenced.done():
            try:
                await self._ledger.append(self._host, [])
                return
            except UnavailableError:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_CEILING_S)
            except FencedError as error:
                self._note_fence(error)

    def _note_fence(self, error: NexusError) -> None:
        if isinstance(error, FencedError) and not self.fenced.done():
            self.fenced.set_result(None)

    def _give_up(self, batch: "list[_Waiting]", error: NexusError) -> None:
        self._is_closing = True
        _fail([*batch, *self._waiting], error)
        for _, future in self._accepting:
            if not future.done():
                future.set_exception(error)
        self._waiting, self._accepting = [], []

    async def _take(self, accepting: "list[tuple[Sequence[Goal], asyncio.Future[list[Acceptance]]]]") -> None:
        """Accept goals of several callers in one call; each in a call of its own where one of them is refused."""
        together = [goal for goals, _ in accepting for goal in goals]
        try:
            answers = await self._ledger.accept(together, self._host)
        except NexusError as error:
            self._note_fence(error)
            for goals, future in accepting:
                if len(accepting) > 1:
                    await self._take([(goals, future)])
                elif not future.done():
                    future.set_exception(error)
            return
        at = 0
        for goals, future in accepting:
            if not future.done():
                future.set_result(answers[at : at + len(goals)])
            at += len(goals)

    async def _carry_out(self, batch: "list[_Waiting]") -> None:
        try:
            results = await self._append([write for write, _ in batch])
        except (FencedError, UnavailableError):
            raise
        except NexusError as error:
            # The ledger will never take this batch: it is broken, not busy. Each write alone, so that one
            # unwritable record fails itself and not its neighbours.
            log.error("stream.batch_refused", error=str(error), writes=len(batch))
            for item in batch:
                await self._carry_out_alone(item)
            return
        for (_, future), took_effect in zip(batch, results, strict=True):
            if future is not None and not future.done():
                future.set_result(took_effect)

    async def _carry_out_alone(self, item: "_Waiting") -> None:
        try:
            (took_effect,) = await self._append([item[0]])
        except (FencedError, UnavailableError):
            raise
        except NexusError as error:
            _fail([item], error)
        else:
            if item[1] is not None and not item[1].done():
                item[1].set_result(took_effect)

    async def _append(self, writes: Sequence[Write]) -> list[bool]:
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                return await self._ledger.append(self._host, writes)
            except UnavailableError as error:
                if self._is_closing:
                    raise  # Nobody would wait for the ledger's return; whoever follows goes on from what stands.
                log.warning("stream.ledger_unavailable", error=str(error), writes=len(writes), retry_in_s=delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_CEILING_S)


def _fail(batch: "Sequence[_Waiting]", error: Exception) -> None:
    for _, future in batch:
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # Marked as looked at: not every writer waits for its write.
