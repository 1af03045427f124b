"""Files that are written whole or not at all, and how to see that one was.

Law: nobody ever reads half of one, and what is for its owner only is so from its first byte on.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PRIVATE = 0o600
SHARED = 0o666
"""As the process's umask lets others read it."""


def replace_file(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write a file, over the one that is there if one is; it is on disk when this returns."""
    with _draft(path, content, mode) as draft:
        os.replace(draft, path)


def make_file(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write a file where there is none: whoever is first wins, and what he wrote stays."""
    with _draft(path, content, mode) as draft, contextlib.suppress(FileExistsError):
        os.link(draft, path)


def stamp_of(path: Path) -> object:
    """Return what changes whenever a file does that is replaced rather than written; None where it is not there."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size, seen.st_ino


@contextlib.contextmanager
def _draft(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    # Not named by the process id: in a container that is the same after a crash, and so would be what it left.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
