"""``voidbox run FILE``: a spec file is submitted and followed, a notebook is executed (see `notebook`).

On standard output is the run's result, or with ``--json`` its facts, and nothing else; all the rest is on standard
error.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voidbox_lab.cli import notebook
from voidbox_lab.cli.output import Json, err, print_json
from voidbox_lab.errors import Cancelled, UserError
from voidbox_lab.spec import Budget, Model, RunRecord, RunSpec, validated
from voidbox_lab.spec.files import ALL, SUFFIXES, SpecFile, read

if TYPE_CHECKING:
    from voidbox_lab.client import AsyncClient
    from voidbox_lab.widgets.display import Surface

CELL_S = 900.0
"""Default bound on a notebook's cell."""
FOR_SPECS = "spec files; a notebook's cells say it themselves"
FOR_BOOKS = "notebooks"


def run(
    file: Annotated[
        Path, typer.Argument(help="A spec file (.yaml, .yml, .json) or a notebook (.ipynb).", show_default=False)
    ],
    input: Annotated[  # noqa: A002 - the option's name
        list[str] | None, typer.Option(help="A file for /workspace/input; may be given again.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="PROVIDER:NAME for all stages instead of what the file says, or STAGE=PROVIDER:NAME for one; "
            "may be given again.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The most it may spend: usd=N,tokens=N,seconds=N.", show_default=False)
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run every stage, although an earlier result may be known.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the run's id and let it go on.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the executed notebook here.", show_default=False),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Bound on each cell of a notebook, in seconds; else 900.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a spec file, or execute a notebook headless, and print the result.

    Ctrl-C cancels the run. Exit codes: 0 success; else by what ended it: 1 an agent or command, 2 a user error,
    3 the host's side, 4 a limit, 130 cancelled.
    """
    suffix = file.suffix.lower()
    if suffix == ".ipynb":
        _refuse(FOR_SPECS, {"--input": input, "--model": model, "--budget": budget, "--detach": detach})
        notebook.execute(
            file, output=output, timeout=CELL_S if timeout is None else timeout, json=json, fresh=fresh
        )
        return
    if suffix not in SUFFIXES:
        raise UserError(
            f"{file} is neither a spec file nor a notebook; its name has to end in .yaml, .json or .ipynb."
        )
    _refuse(FOR_BOOKS, {"--output": output, "--timeout": timeout})
    plan = _plan(file, input or [], models(model or []), budget, fresh)
    _run(plan, detach=detach, json=json)


def _refuse(what: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value not in (None, False, []):
            raise UserError(f"{name} is for {what}; leave it out.")


def models(options: list[str]) -> dict[str, Model]:
    """What ``--model`` says: stage to model, under `ALL` the one for all others.

    Raises:
        UserError: no known provider, or two models for one stage.
    """
    found: dict[str, Model] = {}
    for option in options:
        name, equals, text = option.partition("=")
        # A model's URL may have a '=' as well, but what is before it has a colon, and no stage's name has.
        stage, text = (name, text) if equals and ":" not in name else (ALL, option)
        if stage in found:
            raise UserError(f"--model {option} is the second model for {stage or 'all stages'}; keep one of them.")
        found[stage] = Model.parse(text)
    return found


@dataclass(frozen=True)
class _Plan:
    """A run, and the files that have to be there before it begins."""

    spec: SpecFile
    run: RunSpec
    inputs: dict[str, Path | bytes]


def _plan(file: Path, inputs: list[str], models: dict[str, Model], budget: str | None, fresh: bool) -> _Plan:
    from voidbox_lab import skills
    from voidbox_lab.api import named

    spec = read(file, models=models, fetch=skills.fetch)
    if spec.run is None:
        raise UserError(
            f"{file} declares a sandbox without a command; add 'run:' or 'command:' to have one run in it."
        )
    given = Budget.parse(budget or "").model_dump(exclude_none=True)
    run = spec.run.model_copy(update={
        "budget": spec.run.budget.model_copy(update=given), "fresh": fresh or spec.run.fresh
    })  # fmt: skip
    return _Plan(spec, run, named(inputs))


def _run(plan: _Plan, *, detach: bool, json: bool) -> None:
    from voidbox_lab.api import blocking, failure

    surface = _surface()

    async def go() -> tuple[RunRecord, str | None]:
        from voidbox_lab.client import AsyncClient

        async with AsyncClient() as client:
            return await _carried_out(client, plan, surface, detach)

    try:
        record, result = blocking(lambda: _stoppable(go))
    except Cancelled as e:
        if e.cause == "interrupted":
            raise Cancelled("The run was cancelled by a signal.", cause=e.cause) from None
        raise
    if detach:
        print_json({"run": record.id}) if json else typer.echo(record.id)
        return
    if json:
        print_json(facts(record, result))
    elif record.state == "succeeded":
        _print(result, record)
    if error := failure(record):
        raise error


def _surface() -> Surface:
    from voidbox_lab.cli.progress import ProgressSurface
    from voidbox_lab.widgets.display import PlainSurface

    return ProgressSurface(err) if err.is_terminal else PlainSurface(lambda line: print(line, file=sys.stderr))  # noqa: T201


async def _carried_out(
    client: AsyncClient, plan: _Plan, surface: Surface, detach: bool
) -> tuple[RunRecord, str | None]:
    from voidbox_lab.api import submitted
    from voidbox_lab.widgets.follow import follow

    for digest, source in plan.spec.files.items():
        if (await client.upload(source)).digest != digest:
            raise UserError(
                f"The file {source!s} changed while it was read; run it again once nobody writes to it."
            )
    for stage in plan.run.stages:
        for skill in stage.box.procedures:
            for data in skill.contents.values():
                await client.upload(data)
    inputs = {**plan.run.inputs, **{name: await client.upload(source) for name, source in plan.inputs.items()}}
    fresh = plan.run.fresh or client.settings.fresh
    spec = validated(RunSpec, **{**dict(plan.run), "inputs": inputs, "fresh": fresh})
    record = await submitted(client, spec)
    if detach:
        return record, None
    record = await follow(client, record, surface)
    return record, await _whole_result(client, record)


async def _whole_result(client: AsyncClient, record: RunRecord) -> str | None:
    """The run's result, of whole outputs where the record has beginnings alone."""
    outputs = record.outputs
    for name in outputs:
        if file := record.stages[name].output_file:
            outputs[name] = (await client.download(file.digest)).decode(errors="replace")
    return record.answer(outputs)


async def _stoppable(go: Any) -> tuple[RunRecord, str | None]:
    """SIGTERM stops as Ctrl-C does, which asyncio turns into a cancellation by itself."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    with suppress(RuntimeError, ValueError):  # not in the main thread, where there are no signals
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        found: tuple[RunRecord, str | None] = await go()
        return found
    except asyncio.CancelledError:
        raise Cancelled("The run was cancelled before it began.", cause="interrupted") from None
    finally:
        with suppress(RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGTERM)


def facts(record: RunRecord, result: str | None) -> dict[str, Any]:
    """What programs read: the facts of a notebook's run, and besides its result, cost and trouble."""
    from voidbox_lab.widgets.display import facts as shown
    from voidbox_lab.widgets.view_state import begin, settle

    return shown(settle(begin(record), record)) | {
        "result": result,
        "cost_usd": record.cost_usd,
        "trouble": record.trouble.model_dump(mode="json") if record.trouble else None,
    }


def _print(result: str | None, record: RunRecord) -> None:
    if result is None:
        err.print(f"The run {record.id} succeeded and has no result.", markup=False)
        return
    if sys.stdout.isatty():
        from voidbox_lab.widgets.text import clean

        result = clean(result)  # a guest wrote it: no control sequences into a terminal
    sys.stdout.write(result if result.endswith("\n") else result + "\n")
