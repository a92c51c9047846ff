"""``voidbox volume``: disks that outlive the boxes that use them. Files, so no daemon is needed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import Json, out, print_json
from voidbox_lab.errors import UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.settings import Settings

if TYPE_CHECKING:
    from voidbox_lab.machines import Volume, Volumes

app = typer.Typer(no_args_is_help=True, help="Volumes, which outlive boxes: list, create, inspect, rm.")

Name = Annotated[
    str,
    typer.Argument(help="Its name: a-z, 0-9, '-' and '_'.", show_default=False, autocompletion=complete.volumes),
]

_UNITS = {"": 1, "m": 1, "mb": 1, "g": 1 << 10, "gb": 1 << 10, "t": 1 << 20, "tb": 1 << 20}


@app.command("list")
def list_(json: Json = False) -> None:
    """All volumes, by name."""
    found = _volumes().all()
    if json:
        print_json([_describe(volume) for volume in found])
        return
    if not found:
        out.print("no volumes; make one with `voidbox volume create NAME --size 1G`")
    width = max((len(volume.facts.name) for volume in found), default=0)
    for volume in found:
        users = volume.users()
        state = f"in use by {'; '.join(map(str, users))}" if users else "free"
        much = f"{size(volume.facts.size_mb << 20)}, {size(volume.used)} on disk"
        out.print(f"{volume.facts.name:{width}}  {much}  {state}", markup=False)


@app.command()
def create(
    name: Name,
    wanted: Annotated[
        str, typer.Option("--size", help="How much fits: MB, or with a unit: 512M, 10G, 1T.")
    ] = "1G",
    json: Json = False,
) -> None:
    """Make an empty volume, which takes room on the disk only as it fills."""
    volume = _volumes().create(name, _megabytes(wanted))
    if json:
        print_json(_describe(volume))
        return
    out.print(
        f"made the volume {name} of {size(volume.facts.size_mb << 20)}; "
        f"use it with `voidbox exec --volume {name}:/data -- CMD`",
        markup=False,
    )


@app.command()
def inspect(name: Name, json: Json = False) -> None:
    """One volume: its size, what it takes of the disk, where it is and who uses it."""
    described = _describe(_volumes().find(name))
    if json:
        print_json(described)
        return
    for key, value in described.items():
        if key != "users":
            out.print(f"{key:8} {value}", markup=False)
    for user in described["users"]:
        how = "reads" if user["read_only"] else "writes"
        out.print(f"{'user':8} box {user['box'] or '(starting)'}, process {user['pid']}, {how}", markup=False)


@app.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=complete.volumes)],
    json: Json = False,
) -> None:
    """Remove volumes with all that is in them; one in use is refused."""
    volumes = _volumes()
    removed = []
    try:
        for name in names:
            volumes.remove(name)
            removed.append(name)
    finally:
        if json:
            print_json({"removed": removed})
        elif removed:
            out.print(f"removed {', '.join(removed)}", markup=False)


def _volumes() -> Volumes:
    from voidbox_lab.machines import Volumes  # opens libvirt's library

    return Volumes(Settings.from_env().prepare())


def _megabytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,7})\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise UserError(f"--size {text!r} is not a size; give MB, or a number with M, G or T, such as 10G.")
    return int(found[1]) * _UNITS[found[2]]


def _describe(volume: Volume) -> dict[str, Any]:
    created = datetime.fromtimestamp(volume.facts.created, UTC).isoformat(timespec="seconds")
    return {
        "name": volume.facts.name,
        "size_mb": volume.facts.size_mb,
        "used": volume.used,
        "created": created,
        "path": str(volume.path),
        "users": [
            {"box": user.box, "pid": user.owner.pid, "read_only": user.read_only} for user in volume.users()
        ],
    }
