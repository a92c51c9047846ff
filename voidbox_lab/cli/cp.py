"""``voidbox cp``: files that stages left, out of the store into a directory. Nothing goes into a box this way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import Json, out, print_json, visible
from voidbox_lab.cli.which import connected, stage_of, whole_id
from voidbox_lab.errors import UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.spec import InputFile

MAX_NAMED = 8


def cp(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN/STAGE[:PATH]",
            help="A file or a directory that the stage left in /workspace/output; without a path, all of it.",
            show_default=False,
            autocompletion=complete.stage_files,
        ),
    ],
    to: Annotated[
        Path,
        typer.Argument(metavar="DEST", help="A file's new name, or a directory.", show_default=False),
    ],
    json: Json = False,
) -> None:
    """Copy what a stage left in /workspace/output to this machine.

    Of a directory, all that is below it goes below DEST, which is made if need be; what is there under such a name
    is replaced.
    """
    target, _, path = source.partition(":")
    run, slash, stage = target.partition("/")
    if not (run and slash and stage):
        raise UserError(f"{source!r} is not RUN/STAGE:PATH; `voidbox runs` names the runs.")
    with connected() as client:
        record = client.run(whole_id(client, run))
        files = stage_of(record, stage).files
        wanted = chosen(files, path.strip("/"), to, f"{record.id}/{stage}")
        for name, place in wanted.items():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UserError(f"{place.parent} cannot be made ({e.strerror}); choose another place.") from e
            client.fetch(files[name].digest, place)
    told = [{"path": n, "to": str(p), "size": files[n].size, "digest": files[n].digest} for n, p in wanted.items()]
    if json:
        print_json(told)
        return
    for name, place in wanted.items():
        out.print(f"{visible(str(place))}  {size(files[name].size)}", markup=False, highlight=False)


def chosen(files: Mapping[str, InputFile], path: str, to: Path, where: str) -> dict[str, Path]:
    """Of `files` those at or below `path`, and where each of them goes.

    Raises:
        UserError: there is none; or a directory is to become a file.
    """
    if path in files:
        return {path: to / PurePosixPath(path).name if to.is_dir() else to}
    below = f"{path}/" if path else ""
    found = {name: to.joinpath(*name.removeprefix(below).split("/")) for name in files if name.startswith(below)}
    if not found:
        names = ", ".join(visible(n) for n in list(files)[:MAX_NAMED]) + (", …" if len(files) > MAX_NAMED else "")
        said = f"it left {names}" if files else "it left no files in /workspace/output"
        raise UserError(f"There is no {visible(path) or 'file'!r} of {where}; {said}.", cause="no-file")
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file, and {len(found)} files are to go there; name a directory.")
    return found
