"""Logs: an event name and keywords, one JSON object a line, to a file of the state folder or to stderr.

Law: secrets are masked here, whatever the caller does; local variables never stand in a traceback.
"""

import os
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, ClassVar, TextIO

import orjson
import structlog

_SECRETS = frozenset({"token", "authorization", "password", "secret", "credential", "cookie", "private_key", "api_key"})
_SECRET_ENDINGS = tuple(f"_{name}" for name in _SECRETS)
_MASK = "***"
_DEPTH_MAX = 8  # Deeper values are not looked into, and are masked whole.


class _Output:
    """Where this process's lines go; set by `configure_logs`, before any traffic."""

    stream: TextIO | None = None
    names: ClassVar[dict[str, str]] = {}

    def __getattr__(self, level: str) -> Callable[[str], None]:
        return self._write  # Whatever the level: it stands in the line.

    def _write(self, line: str) -> None:
        (self.stream or sys.stderr).write(line + "\n")


def get_logger(name: str) -> Any:
    """Return a logger; `log.info("goal.accepted", goal_id=…)`.

    It has its own processors: what a user's code tells structlog to do changes nothing here, and the reverse.
    """
    return structlog.wrap_logger(
        _output,
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=True,
        area=name,
    )


def configure_logs(component: str, node: str, folder: Path | None) -> None:
    """Write this process's lines as `component` to `folder/<component>.jsonl`, or to stderr where there is none."""
    _Output.names = {"component": component, "node": node}
    _Output.stream = None
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / f"{component}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        _Output.stream = os.fdopen(descriptor, "a", buffering=1)


def _name(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.update(_Output.names)
    return event


def mask_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of keywords that name a secret, such as `token` or `client_secret`, also within objects."""
    for key, value in event.items():
        event[key] = _MASK if _is_secret(key) else _masked(value, _DEPTH_MAX)
    return event


def _masked(value: Any, depth: int) -> Any:
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == 0:
        return _MASK
    if isinstance(value, dict):
        return {
            key: _MASK if isinstance(key, str) and _is_secret(key) else _masked(inner, depth - 1)
            for key, inner in value.items()
        }
    return [_masked(inner, depth - 1) for inner in value]


def _is_secret(key: str) -> bool:
    name = key.lower().replace("-", "_")
    return name in _SECRETS or name.endswith(_SECRET_ENDINGS)


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str).decode()


_output = _Output()
_PROCESSORS = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    _name,
    mask_secrets,
    structlog.processors.JSONRenderer(serializer=_dumps),
)
