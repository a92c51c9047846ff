"""The latest telemetry of each box at work, in memory, for who only wants a glance. Not a record: see `store`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from voidbox_lab.spec import AT_REST, TERMINAL
from voidbox_lab.spec.events import Body, BoxBooted, Event, RunChanged, StageChanged, Telemetry
from voidbox_lab.spec.overview import MAX_SAMPLES


@dataclass(frozen=True)
class Curves:
    """Shares from 0 to 1, oldest first."""

    cpu: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    memory: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class Gauges:
    """Curves by run and stage, from the events as they are recorded."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, Curves]] = {}

    def recorded(self, run: str, events: Sequence[Event]) -> None:
        """Look at new events of `run`."""
        for event in events:
            self.take(run, event.stage, event.body)

    def take(self, run: str, stage: str | None, body: Body) -> None:
        """Look at an event; cheap for all but telemetry."""
        if isinstance(body, Telemetry):
            # What comes after the stage's end is of nobody, and would stay for ever.
            if curves := self._runs.get(run, {}).get(stage or ""):
                # A guest says what it likes.
                curves.cpu.append(_share(body.cpu))
                curves.memory.append(_share(body.memory_used_kb / max(1, body.memory_total_kb)))
        elif isinstance(body, BoxBooted):
            if stage is not None:
                self._runs.setdefault(run, {})[stage] = Curves()
        elif isinstance(body, StageChanged):
            # Of another attempt as well: its box is another one.
            if stage is not None and (body.state in TERMINAL or body.state == "retrying"):
                self._runs.get(run, {}).pop(stage, None)
        elif isinstance(body, RunChanged) and body.state in AT_REST:
            self._runs.pop(run, None)

    def of(self, run: str, stage: str) -> Curves:
        """The curves of a stage; empty ones if it has sent nothing."""
        return self._runs.get(run, {}).get(stage) or Curves()


def _share(value: float) -> float:
    # Not a number is neither more nor less than anything.
    return round(min(1.0, value), 3) if value > 0 else 0.0
