"""One run: all processes of a fleet, its clients and its troubles, from one number.

Law: everything that could be otherwise is drawn from the seed, so a run is the same every time, to the last callback.
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from types import ModuleType
from typing import Any

from nexus_ray.config import Settings
from nexus_ray.core.errors import UnavailableError
from nexus_ray.runtime.placement import Membership, Placement, Slot
from nexus_ray.runtime.process import HostProcess
from tests.simulation import app
from tests.simulation.clients import Client, answer_all, operate, wishes
from tests.simulation.disk import Disk
from tests.simulation.faults import draw
from tests.simulation.fleet import DirectoryProcess, Host, follow
from tests.simulation.ledger import LedgerClient, LedgerServer
from tests.simulation.loop import PROCESS, Process, SimLoop, Stuck
from tests.simulation.network import Network
from tests.simulation.referee import Referee
from tests.simulation.trace import Line, text

TURNS_MAX = 300_000
ENDS_AT_S = 60.0
"""When everything must be over: goals with short deadlines are, and nothing goes wrong after six seconds."""
_LINGER_S = 1.0  # Those who slept wake up, and try to write.


@dataclass(frozen=True, slots=True)
class Bug:
    """A fault that is planted for a test: a ledger that lies, or what is done to a host before it starts."""

    name: str
    ledger: type[LedgerServer] = LedgerServer
    plant: Callable[[HostProcess], None] = lambda host: None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run."""

    seed: int
    complaints: tuple[str, ...]
    trace: tuple[str, ...]
    turns: int
    seconds: float
    deaths: int


@cache
def _settings() -> Settings:
    settings = Settings()
    return settings.model_copy(
        update={
            # Looked at more often than by default, so that the hung are found out while there is still something to do.
            "runtime": settings.runtime.model_copy(update={"health_interval_s": 0.5}),
            # What this process really takes of memory has no place in a run.
            "agents": settings.agents.model_copy(update={"memory_bytes_max": 2**60}),
        }
    )


class World:
    """The run of one seed."""

    def __init__(self, seed: int, bug: Bug | None, is_traced: bool) -> None:
        self.seed = seed
        self.app = app.app
        self.settings = _settings()
        self.random = Random(f"{seed} world")
        self.plan = draw(Random(f"{seed} faults"))
        self.loop = SimLoop(TURNS_MAX)
        self.lines: list[Line] = []
        if not is_traced:
            self.tell = _silent  # type: ignore[method-assign]
        self.network = Network(
            self.loop, Random(f"{seed} network"), self.plan.weather, self.tell, self.point
        )
        self.disk = Disk()
        self.referee = Referee(self.disk)
        self.bug = bug
        self.deaths = 0
        self._points: Counter[str] = Counter()
        self._tries = self.random.choice([1, 3, 8])
        self.slots = [Slot(f"node-{number % 2}", number) for number in range(self.random.choice([2, 2, 3, 4]))]
        self.hosts: dict[str, Host] = {}
        self._hosts_made = 0
        self._unreachable: set[str] = set()
        self.cluster = Process(self.loop, "cluster", "cluster")
        self.ledger = self._start_ledger()
        self.directory = self._start_directory()
        self.placement = Placement(Membership(0, ()))
        """As the gateway sees it, which follows the directory for all clients."""
        gateway = Process(self.loop, "gateway", "client")
        gateway.start(follow(self, self._take))
        self._clients: list[Process] = [gateway]

    def _take(self, membership: Membership) -> None:
        self.placement = Placement(membership)

    # --- What processes ask of the world.

    def tell(self, what: str, *details: Any) -> None:
        """Write a line of the trace."""
        process = PROCESS.get(None)
        self.lines.append((self.loop.now, self.loop.turns, process.name if process else "-", what, *details))

    def point(self, where: str) -> bool:
        """A process passes a point at which it may die; tell whether it lives on."""
        process = PROCESS.get()
        kind = process.kind
        self._points[kind] += 1
        deaths = self.plan.deaths.get(kind)
        if deaths and self._points[kind] in deaths and process.is_alive and self.loop.now < self.plan.until:
            self.kill(process, where)
        return process.is_alive

    def ledger_client(self) -> LedgerClient:
        return LedgerClient(self._call_ledger, self._tries)

    async def _call_ledger(self, method: str, *args: Any) -> Any:
        process, server = self.ledger
        return await self.network.call(process, method, getattr(server, method), *args)

    async def watch(self, epoch: int, wait_s: float = 30.0) -> Membership:
        """Ask the directory who is a member."""
        process, directory = self.directory
        membership: Membership = await self.network.call(process, "watch", directory.watch, epoch, wait_s)
        return membership

    async def drain(self, target: str, is_undone: bool) -> list[str]:
        """Ask the directory to drain a host or a machine."""
        process, directory = self.directory
        hosts: list[str] = await self.network.call(process, "drain", directory.drain, target, is_undone)
        return hosts

    def plant(self, host: HostProcess) -> None:
        if self.bug is not None:
            self.bug.plant(host)

    # --- Processes come and go.

    async def spawn(self, slot: Slot) -> Host:
        """Start a process for a host, under a name that was never used before."""
        if self.random.random() < 0.1 and self.loop.now < self.plan.until:
            raise UnavailableError("there is no room for a process now")
        self._hosts_made += 1
        name = f"agent-host-{slot.number}-{self._hosts_made}"
        process = Process(self.loop, name, "host", self.random.uniform(-1, 1) * self.plan.skew_s)
        host = self.hosts[name] = Host(self, slot, process)
        self.tell("spawned", name)
        return host

    def end_host(self, name: str) -> None:
        """Kill a host for good, sooner or later, or never where its machine cannot be reached."""
        process = self.hosts[name].process
        if name in self._unreachable:
            return
        if self.random.random() >= self.plan.kill_never or self.loop.now >= self.plan.until:
            self.loop.call_later(self.random.uniform(0.01, 1.0), self.kill, process, "ended")

    def kill(self, process: Process, where: str) -> None:
        if not process.is_alive:
            return
        self.tell("killed", process.name, where)
        self.deaths += 1
        process.kill()
        again_s = self.random.choice([0.05, 0.3, 2.0]) * self.random.uniform(0.5, 1.5)
        if process is self.ledger[0]:
            self.loop.call_later(again_s, self._restart_ledger, context=self.cluster.context)
        elif process is self.directory[0]:
            self.loop.call_later(again_s, self._restart_directory, context=self.cluster.context)

    def _restart_ledger(self) -> None:
        self.tell("restarted", "ledger")
        self.ledger = self._start_ledger()

    def _restart_directory(self) -> None:
        self.tell("restarted", "directory")
        self.directory = self._start_directory()

    def _start_ledger(self) -> tuple[Process, LedgerServer]:
        process = Process(self.loop, "ledger", "ledger")
        server_class = self.bug.ledger if self.bug is not None else LedgerServer
        server = server_class(
            self.disk, self.random, point=self.point, committed=self._committed, sync_s=self.plan.sync_s,
            failing=lambda: self.plan.failing_commits if self.loop.now < self.plan.until else 0.0,
        )  # fmt: skip
        return process, server

    def _committed(self, calls: Any, answers: Any) -> None:
        self.tell("committed", self.disk.seq, calls, answers)
        self.referee.committed(calls, answers)

    def _start_directory(self) -> tuple[Process, DirectoryProcess]:
        process = Process(self.loop, "directory", "directory")
        return process, DirectoryProcess(self, process)

    # --- Trouble, by the clock.

    def _plan_trouble(self) -> None:
        for at, kind in self.plan.kills:
            self.loop.call_later(at, self._kill_one, kind, context=self.cluster.context)
        for at, seconds, kind in self.plan.pauses:
            self.loop.call_later(at, self._pause_one, kind, seconds, context=self.cluster.context)
        for at, seconds, one, other in self.plan.cuts:
            self.loop.call_later(at, self._cut_one, one, other, seconds, context=self.cluster.context)
        for at, seconds in self.plan.forsaken:
            self.loop.call_later(at, self._forsake_one, seconds, context=self.cluster.context)
        self.loop.call_later(self.plan.until, self._calm, context=self.cluster.context)

    def _one(self, kind: str) -> Process | None:
        living = {
            "host": [host.process for host in self.hosts.values() if host.process.is_alive],
            "ledger": [self.ledger[0]],
            "directory": [self.directory[0]],
            "client": self._clients,
        }[kind]
        return self.random.choice(living) if living else None

    def _kill_one(self, kind: str) -> None:
        if process := self._one(kind):
            self.kill(process, "by the clock")

    def _pause_one(self, kind: str, seconds: float) -> None:
        process = self._one(kind)
        if process is not None and not process.is_paused:
            self.tell("paused", process.name, seconds)
            process.pause()
            self.loop.call_later(seconds, self._resume, process)
            if kind == "directory" and self.random.random() < 0.5:
                # It is taken for dead, and another is made; when it wakes up, there are two.
                self.loop.call_later(0.5, self._succeed, process, context=self.cluster.context)

    def _forsake_one(self, seconds: float) -> None:
        """Have a host taken for dead, and out of everybody's reach, that goes on a moment later."""
        process = self._one("host")
        if process is not None and not process.is_paused:
            self.tell("forsaken", process.name, seconds)
            self._unreachable.add(process.name)
            process.pause()
            process.forsake()
            self.loop.call_later(seconds, self._resume, process)

    def _succeed(self, process: Process) -> None:
        if process is self.directory[0] and process.is_alive:
            self.tell("succeeded", process.name)
            self.directory = self._start_directory()
            process.forsake()

    def _resume(self, process: Process) -> None:
        self.tell("resumed", process.name)
        process.resume()

    def _cut_one(self, one: str, other: str, seconds: float) -> None:
        first, second = self._one(one), self._one(other)
        if first is not None and second is not None and first is not second:
            self.tell("cut", first.name, second.name, seconds)
            self.network.cut(first.name, second.name, self.loop.now + seconds)

    def _calm(self) -> None:
        self.tell("calm")
        self.network.calm()

    # --- The run.

    def run(self) -> None:
        """Run until every client has its answer and every goal its outcome; then ask the referee."""
        self._plan_trouble()
        running = []
        wanted = wishes(Random(f"{self.seed} wishes"))
        if any(wish.type == "patient" for wish in wanted):
            person = Process(self.loop, "person", "client")
            person.start(answer_all(self, person))
        for number, wish in enumerate(wanted):
            process = Process(self.loop, f"client-{number}", "client")
            self._clients.append(process)
            running.append(process.start(Client(self, number, wish, process).run()))

        if self.plan.drains:
            operator = Process(self.loop, "operator", "client")
            running.append(operator.start(operate(self, Random(f"{self.seed} operator"))))

        def is_wanted() -> bool:
            # Looked at from the end: the last to finish is most likely among the last.
            while running and running[-1].done():
                task = running.pop()
                if (error := task.exception()) is not None:
                    self.referee.complain(f"a client gave up: {error!r}")
            return bool(running or self.disk.open or self.loop.now < self.plan.until)

        try:
            self.loop.run_while(is_wanted, ENDS_AT_S)
            wake_at = max((at + seconds for at, seconds, _ in self.plan.pauses), default=0.0)
            ends_at = max(self.loop.now, wake_at) + _LINGER_S
            self.loop.run_while(lambda: self.loop.now < ends_at, ends_at)
        except Stuck as stuck:
            self.referee.complain(f"it goes round in circles: {stuck}")
        if running:
            self.referee.complain(f"{len(running)} clients still wait at {self.loop.now:.0f} s")
        for fault in self.loop.faults:
            self.referee.complain(fault)
        self.referee.check(self.loop.outside)


def simulate(seed: int, bug: Bug | None = None, *, is_traced: bool = False) -> Report:
    """Run one seed."""
    world = World(seed, bug, is_traced)
    try:
        world.run()
        return Report(
            seed, tuple(world.referee.complaints), tuple(map(text, world.lines)), world.loop.turns,
            world.loop.now, world.deaths,
        )  # fmt: skip
    finally:
        world.loop.dispose()


def _silent(*_: Any, **__: Any) -> None:
    pass


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log nothing, and let the garbage collector look at nothing that is there already: a run has no time for both."""
    import sys

    changed: list[tuple[ModuleType, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("nexus_ray.") and hasattr(module, "log"):
            changed.append((module, module.log))
            module.log = _NoLog()  # type: ignore[attr-defined]
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        for module, log in changed:
            module.log = log  # type: ignore[attr-defined]
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class _NoLog:
    def __getattr__(self, level: str) -> Callable[..., None]:
        return _silent
