"""One thread of a process that writes down, a few times a second, what its operations only gather.

Law: an operation never waits for a file. What was gathered in the last fraction of a second dies with a killed process;
it is told by nobody's promise: promises are kept by the ledger.
"""

import atexit
import contextlib
import threading
from collections.abc import Callable

_EVERY_S = 0.2  # A person who looks does not notice; at a goal per millisecond it saves 99 % of the writing.

_lock = threading.Lock()
_works: list[Callable[[], None]] = []


def every_so_often(work: Callable[[], None]) -> None:
    """Have `work` done a few times a second from now on, and at exit."""
    with _lock:
        _works.append(work)
        if len(_works) == 1:
            atexit.register(flush)
            threading.Thread(target=_run, name="observe-flusher", daemon=True).start()


def flush() -> None:
    """Do all of it now."""
    with _lock:
        works = list(_works)
    for work in works:
        work()


def _run() -> None:
    pause = threading.Event()
    while True:
        pause.wait(_EVERY_S)
        # The thread outlives a full disk; what could not be written is gone, or written the next time.
        with contextlib.suppress(Exception):
            flush()
