"""The runner's side of a contender: its process and those it starts, stopped while somebody else is measured."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import environments
from benchmarks.contenders.protocol import (
    LINE_BYTES_MAX,
    Order,
    ProtocolError,
    decode_answer,
    decode_ready,
    encode,
)  # fmt: skip
from benchmarks.sampling import Round

NEXUS = "Nexus"
LEDGERED = "Nexus, agent state durable too"
ONE_EACH = "raw Ray, one actor per agent"
GROUPED = "raw Ray, one grouped call to one host"
OURS = (NEXUS, LEDGERED)

ROOT = Path(__file__).resolve().parents[1]
_READY_S_MAX = 90.0
_ROUND_S_MAX = 90.0  # Beside the seconds of the order: the slowest take 8 s for their last 64 goals.
_LEAVE_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One system and one way to use it; `needs` is a program beside what its environment has."""

    name: str
    module: str
    way: str = ""
    is_durable: bool = False
    needs: str = ""


DASK = Peer("Dask, an actor per agent", "dask")
XOSCAR_EACH = Peer("xoscar, an actor per agent", "xoscar", "each")
XOSCAR_BATCHED = Peer("xoscar, one batched call to one actor", "xoscar", "batched")
LANGGRAPH = Peer("LangGraph, no checkpointer", "langgraph", "none")
LANGGRAPH_MEMORY = Peer("LangGraph, checkpoints in memory", "langgraph", "memory")
LANGGRAPH_SQLITE = Peer("LangGraph, checkpoints in SQLite", "langgraph", "sqlite", is_durable=True)
DBOS = Peer("DBOS on SQLite, a goal in one step", "dbos", is_durable=True)
DRAMATIQ = Peer("dramatiq on Redis", "dramatiq", needs="redis-server")

PEERS = (DASK, XOSCAR_EACH, XOSCAR_BATCHED, LANGGRAPH, LANGGRAPH_MEMORY, LANGGRAPH_SQLITE, DBOS, DRAMATIQ)
DURABLE = (*OURS, *(peer.name for peer in PEERS if peer.is_durable))


class NotRunError(RuntimeError):
    """A contender does not take part, or not any more; the message says why."""


def missing(peer: Peer) -> str:
    """Return what has to be installed by hand before a contender can run; empty where nothing has."""
    return f"apt install {peer.needs}" if peer.needs and shutil.which(peer.needs) is None else ""


class Contender:
    """A contender that is up. Between rounds it is stopped: all its processes, by SIGSTOP."""

    def __init__(self, peer: Peer, process: asyncio.subprocess.Process, log: Path) -> None:
        self.peer = peer
        self.version = ""
        self._process = process
        self._log = log

    async def measure(self, order: Order) -> Round:
        """Run one round; every other contender is to be stopped meanwhile.

        Raises NotRunError where it failed, took too long, or has left.
        """
        processes = self.processes()
        resume(processes)
        try:
            before = cpu_s(processes)
            line = await self._ask(encode(order), order.seconds + _ROUND_S_MAX)
            spent = cpu_s(processes) - before
        finally:
            suspend(self.processes())
        try:
            answer = decode_answer(line)
        except ProtocolError as error:
            raise self._not_run(str(error)) from error
        return Round(answer.wall_s, spent, answer.latencies_s)

    async def wait_ready(self) -> None:
        try:
            self.version = decode_ready(await self._ask("", _READY_S_MAX)).ready
        except ProtocolError as error:
            raise self._not_run(str(error)) from error
        suspend(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Return its processes, parents first."""
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    async def leave(self) -> None:
        """Have it leave by itself; whatever of it is left afterwards is killed."""
        known = self.processes()
        resume(known)
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _LEAVE_S_MAX)
        for process in known:  # psutil tells a process from another one that has its number by now.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await self._process.wait()

    async def _ask(self, line: str, seconds: float) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode())
            async with asyncio.timeout(seconds):
                await self._process.stdin.drain()
                answer = await self._process.stdout.readline()
        except TimeoutError:
            raise self._not_run(f"no answer in {seconds:.0f} s") from None
        except (ConnectionError, ValueError) as error:
            raise self._not_run(str(error)) from error
        if not answer:
            raise self._not_run("it left")
        return answer.decode()

    def _not_run(self, why: str) -> NotRunError:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return NotRunError(f"{why} ({lines[-1][:200]})" if lines and lines[-1] not in why else why)


@contextlib.asynccontextmanager
async def started(peer: Peer, folder: Path) -> AsyncIterator[Contender]:
    """Start a contender in a folder of its own, and yield it when it has done the job once.

    Raises NotRunError.
    """
    if needed := missing(peer):
        raise NotRunError(needed)
    if not environments.is_ready(peer.module):
        raise NotRunError("its environment could not be made")
    folder.mkdir(mode=0o700, parents=True)
    # Nothing of this environment is for the other one, and Ray's and Nexus' settings are not for anybody else.
    ours = ("PYTHON", "NEXUS_", "RAY_", "VIRTUAL_ENV", "PROMETHEUS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["TMPDIR"] = str(folder)
    command = [str(environments.python(peer.module)), "-m", f"benchmarks.contenders.{peer.module}", str(folder)]
    with open(folder / "log", "wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, *([peer.way] if peer.way else []), cwd=ROOT, env=environment, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=log, limit=LINE_BYTES_MAX, start_new_session=True,
        )  # fmt: skip
    contender = Contender(peer, process, folder / "log")
    try:
        await contender.wait_ready()
        yield contender
    finally:
        await contender.leave()


def suspend(processes: Iterable[psutil.Process]) -> None:
    """Stop processes, parents first: a parent that goes on might start another."""
    _signal(processes, signal.SIGSTOP)


def resume(processes: Iterable[psutil.Process]) -> None:
    _signal(reversed(list(processes)), signal.SIGCONT)


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds that processes have had."""
    spent = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
