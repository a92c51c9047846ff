"""What subcommands share in speaking to a terminal: one console each way, JSON, exit codes, progress."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from voidbox_lab.errors import TroubleKind, VoidboxError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

EXIT: dict[TroubleKind, int] = {"command": 1, "user": 2, "provider": 3, "limit": 4, "cancelled": 130}


def print_json(value: Any) -> None:
    """`value` as one JSON document on standard output, plain even on a terminal."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def complain(error: VoidboxError) -> int:
    """Print the error's sentence on standard error; the exit code for its kind."""
    label = error.kind if error.kind == "cancelled" else f"{error.kind} error"
    err.print(f"[bold red]{label}:[/] {escape(error.message)}")
    return EXIT[error.kind]


def ago(seconds: float | None) -> str:
    """A duration for people: ``0.3 s``, ``41 s``, ``2 min 5 s``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def dollars(cost: float | None) -> str:
    """A cost for people; None is *unpriced*, never nothing."""
    return "unpriced" if cost is None else f"${cost:.4f}"


def size(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
