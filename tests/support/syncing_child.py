"""A process that accepts goals while its disk syncs, while it does not, and when it does again."""

import asyncio
import os
import sys
from pathlib import Path

from nexus_ray.core.errors import NexusError
from nexus_ray.ledger.sqlite import SqliteLedger
from tests.support.records import a_goal


async def main(path: Path, switch: Path) -> None:
    ledger = await SqliteLedger.open(path)
    for number in range(20):
        if number == 5:
            switch.touch()
        if number == 15:
            switch.unlink()
        goal_id = f"goal-{number:02}"
        try:
            await ledger.accept([a_goal(goal_id)])
            print(f"accepted:{goal_id}", flush=True)
        except NexusError as error:
            print(f"refused:{type(error).__name__}:{goal_id}", flush=True)
    os._exit(0)  # As good as killed: nothing is closed.


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
