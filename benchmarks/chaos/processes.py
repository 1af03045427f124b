"""The processes of a fleet, by what they are: found below the one process that was started here, and nowhere else."""

import contextlib
import signal
import threading
import time
from collections.abc import Mapping

import psutil

from benchmarks.chaos.schedule import KILL, Blow

TITLES = {
    "agent host": "ray::AgentHost",
    "ledger": "ray::LedgerActor",
    "directory": "ray::DirectoryActor",
    "Serve replica": "ray::ServeReplica",
    "Serve proxy": "ray::ProxyActor",
    "Serve controller": "ray::ServeController",
}
_BACK_S_MAX = 30.0
_LOOK_EVERY_S = 0.1


class Processes:
    """What `root` has started, directly or not. Whatever is paused here goes on at the latest when this is closed."""

    def __init__(self, root: int, titles: Mapping[str, str] = TITLES, back_s_max: float = _BACK_S_MAX) -> None:
        """`back_s_max`: how long a process of a kind that is to be struck may take to be there."""
        self._back_s_max = back_s_max
        self._root = psutil.Process(root)
        self._titles = titles
        self._paused: dict[threading.Timer, psutil.Process] = {}

    def of(self, kind: str) -> list[psutil.Process]:
        """Return the living processes of a kind, oldest first."""
        title, found = self._titles[kind], []
        for process in self._root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).startswith(title):
                    found.append((process.create_time(), process.pid, process))
        return [process for _, _, process in sorted(found, key=lambda entry: entry[:2])]

    def kinds(self) -> list[str]:
        """Return the kinds of which there is a process now: a front door may do without Serve's proxy."""
        return [kind for kind in self._titles if self.of(kind)]

    def strike(self, blow: Blow) -> int | None:
        """Carry a blow out and return whom it struck; None where there was nobody of the kind in time."""
        ends_at = time.monotonic() + self._back_s_max
        while True:
            found = self.of(blow.kind)
            if found:
                process = found[blow.choose(len(found))]
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._carry_out(blow, process)
                    return process.pid
            if time.monotonic() > ends_at:
                return None
            time.sleep(_LOOK_EVERY_S)

    def _carry_out(self, blow: Blow, process: psutil.Process) -> None:
        if blow.act == KILL:
            process.kill()
            return
        process.suspend()
        timer = threading.Timer(blow.pause_s, _go_on, [process])
        timer.daemon = True
        self._paused[timer] = process
        timer.start()

    def close(self) -> None:
        """Have all that is paused go on."""
        for timer, process in self._paused.items():
            timer.cancel()
            _go_on(process)
        self._paused.clear()


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)
