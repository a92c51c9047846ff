"""The command tree and the one place where errors become exit codes."""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer import Abort, Exit
from typer.core import TyperGroup

from voidbox_lab import __version__
from voidbox_lab.cli import bench, daemon, doctor, exec_, image, runs, shell, template, validate, volume
from voidbox_lab.cli import run as run_
from voidbox_lab.cli.output import EXIT, complain, err, out
from voidbox_lab.errors import UserError, VoidboxError

# typer carries a click of its own, or uses the installed one, by version; both hang usage errors below this.
UsageTrouble: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
"""What the state of a disk does to any command; not a bug, so not a traceback."""


class _Commands(TyperGroup):
    """Ctrl-C as `Abort`: typer makes it exit code 130, which a command in a box may have as well."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise Abort from e


app = typer.Typer(
    name="voidbox",
    cls=_Commands,
    help="AI agents in hardware-isolated micro-VMs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_.run)
app.command("validate")(validate.validate)
app.command("exec", context_settings={"allow_interspersed_args": False})(exec_.exec_)
app.command("shell", cls=shell.ShellCommand)(shell.shell)
app.command("doctor")(doctor.doctor)
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("cancel")(runs.cancel)
app.command("gc")(daemon.gc)
app.command("bench")(bench.bench)
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

    Every `VoidboxError` becomes its one sentence on standard error; only a bug shows a traceback.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv, prog_name="voidbox", standalone_mode=False)
    except VoidboxError as e:
        return complain(e)
    except UsageTrouble as e:
        e.show()  # type: ignore[attr-defined]
        return EXIT["user"]
    except (KeyboardInterrupt, Abort):
        err.print("cancelled")
        return EXIT["cancelled"]
    except BrokenPipeError:
        # Whoever read us (head, less) has gone; that is its right.
        return 0
    except OSError as e:
        if e.filename is None or e.errno not in DISK:
            raise
        return complain(
            UserError(
                f"{e.filename} cannot be used ({e.strerror}); make room or make it writable, or set VOIDBOX_HOME."
            )
        )
    return int(code or 0)
