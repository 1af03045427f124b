"""Spans reach an OpenTelemetry collector: a small one that decodes what the exporter sends."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nexus_ray.observe.exporters import OtlpExport
from nexus_ray.observe.traces import SpanRecord

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    requests: list[Any] = []

    class Seat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Seat)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_arrive_with_their_parents_times_and_attributes(collector: tuple[str, list[Any]]) -> None:
    url, requests = collector
    export = OtlpExport(url, "agent-host-0", "here")
    root = SpanRecord(TRACE, "b7ad6b7169203331", "", "goal.submit", 10.0, 11.5, "ok", {"goal.type": "review"})
    child = SpanRecord(TRACE, "c7ad6b7169203331", root.span_id, "agent.interaction", 10.5, 11.0, "error", {"n": 3})

    export.add(root)
    export.add(child)
    export.flush()

    resources = [entry for request in requests for entry in request.resource_spans]
    spans = {span.name: span for entry in resources for scope in entry.scope_spans for span in scope.spans}
    first, second = spans["goal.submit"], spans["agent.interaction"]
    assert first.trace_id.hex() == second.trace_id.hex() == TRACE
    assert second.parent_span_id == first.span_id == bytes.fromhex(root.span_id)
    assert not first.parent_span_id
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (10_000_000_000, 11_500_000_000)
    assert (first.status.code, second.status.code) == (1, 2)
    assert first.attributes[0].key == "goal.type" and first.attributes[0].value.string_value == "review"
    told = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert told["service.name"] == "nexus" and told["service.instance.id"] == "agent-host-0"
