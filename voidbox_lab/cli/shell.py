"""``voidbox shell``: the user's terminal on one in a box, with the shell's exit code.

What the box shows reaches the terminal as it is, control sequences included: that is what a terminal is for. What
it could leave behind there is undone at the end (see `screen`).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import typer
from anyio.abc import TaskGroup
from pydantic import ValidationError
from typer import Exit
from typer.core import TyperCommand

from voidbox_lab.cli import complete
from voidbox_lab.cli.exec_ import (
    CAUSES,
    OURS,
    Allowed,
    Folders,
    Mounted,
    Profile,
    folders,
    in_options,
    policy_of,
)
from voidbox_lab.cli.output import ago, complain, err, json_mode
from voidbox_lab.cli.screen import Screen, read, write
from voidbox_lab.cli.which import connected, is_whole, whole_id
from voidbox_lab.client.shell import Shell, open_shell
from voidbox_lab.errors import UserError, VoidboxError
from voidbox_lab.spec.api import ExecExit, ExecStarted, ExecWaiting, ShellRequest
from voidbox_lab.spec.validate import sentence

COMMAND = "voidbox_lab.cli.shell"
"""Where the words after ``--`` are in the context's meta."""
END_OF_FILE = b"\x04"
END_AGAIN_S = 1.0
"""A terminal's end of file is a character for whoever reads just then, so it is typed until all have read it."""
HANG_UP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ShellCommand(TyperCommand):
    """Keeps what follows ``--`` apart from RUN/STAGE, which click would not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's, on what is before the first ``--``."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As click's, and the command."""
        return [*super().collect_usage_pieces(ctx), "[-- CMD [ARG]...]"]


def shell(
    ctx: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN/STAGE",
            help="In the box of this running stage.",
            show_default=False,
            autocompletion=complete.shell_targets,
        ),
    ] = None,
    memory: Annotated[int | None, typer.Option(help="Memory of a fresh box, in MB; else 512.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="Virtual CPUs of a fresh box; else 1.")] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of a fresh box; else default.", autocompletion=complete.images)
    ] = None,
    allow_command: Annotated[
        list[str] | None,
        typer.Option(help="Only these programs may run in a fresh box; may be given again.", show_default=False),
    ] = None,
    allow: Allowed = None,
    network: Profile = None,
    volume: Mounted = None,
    mount: Folders = None,
    json: Annotated[bool, typer.Option("--json", callback=json_mode, is_eager=True, hidden=True)] = False,
) -> None:
    """Open a shell, or run CMD, on a terminal in a box: a fresh one, or that of a running stage."""
    if json:
        raise UserError("A shell is a terminal and has no JSON; use `voidbox exec --json -- CMD`.")
    fresh: dict[str, Any] = {"memory_mb": memory, "vcpus": vcpus, "image": image}
    fresh["policy"] = policy_of("voidbox shell", allow_command, allow, network)
    if volume:
        fresh["volumes"] = tuple(volume)
    if mount:
        fresh["mounts"] = folders(mount)
    fields = {name: value for name, value in fresh.items() if value is not None}
    if target is not None:
        if fields:
            raise UserError("A stage's box is as it is; leave out the options of fresh ones, or RUN/STAGE.")
        run, fields["stage"] = stage_of(target)
        if not is_whole(run):
            with connected() as client:
                run = whole_id(client, run)
        fields["run"], target = run, f"{run}/{fields['stage']}"
    screen = Screen()
    rows, cols = screen.size()
    try:
        request = ShellRequest(
            argv=tuple(ctx.meta.get(COMMAND, ())), rows=rows, cols=cols, term=screen.kind(), **fields
        )
    except ValidationError as e:
        raise UserError(in_options(sentence("voidbox shell", e))) from e
    try:
        with screen:
            code = anyio.run(_Session(request, screen, target).run)
    except UserError as e:
        complain(e)
        raise Exit(CAUSES.get(e.cause or "", OURS)) from e
    except VoidboxError as e:
        code = complain(e)
        raise Exit(code if e.kind == "cancelled" else OURS) from e
    raise Exit(code)


def stage_of(target: str) -> tuple[str, str]:
    """Run and stage of ``RUN/STAGE``. Raises UserError."""
    run, slash, stage = target.partition("/")
    if not (run and slash and stage):
        raise UserError(
            f"{target!r} is not RUN/STAGE; `voidbox runs` names the runs, and a command comes after `--`."
        )
    return run, stage


class _Session:
    """One shell on one screen."""

    def __init__(self, request: ShellRequest, screen: Screen, target: str | None) -> None:
        self._request, self._screen, self._target = request, screen, target
        self._shell: Shell | None = None
        self._code = OURS
        self._trouble: VoidboxError | BrokenPipeError | None = None
        self._tasks: TaskGroup

    async def run(self) -> int:
        """Show the shell to its end; the exit code.

        Raises:
            VoidboxError: it could not be opened, or was lost.
            BrokenPipeError: nobody reads our output any more.
        """
        # Before anything else: from here on a signal hangs up in good order.
        with anyio.open_signal_receiver(*HANG_UP, signal.SIGWINCH) as signals:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._obey, signals)
                try:
                    async with open_shell(self._request) as self._shell:
                        await self._show(self._shell)
                except (VoidboxError, BrokenPipeError) as e:
                    self._trouble = e
                except OSError:
                    # Our terminal is gone.
                    self._code = 128 + signal.SIGHUP
                tasks.cancel_scope.cancel()
        if self._trouble is not None:
            raise self._trouble
        return self._code

    async def _show(self, shell: Shell) -> None:
        async for event in shell.events():
            match event:
                case bytes():
                    await write(event)
                case ExecWaiting(message=message):
                    err.print(message, markup=False)
                case ExecStarted():
                    err.print(_title(event, self._target), markup=False)
                    self._screen.raw()
                    self._tasks.start_soon(self._type, shell)
                    # It may have changed while the box booted.
                    await shell.resize(*self._screen.size())
                case ExecExit(signal=None, code=code) if code is not None:
                    self._code = code
                case ExecExit(signal=number) if number is not None:
                    self._code = 128 + number

    async def _type(self, shell: Shell) -> None:
        last = b""
        while data := await read():
            await shell.type(data)
            last = data[-1:]
        if self._screen.by_hand:
            self._hang_up(signal.SIGHUP)
            return
        # For the program a pipe's end is a terminal's: an end to the line, then the character for the end.
        if last not in (b"", b"\n"):
            await shell.type(b"\n")
        while True:
            await shell.type(END_OF_FILE)
            await anyio.sleep(END_AGAIN_S)

    async def _obey(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            if number != signal.SIGWINCH:
                self._hang_up(number)
            elif self._shell is not None:
                await self._shell.resize(*self._screen.size())

    def _hang_up(self, number: signal.Signals) -> None:
        self._code = 128 + number
        self._tasks.cancel_scope.cancel()


def _title(started: ExecStarted, target: str | None) -> str:
    facts = started.facts
    whose = f" of {target}" if target else ""
    up = "" if target else f", up after {ago(facts.boot_s)} ({facts.start})"
    return f"box {facts.domain}{whose}: {facts.isolation}, {facts.vsock} vsock, {facts.memory_mb} MB{up}"
