"""``voidbox image``: build, list, verify and prune guest images. Works without the daemon: images are files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import Json, ago, err, out, print_json, size, working
from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings

if TYPE_CHECKING:
    from voidbox_lab import images

app = typer.Typer(no_args_is_help=True, help="Guest images: build, list, verify, prune.")

Which = Annotated[str, typer.Argument(help="Which image.", autocompletion=complete.images)]


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Which recipe.", autocompletion=complete.images)] = "default",
    refresh: Annotated[bool, typer.Option(help="Plan package versions anew instead of the pinned ones.")] = False,
    json: Json = False,
) -> None:
    """Build an image, or what of it is missing, from distribution packages; no root needed."""
    from voidbox_lab import images

    began = time.monotonic()
    with _reporter(quiet=json) as report:
        image = images.build(Settings.from_env().prepare(), name, report, refresh=refresh)
    if json:
        print_json(_describe(image))
    else:
        out.print(f"image {image.name} {image.digest[:19]} ready in {ago(time.monotonic() - began)}")


@app.command("list")
def list_(json: Json = False) -> None:
    """The images in the cache."""
    from voidbox_lab import images

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
def verify(name: Which = "default", json: Json = False) -> None:
    """Read every byte of an image and compare digests."""
    from voidbox_lab import images

    settings = Settings.from_env()
    image = images.resolve(settings, name)
    with working("reading every byte"):
        bad = images.verify(settings, image)
    if bad:
        raise ProviderError(
            f"Image {name!r} is damaged ({', '.join(bad)}); run `voidbox image prune --all` and build it again.",
            cause="image-damaged",
        )
    if json:
        print_json(_describe(image) | {"verified": True})
    else:
        out.print(f"image {image.name} {image.digest[:19]} is what its digests say")


@app.command()
def prune(
    everything: Annotated[bool, typer.Option("--all", help="Current images and package downloads too.")] = False,
    json: Json = False,
) -> None:
    """Remove what no current image uses."""
    from voidbox_lab import images

    freed = images.prune(Settings.from_env().prepare(), everything=everything)
    if json:
        print_json({"freed": freed})
    else:
        out.print(f"freed {size(freed)}")


def _describe(image: images.Image) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.digest,
        "kernel_release": image.kernel_release,
        "layers": [{"name": x.name, "digest": x.digest, "size": x.size} for x in image.layers],
    }


@contextmanager
def _reporter(*, quiet: bool) -> Iterator[images.Report]:
    """A progress bar on a terminal; elsewhere one line per step on standard error, or if `quiet` none."""
    if quiet or not err.is_terminal:
        seen: set[str] = set()

        def line(report: images.Progress) -> None:
            if not quiet and report.message not in seen:
                seen.add(report.message)
                err.print(report.message, markup=False)

        yield line
        return
    # Here: it costs every other subcommand its time.
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("Looking", total=None)

        def bar(report: images.Progress) -> None:
            progress.update(task, description=report.message, completed=report.done or 0, total=report.total)

        yield bar
