"""``voidbox validate FILE…``: what spec files declare, or what is wrong with them. No daemon is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from voidbox_lab.cli.output import EXIT, Json, err, out, print_json
from voidbox_lab.errors import UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.spec import Stage, VoidBoxSpec, in_words
from voidbox_lab.spec.files import SpecFile, SpecFileError, read
from voidbox_lab.widgets.text import one_line

MAX_SHOWN = 40
"""Stages and files told of one by one."""


def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Spec files.", show_default=False)
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch remote skills that are not here yet, to look at them as well.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of spec files instead.")] = False,
    json: Json = False,
) -> None:
    """Say what spec files declare, or what is wrong with them, line by line. Exit code 2 if anything is.

    No network is used unless --fetch is given.
    """
    if schema:
        from voidbox_lab.spec.files.schema import schema as made

        print_json(made())
        return
    if not files:
        raise UserError("There is nothing to validate; name spec files, or give --schema.")
    from voidbox_lab import skills

    found: list[dict[str, Any]] = []
    for file in files:
        try:
            spec = read(file, fetch=skills.fetch if fetch else skills.cached)
        except UserError as e:
            found.append({"file": str(file), "valid": False, "errors": _errors(e)})
            if not json:
                for line in e.lines if isinstance(e, SpecFileError) else [f"{file}: {e.message}"]:
                    err.print(line, markup=False)
        else:
            found.append(described(spec))
            if not json:
                _show(spec)
    if json:
        print_json(found)
    if not all(one["valid"] for one in found):
        raise typer.Exit(EXIT["user"])


def _errors(error: UserError) -> list[dict[str, Any]]:
    if not isinstance(error, SpecFileError):
        return [{"line": None, "column": None, "field": "", "message": error.message}]
    return [{"line": p.line, "column": p.column, "field": p.field, "message": p.message} for p in error.problems]


def described(spec: SpecFile) -> dict[str, Any]:
    """A spec file as plain data: its kind, and the run that it declares with that run's digest."""
    run = spec.run
    return {
        "file": str(spec.path),
        "valid": True,
        "kind": spec.written.kind,
        "name": spec.written.name,
        "stages": [_described(stage) for stage in run.stages] if run else [],
        "files": sorted(str(source) for source in spec.files.values() if isinstance(source, Path)),
        "unfetched": [str(ref) for ref in spec.unfetched],
        "digest": run.digest if run else None,
        "run": run.model_dump(mode="json") if run else None,
    }


def _described(stage: Stage) -> dict[str, Any]:
    box = stage.box
    return {
        "name": box.name,
        "needs": list(stage.needs),
        "model": str(box.model) if box.model else None,
        "command": list(box.command) if box.command else None,
        "image": box.image,
        "skills": [{"name": skill.name, "kind": skill.kind} for skill in box.skills],
        "policy": {"network": box.policy.network, "loosened": list(box.loosened)},
    }


def _show(spec: SpecFile) -> None:
    written, run = spec.written, spec.run
    name = f" {written.name}" if written.name else ""
    stages = run.stages if run else ()
    count = f"{len(stages)} stage{'' if len(stages) == 1 else 's'}" if run else "no command"
    if spec.unfetched:
        count = "not all of its skills are here; --fetch gets them"
    out.print(f"{spec.path}: {written.kind}{name}, {count}", markup=False)
    width = max((len(s.box.name) for s in stages[:MAX_SHOWN]), default=0)
    for stage in stages[:MAX_SHOWN]:
        box = stage.box
        what = " ".join(box.command) if box.command else f"{box.agent} on {box.model}"
        after = (
            f", after {', '.join(stage.needs[:8])}{', …' if len(stage.needs) > 8 else ''}" if stage.needs else ""
        )
        out.print(f"  {box.name:{width}}  {one_line(what, 60)}, {box.memory_mb} MB{after}", markup=False)
        for line in _details(box):
            out.print(f"  {'':{width}}  {line}", markup=False)
    if len(stages) > MAX_SHOWN:
        out.print(f"  … and {len(stages) - MAX_SHOWN} more", markup=False)
    for ref in spec.unfetched[:MAX_SHOWN]:
        out.print(f"  takes {ref}", markup=False)
    paths = sorted({source for source in spec.files.values() if isinstance(source, Path)})
    for path in paths[:MAX_SHOWN]:
        out.print(f"  takes {path} ({size(path.stat().st_size)})", markup=False)


def _details(box: VoidBoxSpec) -> Iterator[str]:
    """What else there is to say of a stage: nothing of one with the defaults."""
    if box.image != "default":
        yield f"on {box.image}"
    if box.skills:
        yield "skills: " + one_line(", ".join(map(in_words, box.skills)), 400)
    for mount in box.mounts:
        yield f"mount {mount}"
    if box.policy.egress:
        yield one_line(f"egress to {', '.join(box.policy.egress)}", 400)
    if box.loosened:
        yield one_line(f"looser than the default policy: {', '.join(box.loosened)}", 400)
