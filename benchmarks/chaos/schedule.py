"""What is done to which process, when: drawn from a seed, before anything runs, so that a run can be repeated.

Law: pure. The same seed and numbers give the same schedule; which process has which place is settled when it is struck.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

KILL = "kill"
PAUSE = "pause"

# By weight. The front door's parts are struck less: they take seconds to come back, and hide the rest meanwhile.
KINDS = {"agent host": 6, "ledger": 3, "directory": 3, "Serve replica": 2, "Serve proxy": 1, "Serve controller": 1}
_PAUSE_SHARE = 0.3
_PAUSE_S = (0.3, 8.0)  # A host is given up after 5 s without an answer: some wake up in time, and some are fenced.


@dataclass(frozen=True, slots=True)
class Blow:
    """One process of a kind is killed, or paused for `pause_s`, `after_s` after the blow before.

    `pick` (0 to 1) says which one where there are several.
    """

    after_s: float
    kind: str
    pick: float
    act: str
    pause_s: float = 0.0

    def choose(self, count: int) -> int:
        return min(int(self.pick * count), count - 1)

    def __str__(self) -> str:
        return f"{self.kind}: {self.act}" + (f" {self.pause_s:.1f} s" if self.act == PAUSE else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a schedule depends on; `kinds` are those that there are to be struck."""

    seed: int
    count: int
    every_s: float
    kinds: tuple[str, ...] = tuple(KINDS)

    def blows(self) -> list[Blow]:
        return schedule(self.seed, self.count, self.every_s, self.kinds)


def schedule(seed: int, blows: int, every_s: float, kinds: Sequence[str] = tuple(KINDS)) -> list[Blow]:
    """Draw a schedule of `blows`, on average one `every_s`; each of the first ones strikes another kind."""
    draw = random.Random(seed)
    firsts = list(kinds)
    draw.shuffle(firsts)
    weights = [KINDS[kind] for kind in kinds]
    made = []
    for number in range(blows):
        # Uniform, not exponential: two blows within a few milliseconds would mostly strike the same dead process.
        after_s = draw.uniform(0.3, 1.7) * every_s
        kind = firsts[number] if number < len(firsts) else draw.choices(kinds, weights)[0]
        pick, is_pause, pause_s = draw.random(), draw.random() < _PAUSE_SHARE, draw.uniform(*_PAUSE_S)
        made.append(Blow(after_s, kind, pick, PAUSE, pause_s) if is_pause else Blow(after_s, kind, pick, KILL))
    return made
