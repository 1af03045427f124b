"""The life of one goal on its host, as a machine: events in, commands out.

Law: one terminal outcome, the first; after it, no event changes anything. What was asked to stop says `cancelled` or
`expired` even if its function answers while it is being stopped. What is asked to leave ends here only if it answers,
and a function that does not end in time after it was told to stop is left behind.
"""

from dataclasses import dataclass

from nexus_ray.agents.task import Failure
from nexus_ray.ledger.goal import GoalStatus, Outcome


@dataclass(frozen=True, slots=True)
class Granted:
    """The ledger granted the claim."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The ledger refused the claim: somebody else runs the goal, or it has ended."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The goal's function returned; `result` is JSON."""

    result: bytes
    answered_by: str = ""


@dataclass(frozen=True, slots=True)
class Raised:
    """The goal's function raised."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody asked for the goal to be cancelled."""

    by: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The goal's deadline is over."""


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """The host drains: the goal is to go on elsewhere."""


@dataclass(frozen=True, slots=True)
class StopOverdue:
    """The goal's function was told to stop, and has not ended in the time that it had for it."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The goal's function ended because it was told to."""


Event = Granted | Refused | Answered | Raised | CancelAsked | DeadlinePassed | LeaveAsked | StopOverdue | Stopped


@dataclass(frozen=True, slots=True)
class RunFunction:
    """Run the goal's function."""


@dataclass(frozen=True, slots=True)
class StopFunction:
    """Tell the goal's function to stop, and with it everything it started."""


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Record the outcome."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LetGo:
    """Forget the goal: it is not this host's."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Give the goal back on record, so that another host goes on with it, and forget it."""


Command = RunFunction | StopFunction | RecordOutcome | LetGo | GiveBack


class GoalMachine:
    """Decides what becomes of one goal."""

    __slots__ = ("_is_running", "_replays", "_stop_as", "_stop_failure", "is_leaving", "is_over", "status")

    def __init__(self, replays: bool = False) -> None:
        """`replays`: the function may have run before, and may have left something to undo."""
        self._replays = replays
        self.status = GoalStatus.ACCEPTED
        self.is_over = False
        self.is_leaving = False
        self._is_running = False
        self._stop_as: GoalStatus | None = None
        self._stop_failure: Failure | None = None

    @property
    def is_stopping(self) -> bool:
        """Tell whether it was asked to stop for good."""
        return self._stop_as is not None

    def step(self, event: Event, now: float) -> list[Command]:
        """Take one event at wall-clock `now`; return what to do, in order."""
        if self.is_over:
            return []
        match event:
            case Granted():
                self.status = GoalStatus.RUNNING
                if self.is_leaving:
                    return self._give_back()
                if self._stop_as is not None and not self._replays:
                    return self._end(self._stop_as, now, failure=self._stop_failure)
                self._is_running = True
                # The function of a goal that was stopped runs again only to undo what is to be undone.
                return [RunFunction()] if self._stop_as is None else [RunFunction(), StopFunction()]
            case Refused():
                self.is_over = True
                return [StopFunction(), LetGo()] if self._is_running else [LetGo()]
            case CancelAsked(by):
                return self._stop(GoalStatus.CANCELLED, Failure("cancelled", f"cancelled by {by}"), now)
            case DeadlinePassed():
                return self._stop(GoalStatus.EXPIRED, Failure("deadline_exceeded", "the goal's deadline passed"), now)
            case LeaveAsked():
                is_news = not self.is_leaving
                self.is_leaving = True
                return [StopFunction()] if is_news and self._is_running else []
            case StopOverdue():
                was_told = self.is_leaving or self._stop_as is not None
                return [StopFunction(), *self._stopped(now)] if was_told and self._is_running else []
            case Answered(result, answered_by) if self._stop_as is None:
                return self._end(GoalStatus.SUCCEEDED, now, result=result, answered_by=answered_by)
            case _ if self.is_leaving or self._stop_as is not None:
                return self._stopped(now)
            case Raised(failure):
                return self._end(GoalStatus.FAILED, now, failure=failure)
            case Stopped():
                return self._end(GoalStatus.FAILED, now, failure=Failure("aborted", "the goal's function was stopped"))
        raise AssertionError(f"no such event: {event!r}")

    def _stop(self, status: GoalStatus, failure: Failure, now: float) -> list[Command]:
        if self._stop_as is not None:
            return []
        self._stop_as = status
        self._stop_failure = failure
        if self._is_running:
            return [] if self.is_leaving else [StopFunction()]
        return [] if self.status is GoalStatus.ACCEPTED else self._end(status, now, failure=failure)

    def _stopped(self, now: float) -> list[Command]:
        if self.is_leaving:
            # Whatever it raised, it may have raised for being stopped: where it goes on, it says so again. And what
            # it had begun to undo is undone there.
            return self._give_back()
        assert self._stop_as is not None
        return self._end(self._stop_as, now, failure=self._stop_failure)

    def _give_back(self) -> list[Command]:
        self.is_over = True
        self._is_running = False
        return [GiveBack()]

    def _end(
        self,
        status: GoalStatus,
        now: float,
        *,
        result: bytes = b"",
        failure: Failure | None = None,
        answered_by: str = "",
    ) -> list[Command]:
        self.is_over = True
        self._is_running = False
        self.status = status
        return [RecordOutcome(Outcome(status, now, result, failure, answered_by))]
