"""A run as its caller holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from voidbox_lab.api.cards import run_card
from voidbox_lab.api.files import OutputFile
from voidbox_lab.cards import Card, Shown
from voidbox_lab.client import Client
from voidbox_lab.errors import Cancelled, UserError, from_dict
from voidbox_lab.settings import Settings
from voidbox_lab.spec import AT_REST, TERMINAL, RunRecord, RunSpec, RunState, StageRecord, Trouble
from voidbox_lab.spec.events import Event

if TYPE_CHECKING:
    import pandas as pd

    from voidbox_lab.observe.span import Span
    from voidbox_lab.observe.trace import Trace


class Run(Shown):
    """A run: its record as last seen, and a way to its events. Made by `run` of a box or a pipeline, and by
    ``%voidbox run``."""

    def __init__(self, record: RunRecord, *, settings: Settings | None = None) -> None:
        self._record = record
        self._settings = settings
        self._events: list[Event] | None = None

    @classmethod
    def load(cls, run_id: str, *, settings: Settings | None = None) -> Run:
        """An earlier run, by its id. `UserError` if there is none."""
        with Client(settings) as client:
            return cls(client.run(run_id), settings=settings)

    @property
    def record(self) -> RunRecord:
        """The whole record."""
        return self._record

    @property
    def id(self) -> str:
        """The run's id."""
        return self._record.id

    @property
    def state(self) -> RunState:
        """``succeeded``, ``failed``, ``cancelled``; ``queued``, ``running``, ``paused``; or ``interrupted``."""
        return self._record.state

    @property
    def spec(self) -> RunSpec:
        """Exactly what ran."""
        return self._record.spec

    @property
    def stages(self) -> Mapping[str, StageRecord]:
        """Each stage's record, by name."""
        return self._record.stages

    @property
    def result(self) -> str | None:
        """What the run answers: its last stage's output, a fan-out's merged ones, however long."""
        if not any(s.output_file for s in self.stages.values()):
            return self._record.result
        return self._record.answer({name: self.output(name) or "" for name in self._record.outputs})

    def output(self, stage: str) -> str | None:
        """All that a stage answered, however long; None if it did not.

        Raises:
            UserError: the run has no such stage.
        """
        kept = self._stage(stage)
        if kept.output_file is None:
            return kept.output
        with Client(self._settings) as client:
            return client.download(kept.output_file.digest).decode(errors="replace")

    def files(self, stage: str | None = None) -> dict[str, OutputFile]:
        """What a stage left in ``/workspace/output``, by its path there; of all stages, by ``STAGE/PATH``.

        Raises:
            UserError: the run has no such stage.
        """
        if stage is not None:
            return {
                path: OutputFile(stage, path, f, self._settings) for path, f in self._stage(stage).files.items()
            }
        return {f"{name}/{path}": file for name in self.stages for path, file in self.files(name).items()}

    @property
    def trouble(self) -> Trouble | None:
        """Why it did not succeed."""
        return self._record.trouble

    @property
    def cost_usd(self) -> float | None:
        """Dollars of all stages; None if any of them made a call that has no known price."""
        return self._record.cost_usd

    def _stage(self, name: str) -> StageRecord:
        if name not in self.stages:
            raise UserError(f"The run {self.id} has no stage {name!r}; it has {', '.join(self.stages)}.")
        return self.stages[name]

    def check(self) -> Run:
        """Self if the run succeeded, else its trouble raised as the error it is."""
        if self.state == "succeeded":
            return self
        if self.trouble is not None:
            raise from_dict(self.trouble.model_dump())
        if self.state == "cancelled":
            raise Cancelled(f"The run {self.id} was cancelled.", cause="cancelled")
        raise UserError(f"The run {self.id} has not succeeded; it is {self.state}. Refresh it once it has ended.")

    def refresh(self) -> Run:
        """Ask the daemon for the record again."""
        with Client(self._settings) as client:
            self._record = client.run(self.id)
        return self

    def cancel(self) -> Run:
        """Ask for the run's end; harmless if it has ended."""
        with Client(self._settings) as client:
            self._record = client.cancel(self.id)
        return self

    def pause(self) -> Run:
        """Have it start nothing more; what is at work goes on."""
        with Client(self._settings) as client:
            self._record = client.pause(self.id)
        return self

    def resume(self) -> Run:
        """Let it go on after a pause, or after its daemon died: what had succeeded is not run again."""
        with Client(self._settings) as client:
            self._record = client.resume(self.id)
        return self

    def wait(self) -> Run:
        """Self, once the run has ended or rests (``interrupted``). Interrupting the wait leaves the run alone."""
        with Client(self._settings) as client:
            for _ in client.events(self.id):
                pass
            self._record = client.run(self.id)
        return self

    def events(self, *, after: int = 0, limit: int | None = None) -> list[Event]:
        """The events of the run; waits for its end if it goes on.

        All of them are kept, as objects of a kilobyte or so; for very many see `iter_events` and the frames.

        Args:
            after: only those after this number.
            limit: at most so many, and waits no longer than until they are there.
        """
        if not after and limit is None:
            if self._events is None or self.state not in TERMINAL:
                self._events = None
                self._events = list(self.iter_events())
            return self._events
        return list(self.iter_events(after=after, limit=limit))

    def iter_events(self, *, after: int = 0, limit: int | None = None) -> Iterator[Event]:
        """As `events`, one at a time as they come, none kept."""
        most = None if limit is None else max(0, limit)
        if self._events is not None and self.state in TERMINAL:
            yield from islice((event for event in self._events if event.seq > after), most)
            return
        with Client(self._settings) as client, closing(client.events(self.id, after)) as events:
            yield from islice(events, most)
            if limit is None and self.state not in AT_REST:
                self._record = client.run(self.id)

    def to_frame(self) -> pd.DataFrame:
        """One row for each stage; see `voidbox_lab.observe.frames.stages_frame`."""
        from voidbox_lab.observe.frames import stages_frame

        return stages_frame(self._record)

    def events_frame(self) -> pd.DataFrame:
        """One row for each event; see `voidbox_lab.observe.frames.events_frame`."""
        from voidbox_lab.observe.frames import events_frame

        return events_frame(self.iter_events())

    def telemetry_frame(self) -> pd.DataFrame:
        """One row for each sample of the guests' procfs."""
        from voidbox_lab.observe.frames import telemetry_frame

        return telemetry_frame(self.iter_events())

    def trace(self) -> Trace:
        """Its spans, from the whole run to single model and tool calls, as an object that shows itself as a
        waterfall. They are made of the events, here: no collector is needed, and one has the same ids."""
        from voidbox_lab.observe.trace import Trace

        return Trace(self.id, self._spans())

    def spans(self, *, contents: bool = False) -> pd.DataFrame:
        """One row for each span; see `voidbox_lab.observe.span_frames.spans_frame`.

        Args:
            contents: prompts, answers, arguments and results of tools among the attributes too.
        """
        from voidbox_lab.observe.span_frames import spans_frame

        return spans_frame(self._spans(contents=contents))

    def telemetry(self) -> pd.DataFrame:
        """`telemetry_frame`, with the span that each sample was taken in."""
        from voidbox_lab.observe.span_frames import samples_frame

        return samples_frame(self._spans(), self.iter_events())

    def tool_costs(self) -> pd.DataFrame:
        """One row for each tool call, with what the model calls cost that asked for it and that read its result;
        see `voidbox_lab.observe.span_frames.tool_costs_frame` for how that is shared out."""
        from voidbox_lab.observe.span_frames import tool_costs_frame

        return tool_costs_frame(self._spans())

    def _spans(self, *, contents: bool = False) -> list[Span]:
        from voidbox_lab.observe.spans import spans_of

        return spans_of(self._record, self.iter_events(), contents=contents)

    def egress_frame(self) -> pd.DataFrame:
        """One row for each connection that left a box or was to; see `voidbox_lab.observe.frames.egress_frame`."""
        from voidbox_lab.observe.frames import egress_frame

        return egress_frame(self.iter_events())

    def denials_frame(self) -> pd.DataFrame:
        """One row for each denial of a policy; see `voidbox_lab.observe.frames.denials_frame`."""
        from voidbox_lab.observe.frames import denials_frame

        return denials_frame(self.iter_events())

    def _card(self) -> Card:
        return run_card(self._record)

    def __repr__(self) -> str:
        stages = ", ".join(f"{s.name}: {s.state}" for s in self.stages.values())
        cost = "unpriced" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        trouble = f" · {self.trouble.kind}: {self.trouble.message}" if self.trouble else ""
        # A guest wrote the trouble's text, perhaps: no control codes into a terminal.
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in trouble)
        return f"<Run {self.id} · {self.state} · {stages} · {cost}{shown}>"
