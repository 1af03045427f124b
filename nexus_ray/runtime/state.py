"""The state folder: what a fleet keeps on this machine, and who may read it (its owner, nobody else).

Law: made once, with mode 0700 and files of 0600; one fleet at a time holds its lock.
"""

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from nexus_ray.config import Settings
from nexus_ray.core.clock import SystemClock
from nexus_ray.core.context import ContextSeal
from nexus_ray.core.errors import AlreadyExistsError, FailedPreconditionError
from nexus_ray.core.files import replace_file
from nexus_ray.runtime.boot import FOLDERS
from nexus_ray.security.authz import ensure_role_file, load_policy
from nexus_ray.security.certificates import make_certificate
from nexus_ray.security.keys import load_or_create_issuer_key
from nexus_ray.security.tokens import issue_token

_PATH_BYTES_MAX = 100  # The kernel takes 107 for the whole path of a socket.
_NAME_CHARACTERS_MAX = 40
_CONTEXT_KEY = "context.key"
_OPERATOR_TOKEN_S = 30 * 86_400 - 3600  # Under the longest that tokens may live; made anew at each start.


def prepare_state(settings: Settings) -> None:
    """Make folders, keys, roles and the operator's token where they are missing.

    Raises:
        FailedPreconditionError: A key can be read by others, or the policy not at all.
        InvalidArgumentError: The policy is malformed, or not signed as the settings say.
    """
    folder = settings.state_dir
    for path in (folder, *(folder / name for name in FOLDERS)):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    load_or_create_issuer_key(folder)
    ensure_role_file(folder)
    load_policy(folder, settings.security.policy)  # Said here, before anything is started that would end by it.
    if not (folder / _CONTEXT_KEY).exists():
        write_private(folder / _CONTEXT_KEY, secrets.token_hex(32))
    ray_token = folder / "ray_token"
    if not ray_token.exists():
        write_private(ray_token, secrets.token_hex(32))
    ray_tls = folder / "ray_tls.pem"
    if not ray_tls.exists():
        write_private(ray_tls, make_certificate("nexus-ray", ("127.0.0.1", "::1", "localhost"))[1].decode())


def socket_folder(state_dir: Path, name_characters: int = _NAME_CHARACTERS_MAX) -> Path:
    """Return the folder of a fleet's sockets; make it, closed to others, where it is not there.

    It is `run` in the state folder, unless names of so many characters made the path too long there for a socket.

    Raises:
        FailedPreconditionError: The folder belongs to somebody else.
    """
    folder = state_dir.absolute() / "run"
    if len(os.fsencode(folder)) + 1 + name_characters > _PATH_BYTES_MAX:
        name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
        folder = Path(tempfile.gettempdir()) / f"nexus-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not folder.is_dir():
        raise FailedPreconditionError(f"others have a hand in {folder}: remove it, and it is made anew")
    return folder


def fleet_seal(settings: Settings) -> ContextSeal:
    """Return the seal by which processes of this fleet know each other's contexts.

    Raises:
        FailedPreconditionError: There is no key, others can read it, or it is none.
    """
    path = settings.state_dir / _CONTEXT_KEY
    try:
        if path.stat().st_mode & 0o077:
            raise FailedPreconditionError(f"others can read the key {path}: delete it, and `nexus up` makes a new one")
        return ContextSeal(bytes.fromhex(path.read_text()))
    except (OSError, ValueError):
        raise FailedPreconditionError(f"there is no key {path}; `nexus up` makes it") from None


def write_operator_token(settings: Settings) -> None:
    """Make the token that the command line uses without being told."""
    key = load_or_create_issuer_key(settings.state_dir)
    now = SystemClock().now()
    token = issue_token(key, settings.tokens, "local-operator", ["operator"], _OPERATOR_TOKEN_S, now)
    write_private(settings.state_dir / "token", token)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    replace_file(path, text.encode())


class StateLock:
    """Holds a state folder for one fleet; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = open(folder / "up.lock", "a")  # noqa: SIM115 - held for the life of the fleet
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise AlreadyExistsError(
                f"a fleet is up already with the state folder {folder}: `nexus down` ends it, "
                "NEXUS_STATE_DIR names another folder"
            ) from None

    def release(self) -> None:
        """Let go."""
        self._file.close()


def write_fleet_file(folder: Path, fields: dict[str, Any]) -> None:
    """Tell clients on this machine where the fleet listens."""
    write_private(folder / "fleet.json", json.dumps(fields))
