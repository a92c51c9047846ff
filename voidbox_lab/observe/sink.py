"""Spans, metrics and logs into OpenTelemetry's SDK, by OTLP/HTTP to a collector, and metrics to who fetches them.

All providers are private to the `Sink`: the process may have its own. The SDK's queues are bounded and drop the
oldest; its threads do the sending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIServer

import anyio
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from voidbox_lab import __version__
from voidbox_lab.observe.destinations import Destinations
from voidbox_lab.observe.loglines import LogLine
from voidbox_lab.observe.metrics import Metrics
from voidbox_lab.observe.span import Span

log = logging.getLogger(__name__)

SCOPE = "voidbox_lab"
FLUSH_S = 5.0
"""For what the collector has not taken yet when the daemon ends."""
QUIET_S = 60.0
"""How long the same complaint of the SDK is not repeated."""
_SEVERITY = {"INFO": SeverityNumber.INFO, "WARN": SeverityNumber.WARN, "ERROR": SeverityNumber.ERROR}


class Sink:
    """Where everything goes. One thread at a time may use it."""

    def __init__(self, to: Destinations) -> None:
        _quieten()
        resource = _resource()
        self._ids = _Given()
        self._tracers = TracerProvider(
            resource=resource, sampler=ALWAYS_ON, id_generator=self._ids, shutdown_on_exit=False
        )
        self._loggers = LoggerProvider(resource, shutdown_on_exit=False)
        self._scrapes: WSGIServer | None = None
        readers: list[MetricReader] = []
        if url := to.endpoints.get("traces"):
            self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        if url := to.endpoints.get("logs"):
            self._loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=url)))
        if url := to.endpoints.get("metrics"):
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=url)))
        if to.scrape is not None:
            readers.append(self._served(*to.scrape))
        self._meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._tracer = self._tracers.get_tracer(SCOPE, __version__)
        self._logger = self._loggers.get_logger(SCOPE, __version__)
        self.metrics = Metrics(self._meters.get_meter(SCOPE, __version__))

    def _served(self, host: str, port: int) -> MetricReader:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()  # their default one is everybody's
        try:
            self._scrapes, _ = start_http_server(port, host, registry)
        except OSError as error:
            log.warning("Prometheus cannot fetch metrics at %s port %d: %s", host, port, error)
        return PrometheusMetricReader(scope_info_enabled=False, registry=registry)

    def span(self, span: Span) -> None:
        """Send a span that has ended."""
        self._ids.next = int(span.trace_id, 16), int(span.span_id, 16)
        made = self._tracer.start_span(
            span.name,
            context=_within(span.trace_id, span.parent_id),
            kind=SpanKind.CLIENT if span.kind == "client" else SpanKind.INTERNAL,
            attributes=dict(span.attributes),
            start_time=_ns(span.start),
        )
        if span.status == "error":
            made.set_status(Status(StatusCode.ERROR, span.message))
        made.end(_ns(span.end if span.end is not None else span.start))

    def log(self, line: LogLine, at: float, trace_id: str, span_id: str) -> None:
        """Send a log record of the span."""
        record = LogRecord(
            timestamp=_ns(at),
            observed_timestamp=_ns(at),
            context=_within(trace_id, span_id),
            severity_text=line.severity,
            severity_number=_SEVERITY[line.severity],
            body=line.text,
            attributes=dict(line.attributes),
        )
        self._logger.emit(record)

    async def aclose(self) -> None:
        """Send what is left within `FLUSH_S`, and stop."""
        closings = [self._tracers.shutdown, self._meters.shutdown, self._loggers.shutdown]
        if self._scrapes is not None:
            closings.append(self._scrapes.shutdown)
        # Of our own, since a process waits for the event loop's threads when it ends, and these may hang.
        threads = [threading.Thread(target=_quietly, args=(each,), daemon=True) for each in closings]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + FLUSH_S
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, max(0.0, deadline - time.monotonic()))
        if self._scrapes is not None:
            self._scrapes.server_close()


class _Given(IdGenerator):
    """Ids that are known already."""

    next: tuple[int, int] = (0, 0)

    def generate_trace_id(self) -> int:
        return self.next[0]

    def generate_span_id(self) -> int:
        return self.next[1]


def _resource() -> Resource:
    """What is sent says of itself; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` have the last word."""
    own = {"service.name": "voidbox-lab", "service.version": __version__}
    return Resource(own).merge(OTELResourceDetector().detect())


def _within(trace_id: str, span_id: str | None) -> Context:
    if span_id is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED)
    parent = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _ns(at: float) -> int:
    return int(at * 1e9)


def _quietly(close: Callable[[], Any]) -> None:
    try:
        close()
    except Exception:
        log.warning("the last spans, metrics or logs were not sent", exc_info=True)


class _Seldom(logging.Filter):
    """Lets the same complaint through once in `QUIET_S`: of a collector that is away, every batch complains."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, said = time.monotonic(), self._said.get(record.msg)
        if said is not None and now < said + QUIET_S:
            return False
        self._said[record.msg] = now
        return True


def _quieten() -> None:
    seldom = _Seldom()
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("opentelemetry."):
            logger = logging.getLogger(name)
            if not any(isinstance(each, _Seldom) for each in logger.filters):
                logger.addFilter(seldom)
