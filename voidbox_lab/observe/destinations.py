"""Where spans, metrics and logs are to be sent, as the environment says. Imports nothing of OpenTelemetry.

Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and …/configuration/sdk-environment-variables/.
What else these say (headers, time-outs, certificates, batches) the exporters read themselves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from voidbox_lab.settings import Settings

SIGNALS = ("traces", "metrics", "logs")
PROTOCOL = "http/protobuf"
"""The one that is spoken."""
SCRAPE_PORT = 9464
"""Registered for it with Prometheus; the specification's default."""
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destinations:
    """Endpoints of a collector, and one of ours for a Prometheus."""

    endpoints: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Signal to URL; what is missing is not sent."""
    scrape: tuple[str, int] | None = None
    """Host and port where a Prometheus may fetch metrics."""
    contents: bool = False
    """Whether the contents of messages are sent as well."""

    @classmethod
    def of(cls, settings: Settings, env: Mapping[str, str] | None = None) -> Destinations | None:
        """Those that `settings` and `env` (default: the process environment) give; None: none."""
        env = os.environ if env is None else env
        if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        found = {signal: url for signal in SIGNALS if (url := _endpoint(signal, settings.otlp, env))}
        capture = env.get(CAPTURE, "").strip().lower() in {"true", "1", "span_only", "span_and_event"}
        scrape = _scrape(env)
        return cls(found, scrape, capture) if found or scrape else None


def _exporters(signal: str, env: Mapping[str, str]) -> list[str]:
    return [
        name
        for part in env.get(f"OTEL_{signal.upper()}_EXPORTER", "").split(",")
        if (name := part.strip().lower())
    ]


def _scrape(env: Mapping[str, str]) -> tuple[str, int] | None:
    if "prometheus" not in _exporters("metrics", env):
        return None
    port = env.get("OTEL_EXPORTER_PROMETHEUS_PORT", "").strip() or str(SCRAPE_PORT)
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        log.warning("Prometheus cannot fetch metrics: OTEL_EXPORTER_PROMETHEUS_PORT is not a port: %s", port[:40])
        return None
    return env.get("OTEL_EXPORTER_PROMETHEUS_HOST", "").strip() or "localhost", int(port)


def _endpoint(signal: str, given: str | None, env: Mapping[str, str]) -> str | None:
    if (exporters := _exporters(signal, env)) and "otlp" not in exporters:
        return None
    if given is not None:
        return f"{given}/v1/{signal}"
    own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    url = own or (f"{base.rstrip('/')}/v1/{signal}" if base else "")
    protocols = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((env[name] for name in protocols if env.get(name)), PROTOCOL)
    if url and protocol != PROTOCOL:
        # Set for other programs, perhaps: no reason not to work.
        log.warning("no %s are sent: OTLP is spoken as %s here, not as %s", signal, PROTOCOL, protocol[:40])
        return None
    return url or None
