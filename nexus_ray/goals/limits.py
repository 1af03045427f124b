"""The limits of the goals of one host, as settings.

Law: over a limit is a clear refusal, not a slow death.
"""

from pydantic import BaseModel, ConfigDict


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
