"""``voidbox doctor``: boots a real box and prints what works here, measured; each failure with its fix."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from rich.markup import escape
from typer import Exit

from voidbox_lab.cli.output import Json, ago, err, out, print_json
from voidbox_lab.cli.which import connected
from voidbox_lab.errors import VoidboxError
from voidbox_lab.spec.api import CheckReport, CheckStep, Failed

MARK = {"ok": "[green]ok[/]      ", "warning": "[yellow]warning[/] ", "failed": "[red]failed[/]  "}


def doctor(json: Json = False) -> None:
    """Boot a real box and say what works here. Exit code 0 if a box booted and answered, else 3."""
    steps: list[dict[str, Any]] = []
    ok = False
    try:
        with connected() as client, nullcontext() if json else err.status("starting") as status:
            for event in client.check():
                match event:
                    case CheckStep(state="started", name=name, message=message):
                        if status is not None:
                            status.update(f"{name} … {escape(message)}")
                    case CheckStep():
                        steps.append(event.model_dump(mode="json", exclude={"type"}))
                        if not json:
                            _print(event)
                    case CheckReport(ok=verdict):
                        ok = verdict
                    case Failed(error=error):
                        steps.append(_failure(str(error.get("message")), json=json))
    except VoidboxError as e:
        steps.append(_failure(e.message, json=json))
    if json:
        print_json({"ok": ok, "steps": steps})
    elif ok:
        out.print("[bold]A box booted and answered.[/]")
    raise Exit(0 if ok else 3)


def _failure(message: str, *, json: bool) -> dict[str, Any]:
    step = CheckStep(name="daemon", state="failed", message=message)
    if not json:
        _print(step)
    return step.model_dump(mode="json", exclude={"type"})


def _print(step: CheckStep) -> None:
    took = f"  [dim]{ago(step.seconds)}[/]" if step.seconds is not None else ""
    out.print(f"{MARK[step.state]} {step.name:<12}{escape(step.message)}{took}")
