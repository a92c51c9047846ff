"""``voidbox template``: the saved machines that boxes are cloned from. Files, so no daemon is needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from voidbox_lab.cli import complete
from voidbox_lab.cli.exec_ import Image
from voidbox_lab.cli.output import Json, ago, out, print_json, working
from voidbox_lab.errors import UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Rootfs

if TYPE_CHECKING:
    from voidbox_lab.machines import Template, TemplateStore

app = typer.Typer(no_args_is_help=True, help="Templates, which boxes are cloned from: list, build, prune.")


@app.command("list")
def list_(json: Json = False) -> None:
    """The templates on disk, the last used first."""
    found = _store().all()
    if json:
        print_json([_describe(template) for template in found])
        return
    if not found:
        out.print("no templates; the first box of a kind makes one")
    for template in found:
        out.print(
            f"{template.digest[:12]}  {_kind(template.key)}  {size(template.size)}  "
            f"used {ago(time.time() - template.used)} ago",
            markup=False,
        )


@app.command()
def build(
    memory: Annotated[int, typer.Option(help="Guest memory in MB.")] = 512,
    vcpus: Annotated[int, typer.Option(help="Processors.")] = 1,
    image: Image = "default",
    agent: Annotated[
        str | None,
        typer.Option(help="The agent CLI that it has as a layer.", autocompletion=complete.agents),
    ] = None,
    json: Json = False,
) -> None:
    """Make the template of such boxes now, so that the first of them starts as quickly as the rest."""
    from voidbox_lab.box import Boxes  # opens libvirt's library
    from voidbox_lab.box.apart import apart

    began = time.monotonic()

    async def make() -> Template:
        with apart(Settings.from_env()) as settings:
            async with Boxes.here(settings) as boxes:
                recipe = await boxes.recipe(memory_mb=memory, vcpus=vcpus, rootfs=Rootfs(image=image, agent=agent))
                return await boxes.templates.build(recipe)

    with working("booting a guest to save"):
        template = anyio.run(make)
    if json:
        print_json(_describe(template))
    else:
        took = ago(time.monotonic() - began)
        out.print(f"template {template.digest[:12]} ready in {took}, {size(template.size)}", markup=False)


@app.command()
def prune(
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    keep_mb: Annotated[
        int | None, typer.Option(help="Megabytes to keep; by default VOIDBOX_TEMPLATES_MB.")
    ] = None,
    json: Json = False,
) -> None:
    """Remove templates, the least recently used first, and what is left of unfinished ones."""
    if keep_mb is not None and keep_mb < 0:
        raise UserError(f"--keep-mb {keep_mb} is below 0; give megabytes to keep.")
    settings = Settings.from_env()
    cap = 0 if everything else settings.templates_mb if keep_mb is None else keep_mb
    removed = _store().prune(cap << 20)
    if json:
        print_json({"removed": [template.digest for template in removed]})
    else:
        out.print(f"freed {size(sum(t.size for t in removed))}, {len(removed)} templates", markup=False)


def _store() -> TemplateStore:
    from voidbox_lab.machines import TemplateStore  # opens libvirt's library

    return TemplateStore(Settings.from_env().prepare().cache / "templates")


def _kind(key: dict[str, Any]) -> str:
    """What is cloned from it; another version may have written other keys, and they are only shown here."""
    known = {name: str(key.get(name, "?")) for name in ("image", "memory_mb", "vcpus", "accelerator", "qemu")}
    image = known["image"].removeprefix("sha256:")[:12]
    return (
        f"image {image}  {known['memory_mb']} MB, {known['vcpus']} vCPU, "
        f"{known['accelerator']}, QEMU {known['qemu']}"
    )


def _describe(template: Template) -> dict[str, Any]:
    return {
        "digest": template.digest,
        "key": template.key,
        "size": template.size,
        "made": template.made,
        "used": template.used,
    }
