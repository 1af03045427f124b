"""The probe: how long after a blow a goal that needs every host, the ledger and the front door succeeds again."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.chaos.load import Accepted, Told
from benchmarks.chaos.schedule import Blow
from nexus_ray.core.errors import NexusError
from nexus_ray.runtime.client import Connection

PROBES = 16  # Agents over all hosts: that they all live on one of two happens once in 32,768 memberships.
_PROBE_S_MAX = 90.0
_TRY_AGAIN_S = 0.05
_GOAL_S = 300.0


def probe_key(run: str, number: int) -> str:
    return f"{run}-probe-{number}"


@dataclass(slots=True)
class Recovery:
    """A blow that struck, `at_s` after the beginning, and how long it took to recover; None: not in time."""

    kind: str
    blow: str
    at_s: float
    took_s: float | None = None


class Probes:
    """Probes in threads of their own, one for each blow, since blows do not wait for recoveries."""

    def __init__(self, connection: Callable[[], Connection], run: str, told: Told) -> None:
        self.recoveries: list[Recovery] = []
        self._began_at = time.monotonic()
        self._connection = connection
        self._run = run
        self._told = told
        self._threads: list[threading.Thread] = []

    def begin(self, blow: Blow) -> None:
        """Begin to measure: the blow has just fallen."""
        recovery = Recovery(blow.kind, str(blow), round(time.monotonic() - self._began_at, 3))
        thread = threading.Thread(target=self._measure, args=(len(self._threads), recovery), daemon=True)
        self.recoveries.append(recovery)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(_PROBE_S_MAX + 30.0)

    def once(self, tag: str) -> None:
        """Probe once, now; raises NexusError where it does not succeed at the first try."""
        with self._connection() as connection:
            goal = connection.submit("chaos_count", self._job(tag), timeout_s=_GOAL_S, idempotency_key=tag, wait_s=10.0)
            self._keep(tag, goal.id)
            goal.result(_PROBE_S_MAX)

    def _measure(self, number: int, recovery: Recovery) -> None:
        tag, struck_at = f"{self._run}-probe{number}", time.monotonic()
        while time.monotonic() - struck_at < _PROBE_S_MAX:
            try:
                self.once(tag)
            except NexusError:
                time.sleep(_TRY_AGAIN_S)
            else:
                recovery.took_s = time.monotonic() - struck_at
                return

    def _job(self, tag: str) -> dict[str, object]:
        return {"tag": tag, "keys": [probe_key(self._run, number) for number in range(PROBES)]}

    def _keep(self, tag: str, goal_id: str) -> None:
        with self._told.lock:
            self._told.accepted.append(Accepted(tag, goal_id, "chaos_count"))
