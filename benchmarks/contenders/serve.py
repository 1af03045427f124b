"""The contender's side: be ready, do what the runner orders, leave when it closes the pipe."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from benchmarks.contenders.protocol import Answer, Order, Ready, decode_order, encode, failed
from benchmarks.job import TASKS
from benchmarks.sampling import closed_loop

Goal = Callable[[int], Awaitable[int]]
"""Runs one goal of so many agents; returns how many answered that they have counted."""


def serve(package: str, contender: Callable[[Path, str], AbstractAsyncContextManager[Goal]]) -> None:
    """Serve the runner from the main module: `python -m benchmarks.contenders.NAME FOLDER [WAY]`."""
    folder, way = Path(sys.argv[1]), (sys.argv[2:] or [""])[0]
    # What libraries print must not come between the lines of the protocol.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        asyncio.run(_serve(contender(folder, way), version(package), out))
    except Exception as error:
        out.write(failed(f"{type(error).__name__}: {error}"))
        raise


async def _serve(contender: AbstractAsyncContextManager[Goal], system: str, out: TextIO) -> None:
    loop = asyncio.get_running_loop()
    # Where a system only knows blocking calls, each goal under way has a thread.
    loop.set_default_executor(ThreadPoolExecutor(128))
    with ThreadPoolExecutor(1) as reader:
        async with contender as goal:
            await checked(goal, TASKS)
            out.write(encode(Ready(system)))
            while line := await loop.run_in_executor(reader, sys.stdin.readline):
                out.write(encode(await carry_out(goal, decode_order(line))))


async def carry_out(goal: Goal, order: Order) -> Answer:
    """Run one round."""
    result = await closed_loop(
        lambda _: checked(goal, order.width), order.concurrency, order.seconds, goals_max=order.goals_max
    )
    return Answer(result.wall_s, result.latencies_s)


async def checked(goal: Goal, width: int) -> None:
    """Run a goal; a contender that does not do the job is no comparison."""
    counted = await goal(width)
    if counted != width:
        raise RuntimeError(f"a goal of {width} agents brought {counted} answers")
