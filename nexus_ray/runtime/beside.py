"""Where the agents of one goal stand: beside it, on its host, or on another one where that is better.

Law: an agent that lives for one goal stays where it was first placed, for as long as the goal runs. It stands beside
the goal; elsewhere if its type says `spread`, or if the host is busy when it is first asked.

A fan-out inside the goal's own host takes half to a quarter of what one across hosts takes, with any carrier. A host is
busy when its event loop lags, which is what CPU-bound agents make it do, or when very many tasks are under way.
"""

import asyncio
from collections.abc import Callable

from nexus_ray.agents.runner import AgentRunner, RunnerSettings
from nexus_ray.agents.task import TaskOrder
from nexus_ray.core.identity import AgentId

_LOOK_EVERY_S = 0.2  # A callback that takes longer is seen while it runs, too.
_FADES = 0.5  # Of what was measured, at each look: a lag is forgotten within a second.


class Pulse:
    """How far an event loop lags behind; used on that loop only."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._faded_s = 0.0
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._due_at = self._loop.time() + _LOOK_EVERY_S
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._beat)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def lag_s(self) -> float:
        """Seconds that a callback waits for its turn, now or a moment ago; 0 where nothing is measured."""
        late_s = self._loop.time() - self._due_at if self._timer is not None else 0.0
        return max(self._faded_s, late_s)

    def _beat(self) -> None:
        self._faded_s = max(self._loop.time() - self._due_at, self._faded_s * _FADES)
        self.start()


class Beside:
    """Places the agents of the goals of one host; used from one event loop only."""

    def __init__(self, host: str, runner: AgentRunner, settings: RunnerSettings, pulse: Pulse) -> None:
        self._host = host
        self._runner = runner
        self._settings = settings
        self._pulse = pulse
        self._elsewhere: dict[str, dict[AgentId, str]] = {}  # By goal; those that stand beside it are not here.

    @property
    def is_busy(self) -> bool:
        """Tell whether this host has enough to do."""
        settings = self._settings
        return self._runner.under_way >= settings.beside_tasks_max or self._pulse.lag_s >= settings.beside_lag_s

    def place(self, order: TaskOrder, owner: Callable[[AgentId], str], is_member: Callable[[str], bool]) -> str:
        """Return the host for an agent that lives for the order's goal only.

        Args:
            order: Asks it.
            owner: Tells the host that an agent belongs to, were it shared by all goals.
            is_member: Tells whether a host is there.
        """
        agent = order.agent
        placed = self._elsewhere.get(order.goal_id)
        if placed is not None and (host := placed.get(agent)) is not None:
            if is_member(host):
                return host
            del placed[agent]  # It died with its host, and begins anew.
        if self._runner.is_awake(agent) or not (self._runner.spreads(agent.type) or self.is_busy):
            return self._host
        host = owner(agent)
        if host != self._host:
            self._elsewhere.setdefault(order.goal_id, {})[agent] = host
        return host

    def forget(self, goal_id: str) -> set[str]:
        """Forget a goal that has ended; return the other hosts that have agents of it."""
        return set(self._elsewhere.pop(goal_id, {}).values())
