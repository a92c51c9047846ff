"""``voidbox image``: build, list, verify and prune guest images. Works without the daemon: images are files."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from voidbox_lab import images
from voidbox_lab.cli.output import ago, err, out, print_json, size
from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Guest images: build, list, verify, prune.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Which recipe.")] = "default",
    refresh: Annotated[bool, typer.Option(help="Plan package versions anew instead of the pinned ones.")] = False,
    json: Json = False,
) -> None:
    """Build an image, or what of it is missing, from distribution packages; no root needed."""
    began = time.monotonic()
    image = images.build(Settings.from_env().prepare(), name, _reporter(), refresh=refresh)
    if json:
        print_json(_describe(image))
    else:
        out.print(f"image {image.name} {image.digest[:19]} ready in {ago(time.monotonic() - began)}")


@app.command("list")
def list_(json: Json = False) -> None:
    """The images in the cache."""
    found = images.list_images(Settings.from_env())
    if json:
        print_json([_describe(image) for image in found])
        return
    if not found:
        out.print("no images; run `voidbox image build`")
    for image in found:
        total = sum(layer.size for layer in image.layers)
        out.print(f"{image.name}  {image.digest[:19]}  kernel {image.kernel_release}  layers {size(total)}")


@app.command()
def verify(name: Annotated[str, typer.Argument(help="Which image.")] = "default") -> None:
    """Read every byte of an image and compare digests."""
    settings = Settings.from_env()
    image = images.resolve(settings, name)
    bad = images.verify(settings, image)
    if bad:
        raise ProviderError(
            f"Image {name!r} is damaged ({', '.join(bad)}); run `voidbox image prune --all` and build it again.",
            cause="image-damaged",
        )
    out.print(f"image {image.name} {image.digest[:19]} is what its digests say")


@app.command()
def prune(
    everything: Annotated[bool, typer.Option("--all", help="Current images and package downloads too.")] = False,
) -> None:
    """Remove what no current image uses."""
    out.print(f"freed {size(images.prune(Settings.from_env().prepare(), everything=everything))}")


def _describe(image: images.Image) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.digest,
        "kernel_release": image.kernel_release,
        "layers": [{"name": x.name, "digest": x.digest, "size": x.size} for x in image.layers],
    }


def _reporter() -> images.Report:
    """A progress bar on a terminal; elsewhere one line per step on standard error."""
    if not err.is_terminal:
        seen: set[str] = set()

        def line(report: images.Progress) -> None:
            if report.message not in seen:
                seen.add(report.message)
                err.print(report.message, markup=False)

        return line
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    task = progress.add_task("Looking", total=None)
    progress.start()

    def bar(report: images.Progress) -> None:
        progress.update(task, description=report.message, completed=report.done or 0, total=report.total)
        if report.step == "done":
            progress.stop()

    return bar
