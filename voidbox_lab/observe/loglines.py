"""Log records of a run's events: what its boxes write, what their policies forbid, and what is said about them.

Each begins with ``[vm:STAGE]``. Not what an agent says, nor what a command answers: that is contents of messages,
and so is what an agent's standard output has besides events, half an event for instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from voidbox_lab.observe import conventions as c
from voidbox_lab.observe.describe import Attributes, of_trouble, sentence
from voidbox_lab.observe.span import printable
from voidbox_lab.spec.events import AgentLog, Denied, Event, Notice, RunChanged, StageChanged

MAX_LINES = 100
"""Most lines of one event; the others are counted in one."""
MAX_LINE = 4096
"""Characters of a line."""
MAX_RULE = 100


@dataclass(frozen=True)
class LogLine:
    """One log record; its text is printable."""

    severity: Literal["INFO", "WARN", "ERROR"]
    text: str
    attributes: Attributes


def log_lines(event: Event, *, contents: bool = False) -> Iterator[LogLine]:
    """The log records of `event`; of most there are none."""
    prefix = f"[vm:{event.stage}] " if event.stage else ""
    common: Attributes = {c.RUN_ID: event.run}
    if event.stage:
        common[c.STAGE] = event.stage
    match event.body:
        case AgentLog(text=text, stream=stream) if stream == "stderr" or contents:
            lines = [line for line in text.splitlines() if line.strip()]
            for line in lines[:MAX_LINES]:
                yield LogLine("INFO", prefix + printable(line, MAX_LINE), {**common, "log.iostream": stream})
            if len(lines) > MAX_LINES:
                yield LogLine("INFO", f"{prefix}… {len(lines) - MAX_LINES:,} more lines", common)
        case Denied() as body:
            rule = printable(body.rule, MAX_RULE)
            text = f"{prefix}denied {rule}: {printable(body.message or body.subject, MAX_LINE)}"
            found: Attributes = {c.RULE: rule, c.DENIED: body.count}
            yield LogLine("WARN", text, {**common, **found})
        case Notice(level=level, message=message):
            yield LogLine("WARN" if level == "warning" else "INFO", prefix + printable(message, MAX_LINE), common)
        case StageChanged(state=state, trouble=trouble) | RunChanged(state=state, trouble=trouble):
            what = "stage" if event.stage else f"run {event.run}"
            if trouble is None:
                yield LogLine("INFO", f"{prefix}{what} {state}", common)
            else:
                severity: Literal["INFO", "ERROR"] = "INFO" if trouble.kind == "cancelled" else "ERROR"
                why = sentence(trouble, contents=contents)
                yield LogLine(severity, f"{prefix}{what} {state}: {why}", {**common, **of_trouble(trouble)})
