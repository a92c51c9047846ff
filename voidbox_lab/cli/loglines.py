"""Events as lines: ``[vm:STAGE] what``. Text that came in pieces is put together line by line.

All words in events may be a guest's: control characters are written out, and a line has a greatest length. Memory
is bounded by the stages there are: of each at most one unfinished line is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from voidbox_lab.cli.output import ago, visible
from voidbox_lab.observe.quantities import size
from voidbox_lab.spec.events import (
    AgentLog,
    AgentText,
    BoxBooted,
    Denied,
    Egress,
    Event,
    FileKept,
    ModelCall,
    Mounted,
    Notice,
    Queued,
    RunChanged,
    StageChanged,
    Telemetry,
    ToolCall,
    ToolResult,
)
from voidbox_lab.spec.run import BoxFacts, Tokens, Trouble

MAX_LINE = 4000
"""Longest line of text, in characters; a longer one goes on in the next."""
SHORT = 160
"""Longest rendering of a tool's input or result, in characters."""


@dataclass
class _Open:
    """Text of a stage whose line has not ended."""

    block: int
    text: str = ""


class Lines:
    """Makes lines of one run's events, in their order."""

    def __init__(self) -> None:
        self._open: dict[str | None, _Open] = {}

    def of(self, event: Event) -> Iterator[str]:
        """The lines that are whole with `event`, without line ends."""
        body, stage = event.body, event.stage
        if isinstance(body, AgentText):
            yield from self._text(stage, body)
            return
        if not isinstance(body, Telemetry):
            # What the agent said before it called a tool comes before the call.
            yield from self._finished(stage)
        for line in _said(body):
            yield _prefix(stage) + line

    def rest(self) -> Iterator[str]:
        """What is unfinished, at the end."""
        for stage in list(self._open):
            yield from self._finished(stage)

    def _text(self, stage: str | None, body: AgentText) -> Iterator[str]:
        held = self._open.get(stage)
        if held is not None and held.block != body.block:
            yield from self._finished(stage)
            held = None
        text = (held.text if held else "") + body.text
        *whole, text = text.split("\n")
        while len(text) > MAX_LINE:
            whole.append(text[:MAX_LINE])
            text = text[MAX_LINE:]
        for line in whole:
            yield from _pieces(stage, line)
        if text:
            self._open[stage] = _Open(body.block, text)
        else:
            self._open.pop(stage, None)

    def _finished(self, stage: str | None) -> Iterator[str]:
        held = self._open.pop(stage, None)
        if held is not None:
            yield from _pieces(stage, held.text)


def _prefix(stage: str | None) -> str:
    return f"[vm:{stage}] " if stage is not None else "[run] "


def _pieces(stage: str | None, line: str) -> Iterator[str]:
    line = line.removesuffix("\r")
    for start in range(0, max(len(line), 1), MAX_LINE):
        yield _prefix(stage) + visible(line[start : start + MAX_LINE])


def _said(body: Any) -> Iterator[str]:
    match body:
        case RunChanged():
            yield f"run {body.state}{_trouble(body.trouble)}"
        case StageChanged():
            attempt = f" (attempt {body.attempt})" if body.attempt is not None and body.attempt > 1 else ""
            cached = f", cached from {body.cached.run}/{body.cached.stage}" if body.cached else ""
            yield f"{body.state}{attempt}{cached}{_trouble(body.trouble)}"
        case Queued():
            yield f"waiting, {body.ahead} in front: {_short(body.message, 400)}"
        case BoxBooted():
            yield f"box {box(body.facts)}"
        case ToolCall():
            yield f"> {_short(body.name, 80)} {_short(_input(body.input))}".rstrip()
        case ToolResult():
            mark = "! failed: " if body.is_error else "< "
            yield f"{mark}{_short(body.content)}".rstrip()
        case ModelCall():
            yield _model_call(body)
        case AgentLog():
            for line in body.text.splitlines() or [""]:
                for start in range(0, max(len(line), 1), MAX_LINE):
                    yield f"{body.stream}: {visible(line[start : start + MAX_LINE])}"
        case Telemetry():
            yield (
                f"cpu {body.cpu:.0%}, memory {body.memory_used_kb >> 10} of {body.memory_total_kb >> 10} MB, "
                f"{body.processes} processes"
            )
        case Denied():
            by = f" ({_short(body.program, 64)})" if body.program else ""
            times = f", {body.count:,} times" if body.count > 1 else ""
            yield f"denied by {_short(body.rule, 100)}: {_short(body.message or body.subject, 1000)}{by}{times}"
        case Egress():
            yield _egress(body)
        case FileKept():
            yield f"file {_short(body.path, 400)} ({size(body.file.size)})"
        case Mounted():
            way = "brought back" if body.direction == "out" else "mounted"
            yield f"{way} {_short(body.mount, 400)}: {body.files:,} files, {size(body.bytes)} ({body.how})"
        case Notice():
            yield f"{body.level}: {_short(body.message, 1000)}"


def _egress(body: Egress) -> str:
    where = f"egress {_short(body.host, 300)}:{body.port} {body.verdict}"
    rule = f" by {_short(body.rule, 320)}" if body.rule else ""
    reason = f": {_short(body.reason, 1000)}" if body.reason else ""
    if body.verdict == "denied":
        return f"{where}{rule}{reason}"
    address = f", {_short(body.address, 100)}" if body.address else ""
    carried = f", {size(body.bytes_out)} out, {size(body.bytes_in)} in, {ago(body.duration_s)}"
    return f"{where}{rule}{address}{carried}{reason}"


def box(facts: BoxFacts) -> str:
    """What a box really is, in one line."""
    return (
        f"{facts.domain}: {facts.isolation}, {facts.vsock} vsock, {facts.memory_mb} MB, {facts.vcpus} vCPU, "
        f"up after {ago(facts.boot_s)} ({facts.start})"
    )


def tokens(count: Tokens) -> str:
    """Tokens by kind; those kinds that are 0 are left out, and the cached ones are named."""
    kinds = {
        "in": count.input,
        "out": count.output,
        "cache read": count.cache_read,
        "cache write": count.cache_write,
    }
    shown = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
    return f"{count.total:,} tokens" + (f" ({shown})" if shown else "")


def spent(usd: float | None, source: Literal["live", "replay", "scripted"] | None) -> str:
    """Dollars. What is unpriced is never nothing, and a script's nothing is said to be one."""
    if usd is None:
        return "unpriced"
    return "no cost" if usd == 0 and source == "scripted" else f"${usd:.4f}"


def _model_call(body: ModelCall) -> str:
    status = "" if body.status == 200 else f", HTTP {body.status}" if body.status else ", connection broke"
    return (
        f"model {_short(body.model, 80)} ({body.source}): {tokens(body.tokens)}, "
        f"{spent(body.cost_usd, body.source)}, {ago(body.duration_s)}{status}"
    )


def _trouble(trouble: Trouble | None) -> str:
    if trouble is None:
        return ""
    label = trouble.kind if trouble.kind == "cancelled" else f"{trouble.kind} error"
    return f", {label}: {_short(trouble.message, 2000)}"


def _input(given: dict[str, Any]) -> str:
    """A tool's input in short: a lone word as it is, else JSON."""
    if len(given) == 1 and isinstance(only := next(iter(given.values())), str):
        return only
    return json.dumps(given, ensure_ascii=False, default=str)[: 8 * SHORT] if given else ""


def _short(text: str, width: int = SHORT) -> str:
    """`text` on one line, control characters written out, cut to `width` characters with an ellipsis."""
    flat = visible(" ".join(text[: 8 * width].split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"
