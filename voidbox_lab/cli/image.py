"""``voidbox image``: build, pull, list, inspect, verify and prune images. Without the daemon: images are files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import Json, ago, duration, err, out, print_json, working
from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.observe.quantities import size
from voidbox_lab.settings import Settings

if TYPE_CHECKING:
    from voidbox_lab import images

app = typer.Typer(no_args_is_help=True, help="Guest images: build, pull, list, inspect, verify, prune.")

Which = Annotated[str, typer.Argument(help="Which image.", autocompletion=complete.images)]


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Which recipe.", autocompletion=complete.images)] = "default",
    package: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="Make the layer of a package for it, such as deb:jq; may be repeated."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option(help="Plan package versions anew instead of the pinned ones; of --package those alone.")
    ] = False,
    json: Json = False,
) -> None:
    """Build an image, or what of it is missing, from distribution packages; no root needed."""
    from voidbox_lab import images

    began = time.monotonic()
    wanted = [_checked(ref) for ref in package or ()]
    settings = Settings.from_env().prepare()
    with _reporter(quiet=json) as report:
        if wanted:
            image = _with_packages(settings, name, wanted, report, refresh=refresh)
        else:
            image = images.build(settings, name, report, refresh=refresh)
    if json:
        print_json(_describe(image))
    else:
        out.print(f"image {image.name} {image.digest[:19]} ready in {ago(time.monotonic() - began)}")


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(metavar="REF", help="An OCI image, such as python:3.12-slim.")],
    json: Json = False,
) -> None:
    """Fetch an OCI image from its registry, or what its tag is by now, for boxes with it as their root."""
    from voidbox_lab import images

    began = time.monotonic()
    with _reporter(quiet=json) as report:
        image = images.pull(Settings.from_env().prepare(), reference, report)
    if json:
        print_json(images.describe(Settings.from_env(), image))
    else:
        out.print(f"image {reference} {image.digest[:19]} ready in {ago(time.monotonic() - began)}", markup=False)


@app.command("list")
def list_(json: Json = False) -> None:
    """The images in the cache: what they are made of, their size, and when a box was last asked of them."""
    from voidbox_lab import images

    settings = Settings.from_env()
    found = [images.describe(settings, image) for image in images.list_images(settings)]
    if json:
        print_json(found)
        return
    if not found:
        out.print("no images; run `voidbox image build`")
    for one in found:
        used = f"used {ago(time.time() - one['last_used'])} ago" if one["current"] else "replaced"
        layers = f"{len(one['layers'])} layers, {size(one['size'])}"
        line = (one["name"], one["digest"][:19], layers, used, one["what"])
        out.print("  ".join(line), markup=False)


@app.command()
def inspect(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|DIGEST|REF",
            help="Which image; an OCI image also by its reference.",
            autocompletion=complete.images,
        ),
    ] = "default",
    json: Json = False,
) -> None:
    """What an image is made of: layers by digest, packages by version, licences, where it came from."""
    from voidbox_lab import images

    settings = Settings.from_env()
    about = images.describe(settings, images.find(settings, name))
    if json:
        print_json(about)
        return
    out.print(f"{about['name']}  {about['digest']}", markup=False)
    out.print(f"  {about['what']}; kernel {about['kernel_release']}", markup=False)
    if about["oci"]:
        out.print(f"  from {about['oci']['reference']}, {about['oci']['digest']}", markup=False)
    for layer in (*about["layers"], *about["mounts"]):
        out.print(f"  {layer['digest'][:19]}  {size(layer['size']):>10}  {layer['name']}", markup=False)
        if "licence" in layer:
            out.print(f"    {layer['licence']}", markup=False)
        if "reference" in layer:
            out.print(f"    {layer['reference']}, {layer['digest_of']}", markup=False)
        for part in layer.get("packages", []):
            for file in part["files"]:
                out.print(f"    {' '.join(str(file[k]) for k in ('name', 'version') if k in file)}", markup=False)
    if about["packages"]:
        out.print(f"  packages: {', '.join(about['packages'])}", markup=False)


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
    everything: Annotated[
        bool, typer.Option("--all", help="Current images, all downloads and fetched skills too.")
    ] = False,
    unused_for: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Also what no box was asked of for so long, as in 30d, 12h."),
    ] = None,
    json: Json = False,
) -> None:
    """Remove what no current image uses."""
    from voidbox_lab import images

    seconds = None if unused_for is None else duration(unused_for, "--unused-for")
    freed = images.prune(Settings.from_env().prepare(), everything=everything, unused_for_s=seconds)
    if json:
        print_json({"freed": freed})
    else:
        out.print(f"freed {size(freed)}")


def _checked(ref: str) -> str:
    from voidbox_lab.spec.packages import check_package

    try:
        return check_package(ref)
    except ValueError as e:
        raise UserError(f"{e}.") from e


def _with_packages(
    settings: Settings, name: str, packages: Sequence[str], report: images.Report, *, refresh: bool
) -> images.Image:
    """The image `name`, built if it is not there, with `packages` as boxes get them."""
    from voidbox_lab import images
    from voidbox_lab.spec import Rootfs
    from voidbox_lab.spec.validate import validated

    rootfs = validated(Rootfs, image=name, packages=sorted(set(packages)))
    try:
        return images.compose(settings, rootfs, report, refresh=refresh)
    except Unavailable as e:
        if e.cause not in {"image-missing", "image-outdated", "image-damaged"}:
            raise
    images.build(settings, name, report)
    return images.compose(settings, rootfs, report, refresh=refresh)


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
