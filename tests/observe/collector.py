"""An OTLP/HTTP receiver on loopback: takes what an exporter really sends, and decodes it."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


class Collector:
    """What came, by signal."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, Any, dict[str, str]]] = []
        self.hold = Event()
        """While it is set, answers wait."""
        self.status = 200

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for path, body, _ in self.requests
            if path == "/v1/traces"
            for resource in body.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def logs(self) -> list[Any]:
        return [
            record
            for path, body, _ in self.requests
            if path == "/v1/logs"
            for resource in body.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        """The latest of each name."""
        return {
            metric.name: metric
            for path, body, _ in self.requests
            if path == "/v1/metrics"
            for resource in body.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def until(self, check: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for `check`."""
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, f"it did not come within {seconds} s"
            time.sleep(0.02)


def attributes(of: Any) -> dict[str, Any]:
    """Attributes of a span, record, point or resource as a dict."""
    found = {}
    for pair in of.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector for the time of the context."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            body = REQUESTS[self.path]()
            body.ParseFromString(data)
            collector.requests.append(
                (self.path, body, {name.lower(): value for name, value in self.headers.items()})
            )
            while collector.hold.is_set():
                time.sleep(0.02)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        collector.hold.clear()
        server.shutdown()
        thread.join()
        server.server_close()
