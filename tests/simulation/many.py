"""Many seeds, in several processes; and the command line behind `make simulate`.

Law: a seed that fails is told together with the command that replays it.
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.bugs import BUGS
from tests.simulation.world import Report, quiet, simulate

_CHUNK_SEEDS = 50
_SHOWN_MAX = 20


class Failed(NamedTuple):
    """A seed that failed, and what the referee said."""

    seed: int
    complaints: tuple[str, ...]


class Sum(NamedTuple):
    """What came of many runs: those that failed, and how long all took of the processor and in virtual time."""

    seeds: int
    failed: list[Failed]
    cpu_s: float
    virtual_s: float
    turns: int
    deaths: int


def replay_command(seed: int, bug: str = "") -> str:
    """Return what to type to see one seed again."""
    return f"make simulate SEED={seed}" + (f" BUG={bug}" if bug else "")


def run_chunk(seeds: Sequence[int], bug: str = "") -> Sum:
    """Run some seeds in this process."""
    failed = []
    virtual_s, turns, deaths = 0.0, 0, 0
    warnings.simplefilter("ignore")  # Coroutines of the killed are never awaited: that is what being killed means.
    with quiet():
        began_s = time.process_time()
        for seed in seeds:
            report = simulate(seed, BUGS.get(bug))
            virtual_s += report.seconds
            turns += report.turns
            deaths += report.deaths
            if report.complaints:
                failed.append(Failed(seed, report.complaints))
        return Sum(len(seeds), failed, time.process_time() - began_s, virtual_s, turns, deaths)


def run_many(seeds: Sequence[int], bug: str = "", workers: int = 2) -> Sum:
    """Run seeds in `workers` processes."""
    chunks = [seeds[at : at + _CHUNK_SEEDS] for at in range(0, len(seeds), _CHUNK_SEEDS)]
    # Not forked: what runs in this process already, threads among it, has no place in a run.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        sums = list(pool.map(run_chunk, chunks, [bug] * len(chunks)))
    return Sum(
        sum(part.seeds for part in sums),
        [failed for part in sums for failed in part.failed],
        sum(part.cpu_s for part in sums),
        sum(part.virtual_s for part in sums),
        sum(part.turns for part in sums),
        sum(part.deaths for part in sums),
    )


def told(failed: Sequence[Failed], bug: str = "") -> str:
    """Return failures as a person wants to read them."""
    lines = [
        f"seed {seed}: {'; '.join(complaints)}\n  replay: {replay_command(seed, bug)}"
        for seed, complaints in failed[:_SHOWN_MAX]
    ]
    more = len(failed) - _SHOWN_MAX
    return "\n".join(lines + ([f"and {more} seeds more"] if more > 0 else []))


def show(seed: int, bug: str = "") -> Report:
    """Run one seed and print its story."""
    warnings.simplefilter("ignore")
    with quiet():
        report = simulate(seed, BUGS.get(bug), is_traced=True)
    for line in report.trace:
        print(line)
    for complaint in report.complaints:
        print(f"FAILED: {complaint}")
    print(f"seed {seed}: {report.seconds:.1f} s of virtual time, {report.turns} turns, {report.deaths} deaths")
    return report


def _seeds(text: str) -> list[int]:
    first, dots, last = text.partition("..")
    return list(range(int(first), int(last) + 1)) if dots else list(range(1, int(first) + 1))


def main() -> int:
    """Run the command line; 1 where a seed failed."""
    parser = argparse.ArgumentParser(prog="make simulate", description="Run the fleet in a simulation, seed by seed.")
    parser.add_argument("--seeds", type=_seeds, default=_seeds("2000"), help="1..100000, or how many from 1 on")
    parser.add_argument("--seed", type=int, help="one seed, with its story")
    parser.add_argument("--bug", choices=sorted(BUGS), default="", help="plant a bug, to see it found")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.seed is not None:
        return 1 if show(options.seed, options.bug).complaints else 0
    began_s = time.monotonic()
    total = run_many(options.seeds, options.bug, options.workers)
    if total.failed:
        print(told(total.failed, options.bug))
    print(
        f"{total.seeds} seeds, {len(total.failed)} failed; {1000 * total.cpu_s / total.seeds:.1f} ms of CPU a seed, "
        f"{time.monotonic() - began_s:.1f} s in all; {total.virtual_s / 3600:.1f} h of virtual time, "
        f"{total.deaths} deaths"
    )
    return 1 if total.failed else 0

