"""The magics themselves: ``%%voidbox skill | stage`` declare, ``%voidbox run | attach | …`` act.

Declaring and listing what is declared happen at once; whatever asks the daemon returns a `Pending`, which
`transform.AwaitMagic` has the cell await.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from voidbox_lab.api import Run, absolute_mount, failure, named, submitted
from voidbox_lab.client import AsyncClient
from voidbox_lab.errors import Cancelled, UserError, VoidboxError
from voidbox_lab.magics import pipeline
from voidbox_lab.magics.arguments import CELL, LINE, Parser, subcommand
from voidbox_lab.magics.pending import Pending
from voidbox_lab.magics.registry import Registry, StageDeclaration, unknown
from voidbox_lab.magics.sentence import shown_as_sentence
from voidbox_lab.magics.skills import declared
from voidbox_lab.spec import TERMINAL, Model, Policy, RunRecord, VoidBoxSpec, in_words, validated
from voidbox_lab.spec.flow import parse_flow, stage_names
from voidbox_lab.widgets.dashboards import dashboard
from voidbox_lab.widgets.display import Surface, choose, in_kernel
from voidbox_lab.widgets.follow import follow

T = TypeVar("T")
WAITING = frozenset({"run", "attach", "retry", "cancel", "pause", "resume", "runs"})
"""Subcommands that return a `Pending`."""


@magics_class
class VoidboxMagics(Magics):
    """``%voidbox`` and ``%%voidbox`` of one shell."""

    def __init__(self, shell: Any, registry: Registry) -> None:
        super().__init__(shell)
        self.registry = registry
        self.started: list[str] = []
        """Ids of the runs of this shell, for completion."""

    @no_var_expand  # a prompt may hold braces and dollar signs
    @line_cell_magic
    def voidbox(self, line: str, cell: str | None = None) -> Any:
        """Run AI agents, each in a micro-VM of its own.

        Declare, in cells::

            %%voidbox skill price-history --description "How to read the price table"
            Markdown that tells the agent how to do something.

            %%voidbox stage analyst --skill price-history --model scripted:quickstart
            The prompt: what the agent is to do. Its files are in /workspace/input.

            %voidbox skill jq --cli deb:jq      a program; --mcp, --agent, --oci, --remote, --file: other kinds

        Run, and look on::

            run = %voidbox run analyst --input stocks.csv
            run = %voidbox run data | [quant, sentiment]:text | strategist --budget usd=0.50

        ``a | b`` is in sequence, ``[a, b]`` side by side; the stop button cancels. `run.result`, `run.to_frame()`.

        Runs, of this notebook or another; ID may be ``$run``::

            %voidbox runs                       the latest ones
            %voidbox attach ID                  show one here
            %voidbox dashboard                  all of them: cost, comparison, telemetry
            %voidbox pause|resume|cancel ID
            %voidbox retry ID                   again; what had succeeded is taken from the cache

        ``%voidbox skills`` and ``%voidbox stages`` list what is declared, ``%voidbox run --help`` the options of a
        subcommand. Tab completes subcommands, options, names and models.
        """
        try:
            return self._dispatch(line, cell)
        except VoidboxError as e:
            error = e
        raise self._shown(error)

    def _dispatch(self, line: str, cell: str | None) -> Any:
        magic, known = ("%voidbox", LINE) if cell is None else ("%%voidbox", CELL)
        if not line.strip():
            self._overview()
            return None
        if "--help" in line.split():  # a line may ask about what belongs into a cell
            known = {**CELL, **LINE}
        name, rest = subcommand(magic, line, known)
        if name in WAITING:
            # Options are read inside the coroutine: an error must surface where it is awaited.
            return Pending(line.strip(), lambda: self._awaited(self._wait(name, known[name](), rest)))
        options = self._read(known[name](), rest)
        return None if options is None else getattr(self, f"_{name}")(options, cell)

    def _read(self, parser: Parser, line: str) -> argparse.Namespace | None:
        options = parser.read(line)
        if options.help:
            print(parser.format_help())  # noqa: T201 - this is the shell's output
            return None
        return options

    async def _wait(self, name: str, parser: Parser, line: str) -> Any:
        options = self._read(parser, line)
        return None if options is None else await getattr(self, f"_{name}")(options)

    def _shown(self, error: VoidboxError) -> VoidboxError:
        return shown_as_sentence(error, colour=str(getattr(self.shell, "colors", "nocolor")).lower() != "nocolor")

    async def _awaited(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        error: VoidboxError
        try:
            with _interruptible(self.shell):
                return await waiting
        except VoidboxError as e:
            error = e
        except asyncio.CancelledError:
            error = Cancelled("The cell was stopped.", cause="interrupted")
        raise self._shown(error)

    def _overview(self) -> None:
        for magic, known in (("%%voidbox", CELL), ("%voidbox", LINE)):
            for name, parser in known.items():
                print(f"{magic + ' ' + name:17} {parser().description}")  # noqa: T201

    # Declarations

    def _skill(self, options: argparse.Namespace, cell: str | None) -> None:
        self.registry.declare_skill(declared(options, cell))

    def _stage(self, options: argparse.Namespace, cell: str) -> None:
        if not cell.strip():
            raise UserError(f"The stage {options.name!r} has no prompt; write it in the cell, below the options.")
        options.allow = [self._text(text, "HOST:PORT", "pypi.org:443") for text in options.allow]
        options.mount = [self._text(text, "FOLDER:PATH", "data:/data") for text in options.mount]
        self.registry.declare_stage(
            StageDeclaration(
                name=options.name,
                prompt=cell.strip() + "\n",
                skills=tuple(options.skill),
                model=self._model(options.model),
                agent=options.agent,
                memory_mb=options.memory,
                vcpus=options.vcpus,
                timeout_s=options.timeout,
                policy=_policy(options),
                image=self._text(options.image, "image", "python:3.12-slim"),
                volumes=tuple(options.volume),
                mounts=tuple(map(_mount, options.mount)),
                budget=options.budget,
                on_failure=options.on_failure[0],
                retry=options.on_failure[1],
                inputs=tuple(options.input),
            )
        )

    def _model(self, text: str) -> Model:
        """The model that `text` names, or that the notebook's variable ``$NAME`` holds."""
        model = self._value(text, "model", 'MODEL = "scripted:quickstart"', Model)
        return model if isinstance(model, Model) else Model.parse(model)

    def _text(self, text: str, what: str, example: str) -> str:
        """`text`, or what the notebook's variable ``$NAME`` holds."""
        return self._value(text, what, f'NAME = "{example}"', str)

    def _run_id(self, text: str) -> str:
        """The id `text`, or of the run that the notebook's variable ``$NAME`` holds."""
        run = self._value(text, "run", "run = pipeline.submit()", Run)
        return run.id if isinstance(run, Run) else run

    def _value(self, text: str, what: str, example: str, kind: type[T]) -> str | T:
        if not text.startswith("$"):
            return text
        value = self.shell.user_ns.get(text[1:]) if self.shell is not None else None
        if isinstance(value, str | kind):
            return value
        raise UserError(
            f"{text} is no variable that holds a {what}; set it in an earlier cell, as in '{example}'."
        )

    def _skills(self, _options: argparse.Namespace, _cell: None) -> Any:
        rows = [(s.name, s.kind, s.description, in_words(s)) for s in self.registry.skills.values()]
        return _frame(rows, ["skill", "kind", "description", "made_of"])

    def _stages(self, _options: argparse.Namespace, _cell: None) -> Any:
        rows = [
            (s.name, str(s.model), ", ".join(s.skills), s.agent, s.memory_mb, s.vcpus, s.timeout_s)
            for s in self.registry.stages.values()
        ]
        return _frame(rows, ["stage", "model", "skills", "agent", "memory_mb", "vcpus", "timeout_s"])

    def _dashboard(self, options: argparse.Namespace, _cell: None) -> Any:
        return dashboard(options.theme, options.height)

    # What asks the daemon

    async def _run(self, options: argparse.Namespace) -> Any:
        flow = parse_flow(" ".join(options.stages))
        paths = input_files(options.input)
        # Everything that can be wrong here is found before a daemon is started or a byte is copied.
        boxes = {name: self.registry.stage(name, timeout_s=options.timeout) for name in stage_names(flow)}
        own = {n: input_files([*self.registry.stages[n].inputs]) for n in boxes}
        pipeline.build(flow, boxes.__getitem__, {})
        surface = choose(quiet=options.quiet, shell=self.shell)
        async with AsyncClient() as client:
            inputs = {name: await client.upload(path) for name, path in paths.items()}
            owned = {
                stage: {name: await client.upload(path) for name, path in files.items()}
                for stage, files in own.items()
            }
            for data in _skill_files(boxes.values()).values():
                await client.upload(data)
            fresh = options.fresh or client.settings.fresh
            spec = pipeline.build(flow, boxes.__getitem__, inputs, owned, budget=options.budget, fresh=fresh)
            record = await submitted(client, spec)
            self.started.append(record.id)
            return await _shown_run(client, record, surface, options, owner=True)

    async def _attach(self, options: argparse.Namespace) -> Any:
        surface = choose(quiet=options.quiet, shell=self.shell)
        async with AsyncClient() as client:
            return await _shown_run(
                client, await client.run(self._run_id(options.run)), surface, options, owner=False
            )

    async def _retry(self, options: argparse.Namespace) -> Any:
        surface = choose(quiet=options.quiet, shell=self.shell)
        async with AsyncClient() as client:
            before = await client.run(self._run_id(options.run))
            if before.state not in TERMINAL:
                raise UserError(
                    f"The run {before.id} has not ended, it is {before.state}; '%voidbox attach {before.id}' "
                    f"shows it, '%voidbox resume {before.id}' lets it go on."
                )
            record = await submitted(
                client, before.spec.model_copy(update={"fresh": options.fresh or client.settings.fresh})
            )
            self.started.append(record.id)
            return await _shown_run(client, record, surface, options, owner=True)

    async def _cancel(self, options: argparse.Namespace) -> None:
        async with AsyncClient() as client:
            await client.cancel(self._run_id(options.run))

    async def _pause(self, options: argparse.Namespace) -> None:
        async with AsyncClient() as client:
            await client.pause(self._run_id(options.run))

    async def _resume(self, options: argparse.Namespace) -> None:
        async with AsyncClient() as client:
            await client.resume(self._run_id(options.run))

    async def _runs(self, options: argparse.Namespace) -> Any:
        async with AsyncClient() as client:
            records = await client.runs(limit=options.limit)
        rows = [
            (r.id, r.state, ", ".join(r.stages), r.created_at, r.finished_at and r.finished_at - r.created_at)
            for r in records
        ]
        frame = _frame(rows, ["run", "state", "stages", "created", "seconds"])
        import pandas as pd

        frame["created"] = pd.to_datetime(frame["created"], unit="s", utc=True).dt.floor("s")
        return frame


async def _shown_run(
    client: AsyncClient, record: RunRecord, surface: Surface, options: argparse.Namespace, *, owner: bool
) -> Run:
    final = await follow(client, record, surface, owner=owner)
    error = failure(final)
    if error is not None and not options.allow_failure:
        raise error
    return Run(final)


def input_files(options: list[str]) -> dict[str, Path | bytes]:
    """File names in the box and the files they come from, as `voidbox_lab.api.named`; a missing file's name
    comes with the nearest one in its directory."""
    for option in options:
        path = Path(option).expanduser()
        if not path.exists():
            near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
            where = f" in {path.parent.absolute()}"
            raise UserError(unknown("input file", path.name, near[:1000], "Check the path", where))
    return named(options)


def _policy(options: argparse.Namespace) -> Policy:
    programs = [name for option in options.allow_command or [] for name in option.split(",") if name]
    network = options.network or ("allowlist" if options.allow else "none")
    egress = tuple(options.allow)
    return validated(Policy, network=network, egress=egress, commands=tuple(programs) if programs else None)


def _mount(option: str) -> str:
    """`absolute_mount` of a folder that is there."""
    folder, colon, _ = option.partition(":")
    if folder and colon and not Path(folder).expanduser().is_dir():
        raise UserError(f"There is no folder {folder!r} to mount (looked in {Path.cwd()}); check the path.")
    return absolute_mount(option)


def _skill_files(boxes: Iterable[VoidBoxSpec]) -> dict[str, bytes]:
    """Digest to bytes of what lies beside the SKILL.md files."""
    return {digest: data for box in boxes for s in box.procedures for digest, data in s.contents.items()}


@contextmanager
def _interruptible(shell: Any) -> Iterator[None]:
    """Ctrl-C cancels the awaiting task in a terminal's loop, as ipykernel does by itself in a notebook.

    Without it KeyboardInterrupt would leave the loop from wherever it was, and the task hanging in it.
    """
    task = asyncio.current_task()
    if task is None or in_kernel(shell) or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def _frame(rows: list[tuple[Any, ...]], columns: list[str]) -> Any:
    import pandas as pd  # 0.5 s that %load_ext should not cost

    return pd.DataFrame(rows, columns=columns)
