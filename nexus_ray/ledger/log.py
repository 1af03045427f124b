"""The log of a SQLite ledger, looked at before it is trusted: was something lost that had been acknowledged?

Law: SQLite takes a log up to the first frame whose checksum fails and drops the rest without a word, which is right
for a write that was cut short and wrong for a bit that flipped. The last transaction may be cut short: nobody was told
of it. A whole one behind the break cannot be: each was synced before the next began.
It deliberately does not tell a flipped bit in the last transaction from a write that was cut short: nobody can.

Source: sqlite.org, "Database File Format", section 4, the write-ahead log.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct(">8I")  # Magic, format, page size, checkpoint, two salts, two checksums.
_FRAME = struct.Struct(">6I")  # Page, size of the database after a commit or 0, two salts, two checksums.
_MAGIC = (0x377F0682, 0x377F0683)


@dataclass(frozen=True, slots=True)
class Log:
    """Frames of a log in order: `commits` are the positions, from 1, of those that end a transaction."""

    commits: tuple[int, ...] = ()

    def lost_after(self, frames: int) -> int:
        """Return how many whole transactions stand behind the first `frames` frames and must not be dropped."""
        # The last one of them may have been cut short, or be what is left of one that failed.
        return max(0, sum(commit > frames for commit in self.commits) - 1)


def read_log(path: Path) -> Log:
    """Read the log beside a database; one that is not there, or whose header was never whole, is empty.

    Only heads of frames are read, so it takes milliseconds: SQLite itself checks what is in them.
    """
    try:
        with path.with_name(f"{path.name}-wal").open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return Log()
            magic, _, page_bytes, _, *salts, _, _ = _HEADER.unpack(header)
            if magic not in _MAGIC:
                return Log()
            commits = []
            number = 0
            while len(head := file.read(_FRAME.size)) == _FRAME.size:
                number += 1
                _, size, *rest = _FRAME.unpack(head)
                # Another salt is what is left of an older log, which was copied into the file long ago.
                if rest[:2] == salts and size:
                    commits.append(number)
                file.seek(page_bytes, 1)
    except FileNotFoundError:
        return Log()
    return Log(tuple(commits))
