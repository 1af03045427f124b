"""Contenders in turn, round by round: everybody at one concurrency, then everybody again.

The rounds of a turn are within seconds of each other, so they share the machine's mood, and a ratio is of such a pair.
Who begins changes from turn to turn. Whoever fails is out, with all that it did, and the reason is told.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.cluster import say
from benchmarks.contender import NotRunError
from benchmarks.sampling import Note, Round, Row, Target, pair_ratios, summarise

Seen = dict[tuple[str, int], list[Round]]
"""The rounds of a contender, by its name, at a concurrency."""


@dataclass(frozen=True, slots=True)
class Runner:
    """One that takes part: `measure(concurrency, seconds)` is a round."""

    name: str
    measure: Callable[[int, float], Awaitable[Round]]


@dataclass(frozen=True, slots=True)
class Heat:
    """So many turns at one concurrency, each round of at least so many seconds."""

    concurrency: int
    turns: int
    seconds: float


async def race(section: str, runners: Sequence[Runner], heats: Sequence[Heat]) -> tuple[Seen, list[Note]]:
    """Run all heats; a runner that fails leaves a note and nothing else."""
    seen: Seen = {}
    out: dict[str, Note] = {}

    async def take_turn(runner: Runner, concurrency: int, seconds: float) -> Round | None:
        try:
            return await runner.measure(concurrency, seconds)
        except NotRunError as error:
            say(f"{runner.name} is out: {error}")
            out[runner.name] = Note(section, f"{runner.name}: not run: {error}")
            return None

    for runner in runners:
        await take_turn(runner, 4, 0.5)  # To warm up.
    for heat in heats:
        for turn in range(heat.turns):
            first = turn % len(runners)
            for runner in [*runners[first:], *runners[:first]]:
                if runner.name in out:
                    continue
                found = await take_turn(runner, heat.concurrency, heat.seconds)
                if found is not None:
                    seen.setdefault((runner.name, heat.concurrency), []).append(found)
                    say(f"{runner.name} at {heat.concurrency}: {found.rate:,.1f} goals/s")
    order = [runner.name for runner in runners if runner.name not in out]
    return {(name, heat.concurrency): seen[name, heat.concurrency] for heat in heats for name in order}, [*out.values()]


def rows(section: str, seen: Seen, us: str, ours: Sequence[str], targets: dict[tuple[str, int], float]) -> list[Row]:
    """Rates, latencies, CPU times, and `us` over everybody who is none of `ours`."""
    made = []
    for (name, concurrency), rounds in seen.items():
        title = f"{name}, concurrency {concurrency}"
        rates = summarise([one.rate for one in rounds])
        made.append(Row(section, title, "goals/s", rates, series=name, at=concurrency))
    for (name, concurrency), rounds in seen.items():
        title = f"{name}, concurrency {concurrency}, latency"
        latencies = summarise([latency * 1e3 for one in rounds for latency in one.latencies_s])
        made.append(Row(section, title, "ms", latencies, series=name, at=concurrency))
    for (name, concurrency), rounds in seen.items():
        title = f"{name}, concurrency {concurrency}, of all its processes"
        spent = summarise([one.cpu_us / 1e3 for one in rounds])
        made.append(Row(section, title, "CPU ms a goal", spent, series=name, at=concurrency))
    for (name, concurrency), rounds in seen.items():
        if name in ours:
            continue
        ratios = pair_ratios([one.rate for one in seen[us, concurrency]], [one.rate for one in rounds])
        at_least = targets.get((name, concurrency))
        target = None if at_least is None else Target("at_least", at_least)
        title = f"{us} over {name}, concurrency {concurrency}"
        made.append(Row(section, title, "x", summarise(ratios), target, series=name, at=concurrency))
    return made


def tail(section: str, seen: Seen, name: str, concurrency: int, at_most: float) -> Row:
    """How much longer than the middle goal the slowest hundredth takes, by rounds."""
    summaries = [summarise(one.latencies_s) for one in seen[name, concurrency]]
    ratios = summarise([summary.p99 / summary.p50 for summary in summaries])
    title = f"{name}, p99 over p50, concurrency {concurrency}"
    return Row(section, title, "times", ratios, Target("at_most", at_most))
