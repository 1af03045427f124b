"""A trace outside: a line in a file, whole, whoever else writes. It needs nothing: every contender's agents use it."""

import os


def append(folder: str, name: str, line: str) -> None:
    descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
