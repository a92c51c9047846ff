"""What subcommands share in speaking to a terminal: one console each way, JSON, exit codes, waiting.

With ``--json`` standard output has JSON and nothing else, plain even on a terminal: one document, or JSON Lines
where something is followed. An error is then one object in one line on standard error, ``{"error": …}`` with what
`VoidboxError.to_dict` gives, and the exit code is the same as without.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from voidbox_lab.errors import TroubleKind, UserError, VoidboxError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

EXIT: dict[TroubleKind, int] = {"command": 1, "user": 2, "provider": 3, "limit": 4, "cancelled": 130}

# C0 and C1 except tab and newline, bidirectional overrides and isolates (Unicode TR9), which make a line read
# other than it is, and lone surrogates, which no UTF-8 output can carry.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Mode:
    json = False
    """Whether the command that runs was given ``--json``."""


def json_mode(on: bool) -> bool:
    """Note whether errors are to be JSON; also the callback of `Json`, so that it holds from parsing on."""
    _Mode.json = on
    return on


Json = Annotated[bool, typer.Option("--json", help="Print JSON.", callback=json_mode, is_eager=True)]
"""The option of every subcommand that prints anything."""


def print_json(value: Any) -> None:
    """`value` as one JSON document on standard output, plain even on a terminal."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def json_line(value: Any) -> str:
    """`value` as a line of JSON Lines, in ASCII: readers differ in what else they take for line ends."""
    return json.dumps(value, separators=(",", ":"))


def quiet_stdout() -> None:
    """Standard output to nowhere, for a reader that is gone: what is left in buffers fails nothing at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def complain(error: VoidboxError) -> int:
    """Print the error's sentence, or with ``--json`` the error, on standard error; the exit code for its kind."""
    if _Mode.json:
        sys.stderr.write(json_line({"error": error.to_dict()}) + "\n")
        return EXIT[error.kind]
    label = error.kind if error.kind == "cancelled" else f"{error.kind} error"
    err.print(f"[bold red]{label}:[/] {escape(visible(error.message))}")
    return EXIT[error.kind]


def remark(message: str) -> None:
    """A sentence for people on standard error; none with ``--json``."""
    if not _Mode.json:
        err.print(message, markup=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something goes on, and for how long; nothing elsewhere, or with ``--json``."""
    if not err.is_terminal or _Mode.json:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def visible(text: str) -> str:
    """`text` with its control characters written out (``\\x1b``), tabs and newlines excepted.

    Each character by itself, so that no sequence comes together from two pieces. Applied twice it changes nothing.
    """
    return _CONTROLS.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def ago(seconds: float | None) -> str:
    """A duration for people: ``0.3 s``, ``41 s``, ``2 min 5 s``, ``3 h 20 min``, ``12 d``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d"


_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration(text: str, option: str) -> float:
    """Seconds of ``90s``, ``30m``, ``12h``, ``30d`` or ``2w``.

    Raises:
        UserError: it is none of these; `option` says where it was written.
    """
    found = re.fullmatch(r"(\d{1,8}(?:\.\d{1,6})?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise UserError(f"{option} {text!r} is not a duration; give a number and s, m, h, d or w, such as 30d.")
    return float(found[1]) * _UNIT_S[found[2]]


def dollars(cost: float | None) -> str:
    """A cost for people; None is *unpriced*, never nothing."""
    return "unpriced" if cost is None else f"${cost:.4f}"
