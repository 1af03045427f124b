"""LangGraph with its SQLite checkpointer: one process that runs graphs, started again as soon as it dies."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks import environments
from benchmarks.chaos.contest import LostError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = "langgraph"
_MODULE = "benchmarks.chaos.langgraph_worker"
_ASK_AGAIN_S = 2.0
_TAKEN_S_MAX = 90.0
_LEAVE_S = 10.0


class LangGraph:
    """The process, whoever it is at the moment, and what it said; a job is sent again until it is said to be taken."""

    name = "LangGraph, SQLite"

    def __init__(self, folder: Path, traces: Path) -> None:
        self._command = [str(environments.python(ENVIRONMENT)), "-m", _MODULE, str(folder), str(traces)]
        self._log = folder / "log"
        # It is host and ledger in one: the checkpointer works in its process.
        self.titles = dict.fromkeys(("agent host", "ledger"), " ".join(self._command))
        self._changed = threading.Condition()
        self._asked: dict[str, list[int]] = {}
        self._taken: set[str] = set()
        self._ended: dict[str, list[Any]] = {}
        self._states: dict[int, int] | None = None
        self._is_over = False
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def begin(self, tag: str, keys: Sequence[int]) -> None:
        ends_at = time.monotonic() + _TAKEN_S_MAX
        self._asked[tag] = list(keys)
        while time.monotonic() < ends_at:
            self._send({"tag": tag, "keys": self._asked[tag]})
            with self._changed:
                if self._changed.wait_for(lambda: tag in self._taken, _ASK_AGAIN_S):
                    return
        raise LostError("never taken")

    def end(self, tag: str, within_s: float) -> list[tuple[int, int]]:
        ends_at = time.monotonic() + within_s
        while time.monotonic() < ends_at:
            with self._changed:
                if self._changed.wait_for(lambda: tag in self._ended, _ASK_AGAIN_S):
                    return [(int(key), int(n)) for key, n in self._ended[tag]]
            self._send({"tag": tag, "keys": self._asked[tag]})  # It may have died with the answer unsaid.
        raise TimeoutError

    def states(self) -> dict[int, int]:
        ends_at = time.monotonic() + _TAKEN_S_MAX
        self._states = None
        while time.monotonic() < ends_at:
            self._send({})
            with self._changed:
                if self._changed.wait_for(lambda: self._states is not None, _ASK_AGAIN_S):
                    return dict(self._states or {})
        raise LostError("the counts were not told")

    def close(self) -> None:
        self._is_over = True
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._keeper.join(_LEAVE_S)

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _start(self) -> "subprocess.Popen[str]":
        ours = ("PYTHON", "NEXUS_", "RAY_", "VIRTUAL_ENV", "PROMETHEUS_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, cwd=ROOT, env=environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def _keep(self) -> None:
        """Hear what the process says; start it again when it has died, as a supervisor of processes would."""
        while not self._is_over:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):  # The last line of a process that was killed.
                    self._hear(json.loads(line))
            self._process.wait()
            if not self._is_over:
                self._process = self._start()

    def _hear(self, said: dict[str, Any]) -> None:
        with self._changed:
            if "taken" in said:
                self._taken.add(said["taken"])
            elif "ended" in said:
                self._ended[said["ended"]] = said["answers"]
            else:
                self._states = {int(key): int(n) for key, n in said["states"].items()}
            self._changed.notify_all()

    def _send(self, order: dict[str, Any]) -> None:
        with self._changed, contextlib.suppress(OSError, ValueError):
            self._stdin.write(json.dumps(order) + "\n")
            self._stdin.flush()


@contextlib.contextmanager
def langgraph(folder: Path, traces: Path) -> Iterator[LangGraph]:
    """Start it; it takes jobs when this returns.

    Raises NotMadeError where its environment cannot be made.
    """
    environments.ensure(ENVIRONMENT, lambda text: None)
    peer = LangGraph(folder, traces)
    try:
        peer.states()
        yield peer
    finally:
        peer.close()
