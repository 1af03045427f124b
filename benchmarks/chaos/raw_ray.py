"""Raw Ray, as its manual has it: actors that Ray restarts, and tasks that it tries again, without an end.

The jobs are known to one driver, which is never struck: nothing of Ray's would know of them afterwards.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.contest import AGENTS, LostError, trace_key
from benchmarks.chaos.traces import append
from benchmarks.cluster import free_port
from nexus_ray.config import load

_WORK_S = 0.02
_UP_S_MAX = 120.0


class Tally:
    """One agent: it counts in memory, as actors do."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._n = 0

    async def count(self, key: str) -> int:
        self._n += 1
        n = self._n
        append(self._folder, "noted", key)
        await asyncio.sleep(_WORK_S)
        return n

    async def stands_at(self) -> int:
        return self._n


class RawRay:
    """A driver and its actors."""

    name = "raw Ray actors"

    def __init__(self, actors: Sequence[Any]) -> None:
        self.titles = {"agent host": f"ray::{Tally.__name__}"}
        self._actors = actors
        self._asked: dict[str, dict[int, Any]] = {}

    def begin(self, tag: str, keys: Sequence[int]) -> None:
        self._asked[tag] = {key: self._actors[key].count.remote(trace_key(tag, key)) for key in keys}

    def end(self, tag: str, within_s: float) -> list[tuple[int, int]]:
        asked = self._asked.pop(tag)
        return list(zip(asked, _get(list(asked.values()), within_s), strict=True))

    def states(self) -> dict[int, int]:
        return dict(enumerate(_get([actor.stands_at.remote() for actor in self._actors], _UP_S_MAX)))


@contextlib.contextmanager
def raw_ray(folder: Path, traces: Path) -> Iterator[RawRay]:
    """Start Ray as Nexus starts it, on loopback and with tokens, and the actors."""
    from nexus_ray.runtime.local import set_environment, start_ray, stop_ray
    from nexus_ray.runtime.state import prepare_state

    settings = load(state_dir=folder, runtime={"dashboard": False, "dashboard_port": free_port()})
    prepare_state(settings)
    set_environment(settings)
    start_ray(settings)
    # Imported here: ray reads its environment when it is imported.
    import ray

    try:
        options = {"num_cpus": 0, "max_concurrency": 100, "max_restarts": -1, "max_task_retries": -1}
        peer = RawRay([ray.remote(Tally).options(**options).remote(str(traces)) for _ in range(AGENTS)])
        peer.states()
        yield peer
    finally:
        stop_ray()


def _get(answers: list[Any], within_s: float) -> list[Any]:
    import ray

    try:
        return list(ray.get(answers, timeout=within_s))
    except ray.exceptions.GetTimeoutError:
        raise TimeoutError from None
    except ray.exceptions.RayError as error:
        raise LostError(type(error).__name__) from None
