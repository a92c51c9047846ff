"""What the Tab key offers: runs, stages, volumes, images, agents. Starts nothing and never takes long.

A look-up that does not answer within `BOUND_S`, or fails in whatever way, offers nothing: an error message has no
place on a half-typed line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import typer

if TYPE_CHECKING:
    import httpx

BOUND_S = 0.3
"""Seconds of a look-up, besides what the interpreter takes to start."""
MAX_OFFERED = 50
MAX_BYTES = 4 << 20
"""Most that is read of a daemon's answer; records hold their specs."""


def run_ids(incomplete: str) -> list[str]:
    """Ids of the newest runs, and ``@last``."""
    return _bounded(lambda: ["@last", *_runs()], incomplete)


def states(incomplete: str) -> list[str]:
    """States of runs."""
    from voidbox_lab.spec import RunState

    return [state for state in get_args(RunState) if state.startswith(incomplete)]


def stages(ctx: typer.Context, incomplete: str) -> list[str]:
    """Stages of the run that was typed before."""
    # An option that still lacks its value keeps the parser from giving the words before it their names.
    run = str(ctx.params.get("run") or next((word for word in ctx.args if not word.startswith("-")), ""))
    return _bounded(lambda: _stages(run), incomplete) if run else []


def shell_targets(incomplete: str) -> list[str]:
    """``RUN/STAGE`` of what runs."""
    return _bounded(_targets, incomplete)


def stage_files(incomplete: str) -> list[str]:
    """``RUN/STAGE:PATH`` of what the stages of recent runs left."""
    return _bounded(_left, incomplete)


def volumes(incomplete: str) -> list[str]:
    """Volumes by name, from the files."""

    def names() -> Iterable[str]:
        from voidbox_lab.settings import Settings

        # As `voidbox_lab.machines.volumes` lays them out, which itself costs more time than there is.
        places = (Settings.from_env().data / "volumes").glob("*/volume.json")
        return sorted(place.parent.name for place in places if not place.parent.name.startswith("."))

    return _bounded(names, incomplete)


def mounts(incomplete: str) -> list[str]:
    """``NAME:`` of volumes; where the box has it is for the user to say."""
    return [f"{name}:" for name in volumes(incomplete)] if ":" not in incomplete else []


def images(incomplete: str) -> list[str]:
    """Images in the cache."""

    def names() -> Iterable[str]:
        from voidbox_lab.images import list_images
        from voidbox_lab.settings import Settings

        return [image.name for image in list_images(Settings.from_env())]

    return _bounded(names, incomplete)


def agents(incomplete: str) -> list[str]:
    """Agents that come as layers."""

    def names() -> Iterable[str]:
        from voidbox_lab.images import known_agents

        return known_agents()

    return _bounded(names, incomplete)


def _bounded(find: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    """What `find` gives and begins with `incomplete`; nothing if it fails or is late."""
    found: list[str] = []

    def look() -> None:
        try:
            found.extend(name for name in find() if name.startswith(incomplete))
        except Exception:
            found.clear()

    # A daemon thread: one that hangs does not keep the process.
    thread = threading.Thread(target=look, name="voidbox-completion", daemon=True)
    thread.start()
    thread.join(BOUND_S)
    return [] if thread.is_alive() else found[:MAX_OFFERED]


@contextmanager
def _daemon() -> Iterator[httpx.Client]:
    from voidbox_lab.client.way import way
    from voidbox_lab.settings import Settings

    with way(Settings.from_env()).client() as http:
        yield http


def _get(path: str, **params: Any) -> Any:
    """A plain answer of a daemon that runs; the records are not made into models, which takes its time."""
    import json

    end = time.monotonic() + BOUND_S
    with _daemon() as http, http.stream("GET", path, params=params, timeout=BOUND_S) as response:
        response.raise_for_status()
        read = bytearray()
        for chunk in response.iter_bytes():
            read += chunk
            if len(read) > MAX_BYTES or time.monotonic() > end:
                raise TimeoutError
    return json.loads(read)


def _runs() -> list[str]:
    return [str(record["id"]) for record in _get("/v1/runs", limit=MAX_OFFERED)]


def _stages(run: str) -> list[str]:
    from urllib.parse import quote

    if run == "@last":
        newest = _get("/v1/runs", limit=1)
        return [str(name) for name in newest[0]["stages"]] if newest else []
    whole = [full for full in _runs() if full.startswith((run, f"run-{run}"))]
    record = _get(f"/v1/runs/{quote(whole[0] if len(whole) == 1 else run, safe='')}")
    return [str(name) for name in record["stages"]]


def _left() -> list[str]:
    runs = _get("/v1/runs", limit=MAX_OFFERED)
    stages = [(f"{r['id']}/{n}:", s.get("files") or {}) for r in runs for n, s in r["stages"].items()]
    return [f"{stage}{path}" for stage, files in stages for path in files]


def _targets() -> list[str]:
    running = _get("/v1/runs", limit=MAX_OFFERED, state="running")
    return [f"{r['id']}/{n}" for r in running for n, s in r["stages"].items() if s["state"] == "running"]
