"""A fleet in a process of its own: started in the background, waited for, and stopped again.

Law: only a process that is proved to be the fleet of this state folder is ever signalled, and every wait is bounded.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from nexus_ray.cli.exits import ExitCode
from nexus_ray.core.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from nexus_ray.runtime.fleet_file import FleetFile, is_running, read_fleet_file

UP_S_MAX = 180.0  # Ray's first start on a slow, cold disk takes over a minute.
DOWN_S_MAX = 60.0
_LOOK_AGAIN_S = 0.1
_CLOCK_SLACK_S = 2.0  # A process's creation time is read off the boot time, which a clock step moves.
_LOG_TAIL_BYTES = 8192


def running_fleet(folder: Path) -> FleetFile | None:
    """Return the fleet that runs with this state folder, if its process lives and is the one that wrote the file.

    Raises:
        FailedPreconditionError: The fleet file is damaged.
    """
    fleet = read_fleet_file(folder)
    return fleet if fleet is not None and _is_ours(fleet) else None


def _is_ours(fleet: FleetFile) -> bool:
    try:
        process = psutil.Process(fleet.pid)
        # An id that was given to another process since belongs to one that is younger than the file.
        is_same = process.create_time() <= fleet.started_at + _CLOCK_SLACK_S
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def start(
    folder: Path,
    arguments: Sequence[str],
    say: Callable[[str], None],
    *,
    environment: Mapping[str, str] | None = None,
    up_s_max: float = UP_S_MAX,
) -> FleetFile:
    """Start `nexus up ARGUMENTS` in the background; return when it answers.

    Raises:
        InvalidArgumentError: The app, the settings or the place are wrong; the message says what.
        UnavailableError: It did not come up; the message holds the last line of its log.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder / "up.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "nexus_ray.cli", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {}), "NEXUS_STATE_DIR": str(folder), "PYTHONUNBUFFERED": "1"},
        )
    try:
        return _until_up(process, folder, log, say, time.monotonic() + up_s_max)
    except BaseException:
        _end(process)
        raise


def _until_up(
    process: "subprocess.Popen[bytes]", folder: Path, log: Path, say: Callable[[str], None], ends_at: float
) -> FleetFile:
    told = ""
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            reason = last_line(log).removeprefix("error: ") or f"its process ended with {process.returncode}"
            told = f"the fleet did not come up: {reason} (log: {log})"
            # What it said of its own input holds for ours: these arguments came from here.
            raise InvalidArgumentError(told) if process.returncode == ExitCode.WRONG_INPUT else UnavailableError(told)
        # First whether it is up: what it says then is for somebody who has it in the foreground.
        fleet = read_fleet_file(folder)
        if fleet is not None and fleet.pid == process.pid:
            if _is_healthy(fleet, folder):
                return fleet
        elif (line := last_line(log)) and line != told:
            told = line
            say(line)
        time.sleep(_LOOK_AGAIN_S)
    raise UnavailableError(f"the fleet did not come up in time; it said last: {last_line(log)!r} (log: {log})")


def _is_healthy(fleet: FleetFile, folder: Path) -> bool:
    from nexus_ray.runtime.client import connect

    # The address in full, so that NEXUS_URL and NEXUS_TOKEN of the caller do not answer for another fleet.
    token = (folder / "token").read_text().strip()
    with connect(url=fleet.url, token=token, state_dir=folder) as connection:
        return connection.is_healthy()


def stop(folder: Path, *, down_s_max: float = DOWN_S_MAX) -> FleetFile:
    """Stop the fleet of this state folder; return what it was when it has ended.

    Raises:
        UnavailableError: None is up, or it has not ended in time.
        FailedPreconditionError: Its process belongs to another user.
    """
    fleet = running_fleet(folder)
    if fleet is None:
        (folder / "fleet.json").unlink(missing_ok=True)  # Left over from a fleet that was killed.
        raise UnavailableError(f"no fleet is up (state folder {folder})")
    try:
        os.kill(fleet.pid, signal.SIGTERM)
    except PermissionError:
        raise FailedPreconditionError(f"the fleet's process {fleet.pid} belongs to another user") from None
    except ProcessLookupError:
        return fleet
    ends_at = time.monotonic() + down_s_max
    while is_running(fleet.pid) and _is_ours(fleet):
        if time.monotonic() >= ends_at:
            raise UnavailableError(
                f"the fleet (process {fleet.pid}) is still stopping after {down_s_max:g} s; "
                f"look again with `nexus status`, or end it with kill -9 {fleet.pid}: accepted goals are on disk"
            )
        time.sleep(_LOOK_AGAIN_S)
    return fleet


def last_line(log: Path) -> str:
    """Return the last line with anything in it; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(DOWN_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
