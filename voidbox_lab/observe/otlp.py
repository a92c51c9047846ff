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
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Otlp:
    """Endpoints of a collector."""

    endpoints: Mapping[str, str] = field(repr=False)
    """Signal to URL; what is missing is not sent."""
    contents: bool = False
    """Whether the contents of messages are sent as well."""

    @classmethod
    def of(cls, settings: Settings, env: Mapping[str, str] | None = None) -> Otlp | None:
        """The endpoints that `settings` and `env` (default: the process environment) give; None: none."""
        env = os.environ if env is None else env
        if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        found = {signal: url for signal in SIGNALS if (url := _endpoint(signal, settings.otlp, env))}
        capture = env.get(CAPTURE, "").strip().lower() in {"true", "1", "span_only", "span_and_event"}
        return cls(found, capture) if found else None


def _endpoint(signal: str, given: str | None, env: Mapping[str, str]) -> str | None:
    exporters = env.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower()
    if exporters and "otlp" not in exporters.split(","):
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
