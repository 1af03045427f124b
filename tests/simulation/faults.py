"""What goes wrong in a run, drawn from its seed: deaths, pauses, cuts, a bad network, a disk that refuses.

Law: not everything goes wrong in every run. Each kind of trouble is left out of many runs, because one that is always
there hides what the others would show.
"""

from dataclasses import dataclass, field
from random import Random

from tests.simulation.network import FAIR, Weather


@dataclass(slots=True)
class Plan:
    """What goes wrong.

    `deaths`: by kind of process, at which of the points passed by its kind one dies. `pauses`: when, for how long, and
    which kind of process. `cuts`: when, for how long, and between which kinds. `forsaken`: when a host is taken for
    dead that only stands still, and for how long.
    """

    until: float  # Pauses and cuts that began before may last longer.
    weather: Weather = FAIR
    deaths: dict[str, set[int]] = field(default_factory=dict)
    kills: list[tuple[float, str]] = field(default_factory=list)
    pauses: list[tuple[float, float, str]] = field(default_factory=list)
    cuts: list[tuple[float, float, str, str]] = field(default_factory=list)
    forsaken: list[tuple[float, float]] = field(default_factory=list)
    failing_commits: float = 0.0
    skew_s: float = 0.0
    sync_s: float = 0.001
    drains: bool = False
    kill_never: float = 0.0
    """Share of hosts that were declared dead, but cannot be reached to be killed."""


_PAUSED = ["host", "host", "host", "host", "ledger", "directory"]
_POINTS = {"host": 250, "ledger": 150, "directory": 60}


def draw(random: Random) -> Plan:
    """Draw what goes wrong."""
    plan = Plan(until=random.uniform(1.5, 4.0))
    if random.random() < 0.6:
        plan.weather = Weather(
            delay_s=random.choice([0.0005, 0.002, 0.01]),
            slow=random.choice([0.0, 0.02, 0.1]),
            slow_s=random.choice([0.1, 1.0, 3.0]),
            lost=random.choice([0.0, 0.01, 0.05]),
            doubled=random.choice([0.0, 0.02, 0.1]),
        )
    for kind, points in _POINTS.items():
        if random.random() < 0.6:
            plan.deaths[kind] = {int(points * random.random() ** 1.5) for _ in range(random.randint(1, 3))}
    for _ in range(random.choice([0, 0, 1, 2])):
        plan.kills.append((random.uniform(0.0, plan.until), random.choice(["host", "host", "ledger", "directory"])))
    for _ in range(random.choice([0, 0, 1, 2])):
        plan.pauses.append(
            (random.uniform(0.2, 2.5), random.uniform(0.5, 9.0), random.choice(_PAUSED))
        )
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        pair = random.choice(
            [("host", "host"), ("host", "ledger"), ("host", "directory"), ("directory", "ledger"), ("client", "ledger")]
        )
        plan.cuts.append((random.uniform(0.0, 2.5), random.uniform(0.3, 10.0), *pair))
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        plan.forsaken.append((random.uniform(0.3, 2.5), random.choice([0.0, 0.2, 1.0, 3.0]) * random.random()))
    plan.failing_commits = random.choice([0.0, 0.0, 0.0, 0.05, 0.3])
    plan.skew_s = random.choice([0.0, 0.0, 0.05, 0.5])
    plan.sync_s = random.choice([0.0005, 0.002, 0.01, 0.05])
    plan.drains = random.random() < 0.35
    plan.kill_never = random.choice([0.0, 0.3, 0.8])
    return plan
