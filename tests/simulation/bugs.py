"""Bugs on purpose, to see whether the simulator finds them. Nothing in the product knows of them.

Each is what somebody could write in good faith, or take away because nothing seems to need it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from nexus_ray.core.errors import NexusError
from nexus_ray.ledger.goal import Finish, Step, Write
from nexus_ray.ledger.machine import LedgerMachine, Standing
from nexus_ray.runtime.process import HostProcess
from tests.simulation.ledger import LedgerServer
from tests.simulation.world import Bug


class _NoFence(LedgerMachine):
    def _check_fenced(self, writer: str) -> None:
        pass


class _ForgetfulOfSteps(LedgerMachine):
    def load_standing(self, goal_id: str, standing: Standing) -> None:
        standing.steps = set()
        super().load_standing(goal_id, standing)


class _NoVersions(LedgerMachine):
    def _step(self, standing: Standing, step: Step) -> bool:
        if step.state is not None:
            self.versions[step.state.agent.type, step.state.agent.key] = step.state.version - 1
        return super()._step(standing, step)


class _UnfencedLedger(LedgerServer):
    machine_class = _NoFence


class _ForgetfulLedger(LedgerServer):
    machine_class = _ForgetfulOfSteps


class _VersionlessLedger(LedgerServer):
    machine_class = _NoVersions


class _HastyLedger(LedgerServer):
    """Answers as soon as it has decided, while the disk is still at work."""

    def decided(self, batch: "list[tuple[Any, asyncio.Future[Any]]]", answers: Sequence[Any]) -> None:
        for (_, future), answer in zip(batch, answers, strict=True):
            if not isinstance(answer, NexusError) and not future.done():
                future.set_result(answer)


def _tell_early(host: HostProcess) -> None:
    """Have the coordinator believe that an outcome is kept as soon as it is on the way."""
    write = host.stream.write

    def hasty(what: Write) -> "asyncio.Future[bool]":
        future = write(what)
        if not isinstance(what, Finish) or future.done():
            return future
        early: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        early.set_result(True)
        return early

    host.stream.write = hasty  # type: ignore[method-assign]


BUGS = {
    bug.name: bug
    for bug in (
        Bug("no-fence", ledger=_UnfencedLedger),
        Bug("acknowledged-before-fsync", ledger=_HastyLedger),
        Bug("forgotten-step-keys", ledger=_ForgetfulLedger),
        Bug("no-state-versions", ledger=_VersionlessLedger),
        Bug("told-before-durable", plant=_tell_early),
    )
}
