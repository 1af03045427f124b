"""`observe`: the one door. Around every operation: a span, a duration, an outcome and, where it matters, a log line.

Law: cheap where nobody looks. A trace that is not kept makes no span; a line is logged for errors, for what asks for
it, and for kept roots.
"""

import asyncio
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict

from nexus_ray.core.errors import DeadlineExceededError, PermissionDeniedError, UnauthenticatedError
from nexus_ray.observe import metrics, traces
from nexus_ray.observe.exporters import OtlpExport, SpanSink
from nexus_ray.observe.logs import configure_logs, get_logger

log = get_logger("observe")


class ObserveSettings(BaseModel):
    """What is kept of what happens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampled_roots_per_s: int = 5
    """New traces kept in each second, for each process: all that a person makes by hand."""
    sample_ratio: float = 0.01
    """Share of the rest that is kept: enough to see a shape, at a cost under 5 %."""
    trace_file_bytes_max: int = 32 * 1024 * 1024
    """Size of a process's trace file; one older file is kept beside it."""
    logs_to_file: bool = True
    """Log to the state folder rather than to stderr."""
    otlp_endpoint: str = ""
    """Traces URL of an OpenTelemetry collector or Jaeger, such as `http://127.0.0.1:4318/v1/traces`; none if empty."""
    cluster_id: str = "local"
    """What this cluster is called in spans."""


class _Current:
    """This process's sampler and where its spans go; set once by `configure`, before any traffic."""

    sampler: traces.RootSampler | None = None
    sinks: tuple[SpanSink, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole, never changed


def configure(settings: ObserveSettings, component: str, node: str, state_dir: Path | None) -> None:
    """Turn on logs and traces for this process; metrics are always on."""
    folder = state_dir / "logs" if state_dir is not None and settings.logs_to_file else None
    configure_logs(component, node, folder)
    _Current.attributes = {
        "nexus.component": component, "nexus.cluster_id": settings.cluster_id, "nexus.node_id": node,
    }  # fmt: skip
    _Current.sampler = traces.RootSampler(settings.sampled_roots_per_s, settings.sample_ratio)
    sinks: list[SpanSink] = []
    if state_dir is not None:
        sinks.append(traces.SpanFile(state_dir / "traces" / f"{component}.jsonl", settings.trace_file_bytes_max))
    if settings.otlp_endpoint:
        sinks.append(OtlpExport(settings.otlp_endpoint, component, node))
    _Current.sinks = tuple(sinks)


def flush() -> None:
    """Write the spans of this process that are not written yet."""
    for sink in _Current.sinks:
        sink.flush()


class observe:  # noqa: RUF100 - lower case, because it reads as a verb where it is used
    """A context manager around one operation; works inside async code.

    `traceparent` is what to hand to everything below. `result` is the label of the outcome and may be set; it is
    `error`, `cancelled`, `expired` or `denied` when an exception passes.
    """

    result = "success"
    _span_id = ""

    def __init__(
        self,
        name: str,
        *,
        traceparent: str = "",
        agent_type: str = "",
        log: bool = False,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._agent_type = agent_type
        self._attributes = attributes or {}
        self._log = log
        self._parent = traceparent

    def __enter__(self) -> "observe":
        parent = self._parent
        if not traces.is_traceparent(parent):
            keeps = _Current.sampler is not None and _Current.sampler.keeps(time.time())
            self._parent = ""
            self.traceparent = traces.new_traceparent(keeps)
        else:
            self.traceparent = parent
        if _Current.sinks and traces.is_sampled(self.traceparent):
            self._span_id = traces.new_span_id()
            self.traceparent = traces.child_of(self.traceparent, self._span_id)
            self._started_at = time.time()
        self._started = time.perf_counter()
        return self

    @property
    def is_kept(self) -> bool:
        """Tell whether a span is made, so that what only it shows is worth putting together."""
        return bool(self._span_id)

    def set(self, attributes: dict[str, Any]) -> None:
        """Add attributes to the span and the log line."""
        self._attributes.update(attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.result = _result_of(error)
        duration_s = time.perf_counter() - self._started
        result = self.result
        key = (self.name, self._agent_type, result)
        counted, measured = _series.get(key) or _new_series(key)
        counted.add(1)
        measured.add(duration_s)
        if result == "error":
            metrics.count(
                "nexus_errors_total", error_type=type(error).__name__ if error else "Failure",
                component=self.name.partition(".")[0], severity="error",
            )  # fmt: skip
        if self._span_id:
            span = self._span(duration_s)
            for sink in _Current.sinks:
                sink.add(span)
        if self._log or result == "error":
            log.info(
                self.name, result=result, duration_s=round(duration_s, 6),
                trace_id=traces.trace_id_of(self.traceparent),
                **{name.replace(".", "_"): value for name, value in self._attributes.items()},
                **({"raised": f"{type(error).__name__}: {error}"} if error else {}),
            )  # fmt: skip

    def _span(self, duration_s: float) -> traces.SpanRecord:
        attributes = {**_Current.attributes, "result": self.result, **self._attributes}
        if self._agent_type:
            attributes["agent.type"] = self._agent_type
        return traces.SpanRecord(
            trace_id=traces.trace_id_of(self.traceparent),
            span_id=self._span_id,
            parent_id=traces.span_id_of(self._parent) if self._parent else "",
            name=self.name,
            started_at=self._started_at,
            ended_at=self._started_at + duration_s,
            status="ok" if self.result == "success" else "error",
            attributes=attributes,
        )


# Operation, agent type and result to where they are counted and measured: both are looked up at once.
_series: dict[tuple[str, str, str], tuple[Any, Any]] = {}


def _new_series(key: tuple[str, str, str]) -> tuple[Any, Any]:
    operation, agent_type, result = key
    _series[key] = (
        metrics.series("nexus_operations_total", operation=operation, agent_type=agent_type, result=result),
        metrics.series("nexus_operation_duration_seconds", operation=operation, agent_type=agent_type, result=result),
    )
    return _series[key]


def _result_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if isinstance(error, DeadlineExceededError | TimeoutError):
        return "expired"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "denied"
    return "error"
