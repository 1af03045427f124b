"""The state folder as clients see it: where the fleet of this machine listens, and the token to speak to it.

Law: reads only; the files are written by `runtime.state` and `nexus login`. It needs neither ray nor settings.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nexus_ray.core.errors import FailedPreconditionError, UnauthenticatedError


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What `nexus up` left in the state folder about the fleet that it runs; times are wall-clock seconds."""

    pid: int
    url: str
    app: str
    started_at: float
    dashboard_url: str | None = None
    ca: str | None = None


def state_folder(state_dir: str | Path | None = None) -> Path:
    """Return the state folder: the argument, else `NEXUS_STATE_DIR`, else `~/.nexus`."""
    return Path(state_dir or os.environ.get("NEXUS_STATE_DIR") or "~/.nexus").expanduser()


def read_fleet_file(folder: Path) -> FleetFile | None:
    """Return what the state folder says about a running fleet, or nothing.

    Raises:
        FailedPreconditionError: There is a file, and it is not one that `nexus up` writes.
    """
    path = folder / "fleet.json"
    try:
        fields = json.loads(path.read_text())
        return FleetFile(
            int(fields["pid"]),
            str(fields["url"]),
            str(fields["app"]),
            float(fields["started_at"]),
            fields.get("dashboard_url"),
            fields.get("ca"),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise FailedPreconditionError(f"{path} cannot be read: remove it if no fleet is up") from None


def is_running(pid: int) -> bool:
    """Tell whether a process of this id lives on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_token(path: Path) -> str:
    """Return the operator's token.

    Raises:
        FailedPreconditionError: Others than its owner can read it.
        UnauthenticatedError: There is none.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise FailedPreconditionError(f"others can read {path}: chmod 600 {path}, then `nexus up` makes a new one")
        return path.read_text().strip()
    except OSError:
        raise UnauthenticatedError(f"no token at {path}: set NEXUS_TOKEN, or restart the fleet") from None


@dataclass(frozen=True, slots=True)
class Login:
    """What `nexus login` left: a token for the fleet at `url`; `expires_at` is wall-clock seconds."""

    url: str
    provider: str
    issuer: str
    token: str
    refresh_token: str
    expires_at: float


def login_path(folder: Path) -> Path:
    """Return where the log-in is kept."""
    return folder / "login.json"


def read_login(folder: Path) -> Login | None:
    """Return the log-in of this machine's user, or nothing.

    Raises:
        FailedPreconditionError: Others than its owner can read it, or it is not one that `nexus login` writes.
    """
    path = login_path(folder)
    try:
        if path.stat().st_mode & 0o077:
            raise FailedPreconditionError(f"others can read {path}: `nexus logout`, then log in again")
        fields = json.loads(path.read_text())
        names = ("url", "provider", "issuer", "token", "refresh_token")
        url, provider, issuer, token, refresh_token = (str(fields[name]) for name in names)
        return Login(url, provider, issuer, token, refresh_token, float(fields["expires_at"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise FailedPreconditionError(f"{path} cannot be read: `nexus logout` removes it") from None


def token_for(folder: Path, url: str, is_ours: bool, now: float) -> str:
    """Return the token to send to `url`: of the log-in to it, else the operator's where the fleet is this folder's.

    Raises:
        UnauthenticatedError: There is none for that address, or the log-in has ended.
        FailedPreconditionError: Others can read it.
    """
    login = read_login(folder)
    if login is not None and login.url == url.rstrip("/"):
        if login.expires_at <= now:
            raise UnauthenticatedError("the log-in has ended: `nexus login` again, or `nexus logout`, or NEXUS_TOKEN")
        return login.token
    if not is_ours:
        # The operator's token is for the fleet beside it; another address never gets to see it.
        raise UnauthenticatedError(f"no token for {url}: set NEXUS_TOKEN (`nexus token create` makes one)")
    return read_token(folder / "token")
