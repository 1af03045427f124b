"""Where finished spans go besides the process's own file: an OpenTelemetry collector, by OTLP over HTTP.

Law: exporting never holds up or fails an operation; the SDK's batch processor queues, and drops above its limit.
Jaeger takes OTLP as it is.
"""

from importlib.metadata import version
from typing import Any, Protocol

from nexus_ray.core.errors import FailedPreconditionError
from nexus_ray.observe.traces import SpanRecord

_QUEUE_SPANS_MAX = 8192
_EXPORT_EVERY_S = 1.0
_TIMEOUT_S = 5.0


class SpanSink(Protocol):
    """Takes finished spans."""

    def add(self, span: SpanRecord) -> None:
        """Keep a span; never waits and never raises."""
        ...

    def flush(self) -> None:
        """Hand on what is kept."""
        ...


class OtlpExport:
    """Sends spans to an OpenTelemetry collector. Implements `SpanSink`."""

    def __init__(self, endpoint: str, component: str, node: str) -> None:
        """Name the collector's traces URL, such as `http://127.0.0.1:4318/v1/traces`.

        Raises:
            FailedPreconditionError: The exporter is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise FailedPreconditionError(
                "observe.otlp_endpoint is set, but the exporter is not installed: pip install 'nexus-ray[otlp]'"
            ) from None
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._resource = Resource.create(
            {
                "service.name": "nexus",
                "service.version": version("nexus-ray"),
                "service.instance.id": component,
                "host.name": node,
            }
        )
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S),
            max_queue_size=_QUEUE_SPANS_MAX,
            schedule_delay_millis=_EXPORT_EVERY_S * 1000,
        )

    def add(self, span: SpanRecord) -> None:
        """Queue a span."""
        self._processor.on_end(self._readable(span))

    def flush(self) -> None:
        """Send what is queued."""
        self._processor.force_flush(int(_TIMEOUT_S * 1000))

    def _readable(self, span: SpanRecord) -> Any:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        trace_id = int(span.trace_id, 16)
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent_id = int(span.parent_id, 16) if span.parent_id else 0
        return ReadableSpan(
            name=span.name,
            context=SpanContext(trace_id, int(span.span_id, 16), False, flags),
            parent=SpanContext(trace_id, parent_id, True, flags) if parent_id else None,
            resource=self._resource,
            attributes={
                name: value if isinstance(value, str | bool | int | float) else str(value)
                for name, value in span.attributes.items()
            },
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.OK if span.status == "ok" else StatusCode.ERROR),
            start_time=int(span.started_at * 1e9),
            end_time=int(span.ended_at * 1e9),
        )
