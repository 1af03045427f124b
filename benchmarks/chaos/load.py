"""The clients: each submits goals under keys of its own, again under the same key until it is told "accepted".

Law: a client believes only what it was told. What it was told it keeps, because the account is drawn up from that.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nexus_ray.core.errors import NexusError, ResourceExhaustedError, UnavailableError
from nexus_ray.runtime.client import Connection

COUNTERS = 24
_WIDTH = 6  # Counters asked by one goal: several goals meet at each counter, on both hosts.
_GOAL_S = 300.0  # Longer than any run of recoveries: nothing here is to expire.
_TRY_AGAIN_S = 0.2
_SHARES = {"chaos_count": 4, "chaos_linger": 3, "chaos_family": 1, "chaos_note": 3, "chaos_pay": 3}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A goal that a client was told to be accepted."""

    tag: str
    id: str
    type: str


@dataclass(slots=True)
class Told:
    """What all clients were told; written by their threads, under the lock."""

    accepted: list[Accepted] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)  # Never told anything, however often they asked.
    results: dict[str, Any] = field(default_factory=dict)  # By goal: what a client that waited was told.
    lock: threading.Lock = field(default_factory=threading.Lock)


class Load:
    """Clients in threads; each asks for a goal, and for the next when it has its answer or need not wait for it."""

    def __init__(
        self, connection: Callable[[], Connection], folder: str, run: str, seed: int, clients: int, pace_s: float
    ) -> None:
        self.told = Told()
        self._connection = connection
        self._folder = folder
        self._run = run
        self._pace_s = pace_s
        self._is_over = threading.Event()
        self._gives_up_at = float("inf")
        self._threads = [
            threading.Thread(target=self._client, args=(number, random.Random(f"{seed}/{number}")), daemon=True)
            for number in range(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, within_s: float) -> None:
        """Submit nothing new, and return when every client has been told about what it has submitted."""
        self._gives_up_at = time.monotonic() + within_s
        self._is_over.set()
        for thread in self._threads:
            thread.join(max(0.1, self._gives_up_at + 30.0 - time.monotonic()))

    def _client(self, number: int, draw: random.Random) -> None:
        types, weights = list(_SHARES), list(_SHARES.values())
        with self._connection() as connection:
            count = 0
            while not self._is_over.is_set():
                count += 1
                type_name = draw.choices(types, weights)[0]
                job = {
                    "tag": f"{self._run}-{number}-{count}",
                    "keys": [f"{self._run}-{key}" for key in draw.sample(range(COUNTERS), _WIDTH)],
                    "folder": self._folder,
                    "seconds": round(draw.uniform(0.1, 3.0), 2),
                }
                waits = draw.random() < 0.5
                goal = self._submit(connection, type_name, job)
                if goal is not None and waits:
                    self._wait(connection, goal)
                self._is_over.wait(draw.uniform(0.5, 1.5) * self._pace_s)

    def _submit(self, connection: Connection, type_name: str, job: dict[str, Any]) -> Any:
        tag = job["tag"]
        while True:
            try:
                goal = connection.submit(type_name, job, timeout_s=_GOAL_S, idempotency_key=tag)
            except (UnavailableError, ResourceExhaustedError) as error:
                if time.monotonic() > self._gives_up_at:
                    with self.told.lock:
                        self.told.unanswered.append(f"{tag}: {error}")
                    return None
                time.sleep(_TRY_AGAIN_S)
            except NexusError as error:
                with self.told.lock:
                    self.told.refused.append(f"{tag}: {error}")
                return None
            else:
                with self.told.lock:
                    self.told.accepted.append(Accepted(tag, goal.id, type_name))
                return goal

    def _wait(self, connection: Connection, goal: Any) -> None:
        while time.monotonic() < self._gives_up_at:
            try:
                if goal.wait(5.0):
                    with self.told.lock:
                        self.told.results[goal.id] = goal.record
                    return
            except NexusError:
                time.sleep(_TRY_AGAIN_S)
