"""`nexus doctor`: looks at this machine and says what would keep a fleet from running well, and what to do.

Law: it reads and never repairs. A check never raises: what it cannot find out, it says.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus_ray.cli.exits import ExitCode
from nexus_ray.cli.show import plain, print_json, print_rich

RAY_VERSION = "2.60.0"
_MEMORY_BYTES_MIN = 1 << 30  # Ray's own processes take some 600 MB before the first agent.
_MEMORY_BYTES_GOOD = 2 << 30
_DISK_BYTES_MIN = 512 << 20
_DISK_BYTES_GOOD = 2 << 30
_YEARS = (2025, 2100)
_MARKS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found; `todo` says what to do about it, empty where there is nothing to do."""

    name: str
    level: Literal["ok", "warn", "fail"]
    found: str
    todo: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Check this machine; exits with 1 if something would keep a fleet from running."""
    checks = examine()
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    if any(check.level == "fail" for check in checks):
        raise typer.Exit(ExitCode.FAILED)


def examine() -> list[Check]:
    """Run every check."""
    from nexus_ray.runtime.fleet_file import state_folder

    folder = state_folder()
    looks: list[tuple[str, Callable[[], list[Check]]]] = [
        ("python", lambda: [check_python(sys.version_info[:3])]),
        ("ray", lambda: [check_ray(_installed("ray"))]),
        ("settings", lambda: [check_settings()]),
        ("ports", lambda: _ports(folder)),
        ("memory", lambda: [check_memory(_memory_bytes())]),
        ("disk", lambda: [check_disk(folder)]),
        ("state", lambda: check_modes(folder)),
        ("keys", lambda: [check_keys(folder)]),
        ("clock", lambda: [check_clock(time.time(), time.monotonic(), time.monotonic())]),
        ("fleet", lambda: [check_fleet(folder)]),
        ("policy", lambda: [check_policy(folder)]),  # Last: its engine must not be loaded before anything loads ray.
    ]
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks += look()
        except Exception as error:
            checks.append(Check(name, "warn", f"cannot be checked: {type(error).__name__}: {error}"))
    return checks


def check_python(version: tuple[int, ...]) -> Check:
    """Check the interpreter's version."""
    found = ".".join(map(str, version))
    if (3, 11) <= version[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install with Python 3.11, 3.12 or 3.13")


def check_ray(version: str | None) -> Check:
    """Check that Ray is the version that Nexus is tested with."""
    if version == RAY_VERSION:
        return Check("ray", "ok", version)
    todo = f"pip install 'ray[default,serve]=={RAY_VERSION}'"
    return Check("ray", "fail", version or "not installed", todo)


def check_settings() -> Check:
    """Check that settings load; a misspelt variable does not."""
    from nexus_ray.config import load
    from nexus_ray.core.errors import NexusError

    try:
        load()
    except NexusError as error:
        return Check("settings", "fail", error.message, "correct the variable or the settings file")
    return Check("settings", "ok", "they load")


def check_policy(folder: Path) -> Check:
    """Check that the policy loads, and that the engine that is to decide by it does."""
    from nexus_ray.config import load
    from nexus_ray.core.errors import NexusError
    from nexus_ray.security.authz import engine_of, load_policy
    from nexus_ray.security.policy import REASONS, PolicyRequest

    settings = load().security.policy
    if settings.bundle is None and not (folder / "roles.toml").exists():
        return Check("policy", "ok", "there is none yet; `nexus up` makes it")
    try:
        policy = load_policy(folder, settings, is_noted=False)
    except NexusError as error:
        return Check("policy", "fail", error.message, "`nexus policy test` checks one before it is put there")
    reason = engine_of(settings)(policy).decide(PolicyRequest("", (), "", "goal:read")).reason
    if reason in REASONS:
        return Check("policy", "ok", f"{policy.revision}, decided by {settings.engine}")
    todo = "give OPA the same policy" if reason in ("revision_unknown", "engine_undefined") else "see that it runs"
    return Check("policy", "fail", f"{settings.opa_address or settings.engine} does not decide: {reason}", todo)


def _ports(folder: Path) -> list[Check]:
    from nexus_ray.cli.detached import running_fleet
    from nexus_ray.config import load

    runtime = load().runtime
    fleet = running_fleet(folder)
    ports = [("http port", runtime.http_port, "--port")]
    if runtime.dashboard:
        ports.append(("dashboard port", runtime.dashboard_port, "NEXUS_RUNTIME__DASHBOARD_PORT"))
    is_up = fleet is not None
    return [check_port(name, port, flag, is_up) for name, port, flag in ports]


def check_port(name: str, port: int, flag: str, is_fleet_up: bool) -> Check:
    """Check that a loopback port is free, or taken by the fleet that is up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            # Serve's proxy and Ray's dashboard listen in processes of their own, so the process id tells nothing.
            if is_fleet_up:
                return Check(name, "ok", f"{port} is in use, and a fleet is up")
            return Check(name, "fail", f"{port}: {error.strerror}", f"end what listens there, or choose with {flag}")
    return Check(name, "ok", f"{port} is free")


def check_memory(available: int) -> Check:
    """Check that there is memory for Ray and a few hosts."""
    found = f"{available / (1 << 30):.1f} GiB available"
    if available < _MEMORY_BYTES_MIN:
        return Check("memory", "fail", found, "free at least 1 GiB")
    if available < _MEMORY_BYTES_GOOD:
        return Check("memory", "warn", found, "2 GiB are better; fewer hosts: NEXUS_RUNTIME__HOSTS_PER_NODE=1")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Check the space where the ledger grows."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free < _DISK_BYTES_MIN:
        return Check("disk", "fail", found, "free at least 512 MiB, or move the state folder with NEXUS_STATE_DIR")
    if free < _DISK_BYTES_GOOD:
        return Check("disk", "warn", found, "2 GiB are better: the ledger keeps every goal")
    return Check("disk", "ok", found)


def check_modes(folder: Path) -> list[Check]:
    """Check that nobody else can read the state folder and the secrets in it."""
    if not folder.exists():
        return [Check("state folder", "ok", f"{folder} is not there yet; nexus up makes it")]
    checks = [_mode("state folder", folder, 0o700)]
    for name in ("token", "ray_token", "issuer.key", "fleet.json"):
        path = folder / name
        if path.exists():
            checks.append(_mode(name, path, 0o600))
    return checks


def _mode(name: str, path: Path, allowed: int) -> Check:
    status = path.stat()
    mode = status.st_mode & 0o777
    if status.st_uid != os.getuid():
        return Check(name, "fail", f"{path} belongs to another user", f"chown {os.getuid()} {path}")
    if mode & ~allowed:
        return Check(name, "fail", f"{path} has mode {mode:04o}: others can read it", f"chmod {allowed:o} {path}")
    return Check(name, "ok", f"mode {mode:04o}")


def check_keys(folder: Path) -> Check:
    """Check that the issuer's public keys can be read."""
    from nexus_ray.core.errors import NexusError
    from nexus_ray.security.keys import load_key_set

    if not (folder / "issuer.key").exists():
        return Check("keys", "ok", "none yet; nexus up makes them")
    try:
        load_key_set(folder)
    except NexusError as error:
        return Check("keys", "fail", error.message, "tokens cannot be checked until this is put right")
    return Check("keys", "ok", "readable")


def check_clock(now: float, before: float, after: float) -> Check:
    """Check that the clock shows a year that can be, and that the monotonic one goes forward."""
    year = time.gmtime(now).tm_year
    if not _YEARS[0] <= year <= _YEARS[1]:
        return Check("clock", "fail", f"the year is {year}", "set the clock: tokens and deadlines depend on it")
    if after < before:
        return Check("clock", "fail", "the monotonic clock goes back", "look at the virtual machine's clock source")
    return Check("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def check_fleet(folder: Path) -> Check:
    """Check that the fleet, if one is up, answers with all of its parts."""
    from nexus_ray.cli.detached import running_fleet
    from nexus_ray.cli.fleet import truths
    from nexus_ray.core.errors import NexusError
    from nexus_ray.runtime.client import connect
    from nexus_ray.runtime.fleet_file import read_token

    fleet = running_fleet(folder)
    if fleet is None:
        return Check("fleet", "ok", "none is up", "nexus up module:app starts one")
    try:
        with connect(fleet.url, read_token(folder / "token"), folder) as connection:
            parts = connection.ready()
    except NexusError as error:
        return Check("fleet", "fail", error.message, f"see {folder / 'up.log'}, then nexus down and nexus up")
    if not all(truths(parts)):
        return Check("fleet", "fail", f"not ready: {parts}", f"see {folder / 'up.log'}")
    return Check("fleet", "ok", f"{fleet.app} is ready at {fleet.url}")


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _show(checks: list[Check]) -> None:
    from rich.text import Text

    width = max(len(check.name) for check in checks)
    for check in checks:
        line = Text(f"{check.level:<5}", style=_MARKS[check.level])
        line.append(f"{check.name:<{width}}  {plain(check.found, 300)}", style="default")
        if check.todo:
            line.append(f"\n{'':<{width + 7}}{plain(check.todo, 300)}", style="dim")
        print_rich(line, is_wrapped=False)
