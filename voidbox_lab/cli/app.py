"""The command tree and the one place where errors become exit codes."""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer import Abort, Exit
from typer.core import TyperGroup

from voidbox_lab import __version__
from voidbox_lab.cli import (
    bench,
    control,
    cp,
    daemon,
    dashboard,
    doctor,
    exec_,
    image,
    logs,
    runs,
    shell,
    show,
    template,
    validate,
    volume,
    worker,
)
from voidbox_lab.cli import (
    run as run_,
)
from voidbox_lab.cli.output import EXIT, complain, json_mode, out, quiet_stdout
from voidbox_lab.errors import Cancelled, UserError, VoidboxError

# typer carries a click of its own, or uses the installed one, by version; both hang usage errors below this.
UsageTrouble: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""What the state of a disk does to any command; not a bug, so not a traceback."""


EPILOGUE = (
    "Exit codes: 0 success, 1 an agent or command failed, 2 what was asked cannot be done as asked, 3 the host's "
    "side failed, 4 a limit was hit, 130 cancelled. exec and shell give the command's own code, 128 + N after "
    "signal N, 124 after a time-out, 125 for a failure of ours, 126 and 127 for a program that cannot be executed "
    "or found."
)


class _Commands(TyperGroup):
    """Ctrl-C as `Abort`: typer makes it exit code 130, which a command in a box may have as well.

    And a reader that has gone is no error.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise Abort from e
        except BrokenPipeError:
            # Whoever read us (head, less) has gone; that is its right. Here, for typer would make it an error.
            quiet_stdout()
            return 0


app = typer.Typer(
    name="voidbox",
    cls=_Commands,
    help="AI agents in hardware-isolated micro-VMs.",
    epilog=EPILOGUE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_.run)
app.command("validate")(validate.validate)
app.command("exec", context_settings={"allow_interspersed_args": False})(exec_.exec_)
app.command("shell", cls=shell.ShellCommand)(shell.shell)
app.command("doctor")(doctor.doctor)
app.add_typer(runs.app, name="runs")
app.command("show")(show.show)
app.command("cp")(cp.cp)
app.command("logs")(logs.logs)
app.command("cancel")(control.cancel)
app.command("pause")(control.pause)
app.command("resume")(control.resume)
app.command("gc")(daemon.gc)
app.command("bench")(bench.bench)
app.command("worker")(worker.worker)
app.command("dashboard")(dashboard.dashboard)
app.add_typer(image.app, name="image")
app.add_typer(template.app, name="template")
app.add_typer(volume.app, name="volume")
app.add_typer(daemon.app, name="daemon")


def _version(value: bool) -> None:
    if value:
        out.print(f"voidbox-lab {__version__}")
        raise Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def run(argv: list[str]) -> int:
    """Run the command line `argv` (without the program's name); the exit code.

    Every `VoidboxError` becomes its one sentence on standard error, or with ``--json`` one JSON object; only a bug
    shows a traceback.
    """
    json_mode(False)
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv, prog_name="voidbox", standalone_mode=False)
    except VoidboxError as e:
        return complain(e)
    except UsageTrouble as e:
        # It may come before the option was seen.
        if json_mode("--json" in argv[: argv.index("--") if "--" in argv else None]):
            return complain(UserError(e.format_message(), cause="usage"))  # type: ignore[attr-defined]
        e.show()  # type: ignore[attr-defined]
        return EXIT["user"]
    except (KeyboardInterrupt, Abort):
        return complain(Cancelled("Stopped by Ctrl-C.", cause="interrupted"))
    except OSError as e:
        if e.filename is None or e.errno not in DISK:
            raise
        return complain(
            UserError(
                f"{e.filename} cannot be used ({e.strerror}); make room or make it writable, or set VOIDBOX_HOME."
            )
        )
    return int(code or 0)
