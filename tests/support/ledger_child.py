"""A process that writes to a ledger as fast as it can and says what was acknowledged; ends by being killed.

Each call finishes one goal and writes three steps with the state of one agent, all or nothing.
"""

import asyncio
import sys
from pathlib import Path

from nexus_ray.ledger.sqlite import SqliteLedger
from tests.support.records import a_finish, a_goal, a_step


async def write(path: Path, first: int) -> None:
    ledger = await SqliteLedger.open(path)

    async def one(number: int) -> None:
        goal_id = f"goal-{number:06}"
        await ledger.accept([a_goal(goal_id)], "host-a")
        print("accepted", goal_id, flush=True)
        steps = [a_step(f"s-{step}", goal_id, version=number * 3 + step) for step in (1, 2, 3)]
        assert await ledger.append("host-a", [*steps, a_finish(goal_id)]) == [True] * 4
        print("finished", goal_id, flush=True)

    for number in range(first, first + 10_000, 4):
        await asyncio.gather(*(one(number + n) for n in range(4)))


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), int(sys.argv[2])))
