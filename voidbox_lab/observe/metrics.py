"""Metrics of runs: tokens, costs and durations from spans, CPU and memory of boxes that are open.

Attributes are what a user names in a spec, and never what a guest says: a guest could make endlessly many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from voidbox_lab.observe import conventions as c
from voidbox_lab.observe.describe import Attributes
from voidbox_lab.observe.span import Span
from voidbox_lab.spec.events import BoxBooted, Event, Telemetry

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

# The conventions' own boundaries.
TOKENS = tuple(float(4**n) for n in range(14))
OPERATION_S = tuple(0.01 * 2**n for n in range(14))
BOOT_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
STAGE_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

MAX_BYTES = 1 << 62
"""More than any guest has; what OTLP carries ends at 2**63."""


class Metrics:
    """The instruments of a private meter, fed with spans that ended and with events."""

    def __init__(self, meter: Meter) -> None:
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
        self._operation = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=OPERATION_S,
        )
        self._cost = meter.create_counter(
            "voidbox.cost", unit="{USD}", description="Dollars at list price, of calls that have a price."
        )
        self._unpriced = meter.create_counter(
            "voidbox.unpriced", unit="{call}", description="Model calls of unknown cost, which voidbox.cost lacks."
        )
        self._stage = meter.create_histogram(
            "voidbox.stage.duration",
            unit="s",
            description="From an attempt's launch to its end.",
            explicit_bucket_boundaries_advisory=STAGE_S,
        )
        self._boot = meter.create_histogram(
            "voidbox.boot.duration",
            unit="s",
            description="From the request to a box with its policy in force.",
            explicit_bucket_boundaries_advisory=BOOT_S,
        )
        meter.create_observable_gauge(
            "voidbox.guest.cpu",
            [self._cpu],
            unit="1",
            description="Busy share of all vCPUs of the open box of a stage; of several, the busiest.",
        )
        meter.create_observable_gauge(
            "voidbox.guest.memory",
            [self._memory],
            unit="By",
            description="Memory in use in the open box of a stage; of several, the fullest.",
        )
        self._samples: dict[tuple[str, str], Telemetry] = {}
        """The latest of each open box, by run and stage."""

    def event(self, event: Event) -> None:
        """Note what an event measures."""
        match event.body:
            case Telemetry() as sample if event.stage is not None:
                self._samples[event.run, event.stage] = sample
            case BoxBooted(facts=facts):
                found: Attributes = {c.ISOLATION: facts.isolation, c.BOX_START: facts.start}
                self._boot.record(facts.boot_s, found)

    def span(self, span: Span) -> None:
        """Note a span that has ended."""
        seconds = span.seconds or 0.0
        if span.what in {"model", "agent"}:
            about = _some(span, c.OPERATION, c.PROVIDER, c.REQUEST_MODEL, c.ERROR_TYPE)
            self._operation.record(seconds, about)
        if span.what == "model" and span.usage is not None:
            about = _some(span, c.OPERATION, c.PROVIDER, c.REQUEST_MODEL)
            for kind, name in (("input", c.INPUT_TOKENS), ("output", c.OUTPUT_TOKENS)):
                if span.usage.tokens.total:
                    self._tokens.record(int(str(span.attributes[name])), about | {c.TOKEN_TYPE: kind})
            spent = _some(span, c.PROVIDER, c.REQUEST_MODEL, c.MODEL_SOURCE, c.STAGE)
            if span.usage.cost_usd is None:
                self._unpriced.add(1, spent)
            else:
                self._cost.add(span.usage.cost_usd, spent)
        elif span.what == "stage":
            self._samples.pop((str(span.attributes[c.RUN_ID]), span.stage or ""), None)
            self._stage.record(seconds, _some(span, c.STAGE, c.STAGE_STATE, c.ERROR_TYPE))

    def _cpu(self, _options: CallbackOptions) -> Iterable[Observation]:
        return self._observed(lambda sample: sample.cpu, 1.0)

    def _memory(self, _options: CallbackOptions) -> Iterable[Observation]:
        return self._observed(lambda sample: sample.memory_used_kb * 1024, MAX_BYTES)

    def _observed(self, measure: Callable[[Telemetry], float], highest: float) -> Iterator[Observation]:
        """Of each stage the most, within bounds: a figure that OTLP cannot carry would take the others along."""
        from opentelemetry.metrics import Observation

        most: dict[str, float] = {}
        # A copy: the SDK asks from a thread of its own.
        for (_run, stage), sample in list(self._samples.items()):
            # In this order not a number is 0.
            most[stage] = max(most.get(stage, 0), min(highest, max(0, measure(sample))))
        for stage, value in most.items():
            yield Observation(value, {c.STAGE: stage})


def _some(span: Span, *names: str) -> Attributes:
    return {name: span.attributes[name] for name in names if name in span.attributes}
