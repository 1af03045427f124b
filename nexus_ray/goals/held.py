"""A goal that a host runs: its machine, its function, and the timers that tell the machine of time.

Law: a timer only says that it is time to look; whether the deadline has passed, the clock says.
"""

import asyncio
from collections.abc import Callable

from nexus_ray.core.clock import Clock
from nexus_ray.core.deadline import Countdown
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.goals.machine import DeadlinePassed, Event, GoalMachine, StopOverdue
from nexus_ray.goals.run import GoalRun
from nexus_ray.goals.team import Team
from nexus_ray.ledger.goal import Goal, Outcome


class Held:
    """What a coordinator keeps of one goal; `feed` takes the events of its timers."""

    __slots__ = (
        "_clock", "_countdown", "_feed", "_settings", "_timer", "function", "goal", "machine", "outcome", "replays",
        "run", "team",
    )  # fmt: skip

    def __init__(
        self, goal: Goal, replays: bool, clock: Clock, settings: CoordinatorSettings,
        feed: "Callable[[Held, Event], None]",
    ) -> None:  # fmt: skip
        self.goal = goal
        self.replays = replays
        self.machine = GoalMachine(replays)
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.function: asyncio.Task[None] | None = None
        self.run: GoalRun | None = None
        self.team: Team | None = None
        self._clock = clock
        self._countdown = Countdown(clock, goal.deadline_at)
        self._settings = settings
        self._feed = feed
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Say when the deadline has passed."""
        # Never at once: whoever holds the goal has to know that first.
        pause_s = min(self._countdown.remaining_s(), self._settings.clock_look_s)
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._look)

    def _look(self) -> None:
        if self._countdown.remaining_s() > 0:
            self.watch()
        else:
            self._feed(self, DeadlinePassed())

    def unwatch(self) -> None:
        """Say nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> None:
        """Tell the function to stop, and say when it has had its time for that."""
        self.unwatch()
        loop = asyncio.get_running_loop()
        machine = self.machine
        if machine.is_over:
            if self.team is not None:
                self.team.close()  # Whatever the function still does, it asks nobody.
        else:
            self._timer = loop.call_later(self._settings.stop_grace_s, self._feed, self, StopOverdue())
        if self.run is not None and self.run.stopped_at is None and machine.is_stopping:
            self.run.stopped_at = self._clock.now()
        # While the journal is read nothing is cut off: only then it is known whether there is something to undo.
        is_reading = self.run is None and self.replays and not machine.is_leaving and not machine.is_over
        if self.function is not None and not is_reading:
            # Not at once: a task that is cancelled before its first step never runs, nor says that it ended.
            loop.call_soon(self.function.cancel)
