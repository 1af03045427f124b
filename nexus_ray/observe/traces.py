"""Traces: spans over processes, joined by W3C `traceparent` headers that travel explicitly.

Law: the root decides once whether a trace is kept, and everything below follows; what is not kept costs no span.
The first roots of each second are kept, so that somebody trying things out sees all of them; under load a share is.
Spans go to a file of the process, and from there `read_trace` puts a trace together again.
"""

import contextlib
import functools
import json
import os
import random
import re
import secrets
import threading
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nexus_ray.observe.flusher import every_so_often

_BUFFER_SPANS_MAX = 2000
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A finished span; times are wall-clock seconds, `status` is `ok` or `error`."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    started_at: float
    ended_at: float
    status: str
    attributes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the span as a JSON object."""
        return asdict(self)


class RootSampler:
    """Decides which new traces are kept: the first `per_second` of each second, and a `ratio` of the rest."""

    def __init__(self, per_second: int, ratio: float, rng: random.Random | None = None) -> None:
        self._per_second = per_second
        self._ratio = ratio
        self._random = rng or random.Random()
        self._second = -1
        self._count = 0

    def keeps(self, now: float) -> bool:
        """Tell whether a trace that begins at `now` is kept."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        return self._count <= self._per_second or self._random.random() < self._ratio


class SpanFile:
    """Appends spans to a file, some at a time; the file is put aside when it is full."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        # Filled by whoever ends a span, emptied by whoever flushes; both ends of a deque may be used at once.
        self._spans: deque[SpanRecord] = deque()
        self._flushing = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        every_so_often(self.flush)

    def add(self, span: SpanRecord) -> None:
        """Keep a span; it is written within a fraction of a second. Above the limit spans are dropped."""
        if len(self._spans) < _BUFFER_SPANS_MAX:
            self._spans.append(span)

    def flush(self) -> None:
        """Write what is kept; spans that the disk does not take are dropped."""
        with self._flushing, contextlib.suppress(OSError):
            lines = []
            while self._spans:
                lines.append(orjson.dumps(self._spans.popleft(), default=str))
            if not lines:
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, b"\n".join(lines) + b"\n")
                is_full = os.fstat(descriptor).st_size > self._bytes_max
            finally:
                os.close(descriptor)
            if is_full:
                os.replace(self._path, self._path.with_suffix(".old.jsonl"))


def new_traceparent(is_sampled: bool) -> str:
    """Return the context of a new root, without a span yet."""
    return f"00-{secrets.token_hex(16)}-{'0' * 15}1-{'01' if is_sampled else '00'}"


def child_of(traceparent: str, span_id: str) -> str:
    """Return the context to hand to the children of `span_id`."""
    return f"{traceparent[:36]}{span_id}{traceparent[52:]}"


def new_span_id() -> str:
    """Return a span id."""
    return secrets.token_hex(8)


@functools.lru_cache(maxsize=1000)  # The tasks of a goal come with the same one, many goals' in turn.
def is_traceparent(text: str) -> bool:
    """Tell whether a header is a W3C trace context of version 00."""
    return _TRACEPARENT.fullmatch(text) is not None


def is_sampled(traceparent: str) -> bool:
    """Tell whether the trace is kept."""
    return traceparent.endswith("1")


def trace_id_of(traceparent: str) -> str:
    """Return the trace id, or an empty text."""
    return traceparent[3:35]


def span_id_of(traceparent: str) -> str:
    """Return the parent's span id, or an empty text."""
    return traceparent[36:52]


def read_trace(folder: Path, trace_id: str) -> list[SpanRecord]:
    """Return the spans of a trace from all files of a folder, by their start."""
    spans = []
    needle = trace_id.encode()
    for path in sorted(folder.glob("*.jsonl")) if trace_id else ():
        with open(path, "rb") as file:
            for line in file:
                if needle not in line:
                    continue
                try:
                    spans.append(SpanRecord(**orjson.loads(line)))
                except (json.JSONDecodeError, TypeError):
                    continue  # A line that was torn by a crash.
    return sorted((span for span in spans if span.trace_id == trace_id), key=lambda span: span.started_at)


