"""Logs: an event name and keywords, one JSON object a line, to a file of the state folder or to stderr.

Law: secrets are masked here, whatever the caller does; local variables never stand in a traceback.
"""

import functools
import os
import sys
import time
from collections.abc import MutableMapping
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

import orjson
import structlog

_SECRETS = frozenset({"token", "authorization", "password", "secret", "credential", "cookie", "private_key", "api_key"})
_SECRET_ENDINGS = tuple(f"_{name}" for name in _SECRETS)
_MASK = "***"
_NESTED = (dict, list, tuple)
_DEPTH_MAX = 8  # Deeper values are not looked into, and are masked whole.


class _Output:
    """Where this process's lines go; set by `configure_logs`, before any traffic."""

    file: FileIO | None = None  # Written to at once: what was logged is there when the process is killed.
    names: ClassVar[dict[str, str]] = {}


class _Logger:
    """Writes a line in one go: structlog's chain of processors took four times as long, once for each decision."""

    def __init__(self, area: str) -> None:
        self._area = area
        for level in ("info", "warning", "error"):
            setattr(self, level, functools.partial(self._write, level))
        self.exception = functools.partial(self._write, "error", exc_info=True)

    def _write(self, level: str, event: str, /, **fields: Any) -> None:
        line: MutableMapping[str, Any] = {"area": self._area, **fields, "event": event}
        if "exc_info" in line:
            line = structlog.processors.format_exc_info(None, level, line)
        mask_secrets(None, level, line)
        line["level"] = level
        now_us = time.time_ns() // 1000
        line["timestamp"] = f"{_second(now_us // 1_000_000)}.{now_us % 1_000_000:06}Z"
        line.update(_Output.names)
        written = orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
        if _Output.file is not None:
            _Output.file.write(written)
        else:
            sys.stderr.write(written.decode())


def get_logger(name: str) -> Any:
    """Return a logger; `log.info("goal.accepted", goal_id=…)`. What users tell structlog to do changes nothing here."""
    return _Logger(name)


def configure_logs(component: str, node: str, folder: Path | None) -> None:
    """Write this process's lines as `component` to `folder/<component>.jsonl`, or to stderr where there is none."""
    _Output.names = {"component": component, "node": node}
    _Output.file = None
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / f"{component}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        _Output.file = FileIO(descriptor, "a")


def mask_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of keywords that name a secret, such as `token` or `client_secret`, also within objects."""
    for key in _secret_ones(tuple(event)):
        event[key] = _MASK
    for key, value in event.items():
        if isinstance(value, _NESTED):
            event[key] = _masked(value, _DEPTH_MAX)
    return event


def _masked(value: Any, depth: int) -> Any:
    if not isinstance(value, _NESTED):
        return value
    if depth == 0:
        return _MASK
    if isinstance(value, dict):
        return {
            key: _MASK if isinstance(key, str) and _is_secret(key) else _masked(inner, depth - 1)
            for key, inner in value.items()
        }
    return [_masked(inner, depth - 1) for inner in value]


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@functools.lru_cache(maxsize=1000)  # Events have the same keywords each time.
def _secret_ones(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if _is_secret(key))


@functools.lru_cache(maxsize=4096)  # Keywords are few; names within a caller's object may be many.
def _is_secret(key: str) -> bool:
    name = key.lower().replace("-", "_")
    return name in _SECRETS or name.endswith(_SECRET_ENDINGS)
