"""The limits of the goals of one host, as settings.

Law: over a limit is a clear refusal, not a slow death.
"""

from pydantic import BaseModel, ConfigDict, Field


class CoordinatorSettings(BaseModel):
    """Limits of the goals of one host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    goals_max: int = 10_000
    """Goals under way on one host; more are refused until some have ended."""
    timeout_default_s: float = 3600.0
    """The deadline of a goal whose request and type name none."""
    timeout_max_s: float = 30 * 86_400.0
    """The longest deadline that a request may ask for."""
    sweep_every_s: float = 1.0
    """How often the ledger is searched for goals that nobody runs, and for cancellations that were not told."""
    sweep_goals_max: int = 2000
    """Goals looked at in one sweep; the next one goes on from there."""
    depth_max: int = Field(16, ge=1, le=32)
    """Goals of goals of goals: a goal that submits itself ends here. More would not fit into an id."""
    stop_grace_s: float = 60.0
    """How long a function that was told to stop may go on, to compensate a saga; then its goal ends without it."""
    clock_look_s: float = 10.0
    """Longest wait for an instant before the clock is looked at again: a clock that jumps is noticed by then."""
    question_look_s: float = 10.0
    """Longest pause between two looks for a person's answer; who answers pokes the goal as well."""
