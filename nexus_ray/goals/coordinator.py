"""The coordinator: runs the goals of one host, each as a durable coroutine, to exactly one outcome.

Law: a goal's function runs only while this host holds the goal on record. After a crash it runs again from the top,
and what stands in the journal answers at once. The outcome is told to nobody before it is durable.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing

from nexus_ray.agents.task import Failure
from nexus_ray.core.clock import Clock
from nexus_ray.core.errors import NexusError, ResourceExhaustedError, UnavailableError
from nexus_ray.goals.held import Held
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.machine import (
    Answered,
    CancelAsked,
    Command,
    Event,
    GiveBack,
    Granted,
    LeaveAsked,
    LetGo,
    Raised,
    RecordOutcome,
    Refused,
    RunFunction,
    StopFunction,
    Stopped,
)
from nexus_ray.goals.ports import Dispatcher
from nexus_ray.goals.rights import Rights
from nexus_ray.goals.run import GoalRun, read_entries
from nexus_ray.goals.saga import has_saga
from nexus_ray.goals.spec import Specs
from nexus_ray.goals.step import failure_of
from nexus_ray.goals.stream import WriteStream
from nexus_ray.goals.team import Team
from nexus_ray.ledger.goal import Claim, Finish, Goal, GoalRecord, GoalStatus, Outcome, Release, RequestCancel
from nexus_ray.ledger.ports import Acceptance, Ledger
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.observe.operation import observe

log = get_logger("goals.coordinator")


class Coordinator:
    """Runs goals on one host; used from one event loop only."""

    def __init__(
        self,
        *,
        host: str,
        specs: Specs,
        ledger: Ledger,
        stream: WriteStream,
        dispatcher: Dispatcher,
        clock: Clock,
        settings: CoordinatorSettings,
        hand_on: Callable[[Goal], None] = lambda goal: None,
        rights: Rights | None = None,
    ) -> None:
        """`hand_on` is told of goals that this host gave back; `rights` says for whom goals act, None that it is open.

        Without a front door there is nobody to act for.
        """
        self.rights = rights
        self.host = host
        self.specs = specs
        self.ledger = ledger
        self.stream = stream
        self.dispatcher = dispatcher
        self.clock = clock
        self.settings = settings
        self._hand_on = hand_on
        self._held: dict[str, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self.is_closing = False
        self._accepting: set[str] = set()
        self._swept_up_to = ""

    @property
    def held(self) -> int:
        """How many goals this host runs."""
        return len(self._held)

    def check_room(self, goals: int = 1) -> None:
        """Refuse what would be too many goals.

        Raises:
            ResourceExhaustedError: More than `goals_max` goals would be under way.
            UnavailableError: The host is draining.
        """
        if self._is_draining:
            raise UnavailableError("the host is draining", host=self.host)
        self._check_count(goals)

    def _check_count(self, goals: int) -> None:
        if len(self._held) + goals > self.settings.goals_max:
            raise ResourceExhaustedError("the host runs as many goals as it may", retry_after_s=1.0)

    async def accept_and_run(self, goals: Sequence[Goal]) -> "list[tuple[Acceptance, asyncio.Future[Outcome] | None]]":
        """Accept goals as this host's own and start those that are new; the future brings the outcome.

        Raises:
            AlreadyExistsError: An idempotency key was used for something else.
            ResourceExhaustedError: The host is full.
            UnavailableError: The ledger does not answer, or the host is draining.
        """
        self.check_room(len(goals))
        return await self._accept(goals)

    async def _accept(self, goals: Sequence[Goal]) -> "list[tuple[Acceptance, asyncio.Future[Outcome] | None]]":
        # Not to be swept up meanwhile. Where the answer is lost, the sweep finds them as this host's own.
        self._accepting.update(goal.id for goal in goals)
        try:
            acceptances = await self.stream.accept(goals)
            started = []
            for goal, acceptance in zip(goals, acceptances, strict=True):
                future = self._launch(goal, is_claimed=True, replays=False) if acceptance.is_new else None
                started.append((acceptance, future))
            return started
        finally:
            self._accepting.difference_update(goal.id for goal in goals)

    async def sub_goal(self, goal: Goal) -> Outcome:
        """See a goal of a goal to its outcome, here or wherever it is already.

        Raises:
            ResourceExhaustedError: The host is full.
            UnavailableError: The outcome is not known here; ask again.
        """
        self._check_count(1)
        try:
            ((acceptance, future),) = await self._accept([goal])
            held = self._held.get(acceptance.goal_id)
            if future is None and held is not None:
                future = held.outcome
            if future is not None:
                return await asyncio.shield(future)
            return await self.wait(acceptance.goal_id, goal.deadline_at)
        except asyncio.CancelledError:
            parent = self._held.get(goal.parent)
            # Where the parent goes on elsewhere, it finds its child there.
            if parent is not None and not parent.machine.is_leaving and not self.is_closing:
                self.stream.write(RequestCancel(goal.id, self.clock.now(), f"goal {goal.parent}"))
                self.cancel(goal.id, f"goal {goal.parent}")
            raise

    async def wait(self, goal_id: str, deadline_at: float) -> Outcome:
        """Wait for the outcome of a goal that runs elsewhere."""
        seq, _ = await self.ledger.changes(-1, 0, 1)
        while True:
            record = await self.ledger.goal(goal_id)
            if record is not None and record.outcome is not None:
                return record.outcome
            # More than the deadline: the other host may have to undo a saga, and still has to write that it passed.
            remaining_s = deadline_at + self.settings.stop_grace_s + 1.0 - self.clock.now()
            if remaining_s <= 0:
                raise UnavailableError(f"goal {goal_id} has no outcome yet")
            seq, _ = await self.ledger.changes(seq, min(remaining_s, self.settings.sweep_every_s), 1000)

    def cancel(self, goal_id: str, by: str) -> bool:
        """Cancel a goal that this host runs; tell whether it does."""
        held = self._held.get(goal_id)
        if held is None:
            return False
        self._feed(held, CancelAsked(by))
        return True

    def launch(self, goal: Goal) -> None:
        """Claim and run a goal that nobody runs, or whose host has died; one that runs here looks for news."""
        held = self._held.get(goal.id)
        if held is not None and held.run is not None:
            held.run.poke()
        if held is not None or goal.id in self._accepting or self._is_draining:
            return
        if len(self._held) < self.settings.goals_max:
            self._launch(goal, is_claimed=False, replays=True)

    async def sweep(self, is_mine: Callable[[str], bool], is_alive: Callable[[str], bool]) -> None:
        """Look for goals that nobody runs and that belong here, and for cancellations that were not told.

        Args:
            is_mine: Tells whether a goal id belongs to this host by the current membership.
            is_alive: Tells whether a host is a member.
        """
        records = await self.ledger.unfinished(self._swept_up_to, self.settings.sweep_goals_max)
        is_last = len(records) < self.settings.sweep_goals_max
        self._swept_up_to = "" if is_last else records[-1].goal.id
        for record in records:
            self.consider(record, is_mine, is_alive)

    def consider(self, record: GoalRecord, is_mine: Callable[[str], bool], is_alive: Callable[[str], bool]) -> None:
        """Take up a goal on record if it belongs here and nobody runs it; carry out a cancellation."""
        goal = record.goal
        if goal.id in self._held:
            if record.cancel_requested_by:
                self.cancel(goal.id, record.cancel_requested_by)
            return
        # What this host holds on record it must run or give back, whoever the membership names: nobody else will.
        if record.host == self.host and self._is_draining and goal.id not in self._accepting:
            self._spawn(self._give_back(goal), f"give back {goal.id}")
            return
        is_orphan = not record.host or not is_alive(record.host)
        if record.host == self.host or (is_orphan and is_mine(goal.id)):
            self.launch(goal)
            if record.cancel_requested_by:
                self.cancel(goal.id, record.cancel_requested_by)

    def drain(self) -> None:
        """Take no more goals, and give back those under way as soon as the agents that they asked have answered."""
        self._is_draining = True
        for held in list(self._held.values()):
            self._spawn(self._leave(held), f"leave {held.goal.id}")

    def resume(self) -> None:
        """Take goals again."""
        self._is_draining = self.is_closing

    async def close(self) -> None:
        """Stop running, and record nothing about it: another host goes on with what is under way."""
        self._is_draining = self.is_closing = True
        for held in list(self._held.values()):
            held.unwatch()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- One goal: events go into its machine, and its commands are carried out.

    def _launch(self, goal: Goal, *, is_claimed: bool, replays: bool) -> "asyncio.Future[Outcome]":
        held = self._held[goal.id] = Held(goal, replays, self.clock, self.settings, self._feed)
        held.watch()
        if is_claimed:
            self._feed(held, Granted())
        else:
            self._spawn(self._claim(held), f"claim {goal.id}")
        if self._is_draining:
            self._spawn(self._leave(held), f"leave {goal.id}")
        return held.outcome

    async def _claim(self, held: Held) -> None:
        try:
            granted = await self.stream.write(Claim(held.goal.id, self.clock.now()))
        except NexusError as error:
            log.warning("goal.claim_failed", goal_id=held.goal.id, error=str(error))
            granted = False
        self._feed(held, Granted() if granted else Refused())

    def _feed(self, held: Held, event: Event) -> None:
        for command in held.machine.step(event, self.clock.now()):
            self._carry_out(held, command)

    def _carry_out(self, held: Held, command: Command) -> None:
        match command:
            case RunFunction():
                held.function = self._spawn(self._run(held), held.goal.type)
            case StopFunction():
                held.stop()
            case RecordOutcome(outcome):
                self._spawn(self._finish(held, outcome), f"finish {held.goal.id}")
            case LetGo():
                self._let_go(held)
            case GiveBack():
                self._spawn(self._give_back(held.goal), f"give back {held.goal.id}")

    async def _run(self, held: Held) -> None:
        goal = held.goal
        with observe(
            "coordination.execute",
            traceparent=goal.headers.get("traceparent", ""),
            log=True,
            attributes={"coordination.id": goal.id, "coordination.goal_type": goal.type, "nexus.host": self.host},
        ) as operation:
            try:
                event = await self._answer(held, operation.traceparent)
            except asyncio.CancelledError:
                operation.result = "cancelled"
                if self.is_closing and not held.machine.is_over and held.goal.id in self._held:
                    raise
                event = Stopped()
            if isinstance(event, Raised):
                operation.result = "error"
                operation.set({"error": event.failure.message})
        self._feed(held, event)

    async def _answer(self, held: Held, traceparent: str) -> Event:
        goal = held.goal
        spec = self.specs.goals.get(goal.type)
        if spec is None:
            return Raised(Failure("not_found", f"there is no goal type {goal.type!r} in this version of the app"))
        try:
            if self.rights is not None:
                self.rights.check(goal)
            entries = await read_entries(self.ledger, goal.id) if held.replays else {}
            is_stopped = held.machine.is_stopping
            if is_stopped and not has_saga(entries):
                return Stopped()
            held.run = run = GoalRun(self, goal, held.machine, traceparent, entries, is_stopped=is_stopped)
            request = spec.payload.decode(goal.payload, "goal's payload")
            with closing(Team(run)) as team:
                held.team = team
                answer = await spec.function(request, team)
            return Answered(spec.result.encode(answer, f"result of goal {goal.type}"))
        except NexusError as error:
            return Raised(failure_of(error))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            log.warning("goal.raised", goal_id=goal.id, goal_type=goal.type, exc_info=True)
            text = f"goal {goal.type} failed: {type(error).__name__}: {error}"[:500]
            return Raised(Failure("unknown", text, error_type=type(error).__name__))

    async def _finish(self, held: Held, outcome: Outcome) -> None:
        try:
            is_kept = await self.stream.write(Finish(held.goal.id, outcome))
        except NexusError as error:
            # The ledger will not have this outcome, most likely for its size: then that is the outcome.
            log.error("goal.outcome_refused", goal_id=held.goal.id, error=str(error))
            outcome = Outcome(GoalStatus.FAILED, self.clock.now(), failure=failure_of(error))
            try:
                is_kept = await self.stream.write(Finish(held.goal.id, outcome))
            except NexusError:
                is_kept = False
        recorded: Outcome | None = outcome
        if is_kept:
            goal = held.goal
            metrics.record(
                "nexus_goal_completion_time",
                max(0.0, outcome.finished_at - goal.accepted_at), goal_type=goal.type, complexity="goal",
            )  # fmt: skip
            metrics.count("nexus_coordinations_total", coordination_type=goal.type, result=outcome.status.value)
        else:
            # Another host's outcome, or this one, whose answer was lost on the way.
            recorded = await self._recorded(held.goal.id)
        if recorded is not None and not held.outcome.done():
            held.outcome.set_result(recorded)
        self._let_go(held)
        await self.dispatcher.forget_goal(held.goal.id)

    async def _leave(self, held: Held) -> None:
        if held.team is not None:
            await held.team.quiesce()
        self._feed(held, LeaveAsked())

    async def _give_back(self, goal: Goal) -> None:
        # After everything that was recorded of it: writes keep their order.
        try:
            is_free = await self.stream.write(Release(goal.id, self.clock.now()))
        except NexusError:
            is_free = False  # Fenced or closing: others find it when this host is gone.
        held = self._held.get(goal.id)
        if held is not None:
            self._let_go(held)
        await self.dispatcher.forget_goal(goal.id)
        if is_free:
            self._hand_on(goal)

    async def _recorded(self, goal_id: str) -> Outcome | None:
        try:
            record = await self.ledger.goal(goal_id)
        except NexusError:
            return None
        return record.outcome if record is not None else None

    def _let_go(self, held: Held) -> None:
        if self._held.get(held.goal.id) is held:
            del self._held[held.goal.id]
        held.unwatch()
        if not held.outcome.done():
            held.outcome.set_exception(UnavailableError("the goal is run by another host now"))
            held.outcome.exception()  # Looked at: nobody need be waiting.

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
