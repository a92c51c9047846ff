"""The command tree and the one place where errors become exit codes."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Abort, Exit

from voidbox_lab import __version__
from voidbox_lab.cli import daemon, doctor, exec_, image, notebook, runs
from voidbox_lab.cli.output import EXIT, complain, err, out
from voidbox_lab.errors import VoidboxError

# typer carries a click of its own, or uses the installed one, by version; both hang usage errors below this.
UsageTrouble: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="voidbox",
    help="AI agents in hardware-isolated micro-VMs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(notebook.run)
app.command("exec", context_settings={"ignore_unknown_options": True})(exec_.exec_)
app.command("doctor")(doctor.doctor)
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("cancel")(runs.cancel)
app.command("gc")(daemon.gc)
app.add_typer(image.app, name="image")
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
    return int(code or 0)
