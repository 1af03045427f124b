"""An environment of its own for each contender, made once from a pinned list and kept outside the repository.

Law: exactly what the list says is installed, nothing is resolved; a list that changes makes a new environment. One that
was not finished is made again.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LISTS = Path(__file__).parent / "contenders" / "requirements"
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+")
_INSTALL_S_MAX = 600.0
_COMPLETE = "complete"


class NotMadeError(RuntimeError):
    """An environment could not be made; the message says why."""


def requirements(name: str) -> list[str]:
    """Return the pinned list of an environment.

    Raises ValueError where a line is anything but `name==version`.
    """
    lines = (LISTS / f"{name}.txt").read_text().split("\n")
    pins = [line for line in lines if line]
    for pin in pins:
        if not PINNED.fullmatch(pin):
            raise ValueError(f"{name}: not a pinned name: {pin!r}")
    return pins


def folder(name: str) -> Path:
    """Return where an environment is or will be: its name tells the list and the Python that it was made from."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    made_from = "\n".join([sys.version, *requirements(name)])
    return root / "nexus-benchmarks" / f"{name}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"


def python(name: str) -> Path:
    return folder(name) / "bin" / "python"


def is_ready(name: str) -> bool:
    return (folder(name) / _COMPLETE).exists()


def ensure(name: str, say: Callable[[str], None]) -> None:
    """Make an environment, unless it is there.

    Raises NotMadeError where it cannot be made: no network, no wheel for this Python, no room.
    """
    place = folder(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Two runs at once would take each other's away.
        if is_ready(name):
            return
        say(f"installing {name} into {place}")
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(place)])
        pip = [str(python(name)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        _run([*pip, "install", "--quiet", "--no-deps", "--requirement", str(LISTS / f"{name}.txt")])
        _run([*pip, "check"])
        (place / _COMPLETE).touch()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S_MAX)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMadeError(str(error)) from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotMadeError(lines[-1] if lines else f"exit {done.returncode}")
