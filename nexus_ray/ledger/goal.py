"""What a goal is on record: the goal as accepted, its status, its one outcome, and the journal's entries."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from nexus_ray.agents.task import AgentState, Failure
from nexus_ray.core.identity import MAIN_TENANT


class GoalStatus(StrEnum):
    """Where a goal stands; the last four are terminal and final."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Tell whether nothing can change any more."""
        return self not in (GoalStatus.ACCEPTED, GoalStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal as it was accepted; nothing in it ever changes.

    `payload` is JSON; times are wall-clock seconds; `idempotency_key` is unique per tenant and principal, empty
    where none was given; `parent` is the goal that asked for this one, or empty; `headers` are the caller's context.
    """

    id: str
    type: str
    payload: bytes
    principal: str
    accepted_at: float
    deadline_at: float
    headers: dict[str, str]
    idempotency_key: str = ""
    parent: str = ""
    tenant: str = MAIN_TENANT


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a goal ended, once and for all. `result` is JSON, empty unless it succeeded.

    `answered_by` names the strategy that answered, where a simpler one stood in for the one asked.
    """

    status: GoalStatus
    finished_at: float
    result: bytes = b""
    failure: Failure | None = None
    answered_by: str = ""


@dataclass(frozen=True, slots=True)
class GoalRecord:
    """A goal and where it stands. `host` runs it, or ran it last."""

    goal: Goal
    status: GoalStatus
    host: str = ""
    outcome: Outcome | None = None
    cancel_requested_by: str = ""


class EntryKind(StrEnum):
    """What the journal tells about a goal."""

    ACCEPTED = "accepted"
    CLAIMED = "claimed"
    PLANNED = "planned"
    STEP = "step"
    NOTE = "note"
    TIMER = "timer"
    ASKED = "asked"
    ANSWERED = "answered"
    EFFECT_BEGUN = "effect_begun"
    EFFECT_ENDED = "effect_ended"
    RELEASED = "released"
    CANCEL_REQUESTED = "cancel_requested"
    FINISHED = "finished"


KEYED = frozenset(
    {
        EntryKind.STEP,
        EntryKind.TIMER,
        EntryKind.ASKED,
        EntryKind.ANSWERED,
        EntryKind.EFFECT_BEGUN,
        EntryKind.EFFECT_ENDED,
    }
)
"""What is recorded once under its key: a second record of the same key in the same goal changes nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. `seq` grows over the whole ledger; `body` is JSON that depends on `kind`."""

    seq: int
    goal_id: str
    kind: EntryKind
    at: float
    body: bytes
    step_key: str = ""


# What a writer may ask the ledger to write; a batch of these is one transaction, carried out in order.


@dataclass(frozen=True, slots=True)
class Claim:
    """Take a goal: granted if nobody holds it, or if its holder was fenced. Sets it running."""

    goal_id: str
    at: float


class Step(NamedTuple):
    """Record something once under a key: a finished step, and with it the state of the agent that ran it.

    Or a timer, a question to a person and its answer, an effect that is about to begin and how it ended. `kind` is
    one of `KEYED`. The first record of a key stands, whatever its kind.
    """

    goal_id: str
    step_key: str
    at: float
    body: bytes
    state: AgentState | None = None
    kind: EntryKind = EntryKind.STEP


class Note(NamedTuple):
    """Tell something about a goal that decides nothing: a plan (`EntryKind.PLANNED`), progress (`NOTE`)."""

    goal_id: str
    at: float
    body: bytes
    kind: EntryKind = EntryKind.NOTE


@dataclass(frozen=True, slots=True)
class Release:
    """Give a goal back, so that another host may claim it; only the holder may. Sets it accepted again."""

    goal_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Record the outcome; only the holder may, and only once."""

    goal_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Ask for a goal to be cancelled; its holder carries it out."""

    goal_id: str
    at: float
    by: str


Write = Claim | Step | Note | Release | Finish | RequestCancel


@dataclass(frozen=True, slots=True)
class GoalQuery:
    """Which goals to list, newest first. Empty fields do not filter; `before` is the last id of the page before."""

    status: str = ""
    type: str = ""
    principal: str = ""
    parent: str = ""
    before: str = ""
    limit: int = 50
    tenant: str = ""
