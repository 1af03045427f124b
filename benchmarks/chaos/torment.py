"""One run against a fleet that is up: load, blows, quiet, account."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos import witness
from benchmarks.chaos.account import Account, settle
from benchmarks.chaos.load import Load
from benchmarks.chaos.probe import Probes, Recovery
from benchmarks.chaos.processes import Processes
from benchmarks.chaos.schedule import Blow
from nexus_ray.core.errors import NexusError
from nexus_ray.core.ids import new_id
from nexus_ray.runtime.client import Connection

PACE_S = 0.25  # How long a client rests between two goals.
_QUIET_S_MAX = 120.0
_WARM_PROBES = 5
_READY_EVERY_S = 0.1

Tell = Callable[[str, int, int], None]  # What was done last, blows so far, goals accepted so far.


@dataclass(slots=True)
class Result:
    """What came of a run of one system."""

    system: str
    seed: int
    account: Account
    kinds: list[str] = field(default_factory=list)  # What there was to be struck; the schedule depends on it.
    struck: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    undisturbed_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    is_whole: bool = True

    @property
    def blows(self) -> int:
        return sum(self.struck.values())

    @property
    def is_clean(self) -> bool:
        return self.account.is_clean and not self.absent and all(one.took_s is not None for one in self.recoveries)


def torment(
    connection: Callable[[], Connection],
    root: int,
    blows: Sequence[Blow],
    folder: Path,
    *,
    seed: int,
    clients: int = 6,
    pace_s: float = PACE_S,
    tell: Tell = lambda what, count, goals: None,
) -> Result:
    """Strike the fleet below the process `root`, and account for every goal; Ctrl-C ends the blows, not the account.

    Args:
        connection: Opens a connection to the fleet.
        root: The process that was started by whoever calls this; only what it started is struck.
        blows: What is done.
        folder: Where agents leave their traces; they must be able to write there.
        seed: Draws what clients ask for.
        clients: How many there are.
        pace_s: How long each rests between two goals, on average.
        tell: Called after each blow.
    """
    run, started = new_id("run"), time.monotonic()
    load = Load(connection, str(folder), run, seed, clients, pace_s)
    probes = Probes(connection, run, load.told)
    result = Result("Nexus", seed, Account(), undisturbed_s=_warm_up(probes, run))
    processes = Processes(root)
    result.kinds = processes.kinds()
    load.start()
    try:
        for blow in blows:
            time.sleep(blow.after_s)
            _strike(processes, probes, blow, result)
            tell(str(blow), result.blows, len(load.told.accepted))
    except KeyboardInterrupt:
        result.is_whole = False
    finally:
        processes.close()
    tell("no more blows: waiting for what is under way", result.blows, len(load.told.accepted))
    probes.join()
    load.stop(_QUIET_S_MAX)
    result.recoveries = list(probes.recoveries)
    with connection() as quiet:
        until_ready(quiet, _QUIET_S_MAX)
        records = witness.until_ended(quiet, run, _QUIET_S_MAX)
        tell("reading every journal", result.blows, len(load.told.accepted))
        evidence = witness.collect(quiet, load.told, run, folder, records)
    result.account = settle(evidence)
    result.account.refused += [*load.told.refused, *load.told.unanswered]
    result.seconds = time.monotonic() - started
    return result


def until_ready(connection: Connection, within_s: float) -> bool:
    """Return when every part answers; False where it does not in time."""
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        with contextlib.suppress(NexusError):
            if connection.ready().get("ready"):
                return True
        time.sleep(_READY_EVERY_S)
    return False


def _warm_up(probes: Probes, run: str) -> list[float]:
    """Return what a probe takes when nothing is disturbed."""
    return list(_timed(probes, run))[1:]  # The first wakes the agents.


def _timed(probes: Probes, run: str) -> Iterator[float]:
    for number in range(_WARM_PROBES + 1):
        began_at = time.monotonic()
        probes.once(f"{run}-warm{number}")
        yield time.monotonic() - began_at


def _strike(processes: Processes, probes: Probes, blow: Blow, result: Result) -> None:
    if processes.strike(blow) is None:
        result.absent.append(str(blow))
        return
    result.struck = dict(Counter(result.struck) + Counter([f"{blow.kind}, {blow.act}"]))
    probes.begin(blow)
