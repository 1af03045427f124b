"""The record of effects: what agents do outside, in the ledger, written by the host that they live on.

Law: intent and end are writes like any other: fenced with their host, once per key, durable before they are told.
"""

import asyncio
from collections.abc import Callable

from nexus_ray.core.clock import Clock
from nexus_ray.ledger.goal import EntryKind, Step
from nexus_ray.ledger.ports import Ledger, answer_key


class EffectRecord:
    """Implements `Effects`; `write` gets a step into the ledger in the name of `host`."""

    def __init__(
        self, host: str, ledger: Ledger, clock: Clock, write: "Callable[[Step], asyncio.Future[bool]]"
    ) -> None:
        self.host = host
        self.loop = asyncio.get_running_loop()
        self._ledger = ledger
        self._clock = clock
        self._write = write

    def begin(self, goal_id: str, step_key: str, body: bytes) -> "asyncio.Future[bool]":
        """Write that something is about to happen outside."""
        return self._write(Step(goal_id, step_key, self._clock.now(), body, kind=EntryKind.EFFECT_BEGUN))

    def end(self, goal_id: str, step_key: str, body: bytes) -> "asyncio.Future[bool]":
        """Write how it ended."""
        return self._write(Step(goal_id, answer_key(step_key), self._clock.now(), body, kind=EntryKind.EFFECT_ENDED))

    async def recorded(self, goal_id: str, step_key: str) -> tuple[bytes | None, bytes | None]:
        """Return what stands: that it was begun, and how it ended."""
        begun = await self._ledger.entry(goal_id, step_key)
        ended = await self._ledger.entry(goal_id, answer_key(step_key))
        return begun.body if begun else None, ended.body if ended else None


def effects_from_afar(host: str, ledger: Ledger, clock: Clock) -> EffectRecord:
    """Return a record for an agent of `host` in a process of its own, which has no write stream."""
    writing: set[asyncio.Task[bool]] = set()  # So that none is collected before it is done.

    async def append(step: Step) -> bool:
        (took_effect,) = await ledger.append(host, [step])
        return took_effect

    def write(step: Step) -> "asyncio.Future[bool]":
        task = asyncio.get_running_loop().create_task(append(step))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return task

    return EffectRecord(host, ledger, clock, write)
