"""The lane as a command; ``scripts/test-kvm`` runs it after having installed what it needs."""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voidbox_lab.errors import VoidboxError
from voidbox_lab.settings import Settings

from .outer import boot
from .payload import work_disk
from .root import LaneError, outer_root
from .verdict import Verdict

_STALE_S = 3600.0
"""A run's directory older than this was left by a killed run; scripts/test-kvm is bounded by less."""


def main() -> int:
    """Run the lane; 0 only if its verdict is good."""
    parser = argparse.ArgumentParser(prog="scripts/test-kvm", description=__doc__)
    parser.add_argument(
        "--limit", type=float, default=480.0, metavar="S", help="bound on the outer VM's life (480)"
    )
    parser.add_argument("--silence", type=float, default=240.0, metavar="S", help="bound on its silence (240)")
    options = parser.parse_args()
    # So that `finally` ends the VM when CI or a closed terminal ends us.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        verdict = _lane(options.limit, options.silence)
    except (LaneError, VoidboxError) as error:
        print(f"scripts/test-kvm: {error}", file=sys.stderr)
        return 1
    print(f"scripts/test-kvm: {'passed' if verdict.ok else 'FAILED'}; {verdict.reason}", file=sys.stderr)
    return 0 if verdict.ok else 1


def _lane(limit_s: float, silence_s: float) -> Verdict:
    start = time.monotonic()
    lane_cache = (settings := Settings.from_env().prepare()).cache / "kvm-lane"
    lane_cache.mkdir(exist_ok=True)
    for left in lane_cache.glob("run-*"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    with _phase("outer root"):
        root = outer_root(lane_cache)
    with tempfile.TemporaryDirectory(dir=lane_cache, prefix="run-") as place:
        with _phase(f"work disk for Python {root.python}"):
            disk = work_disk(Path(place), settings, python=root.python)
        with _phase("outer VM"):
            booted = time.monotonic()
            verdict = boot(
                root,
                disk,
                limit_s=limit_s,
                silence_s=silence_s,
                show=lambda line: print(f"{time.monotonic() - booted:7.1f} | {line}", flush=True),
            )
    print(
        f"==> {verdict.passed} passed inside real KVM, whole lane {time.monotonic() - start:.1f} s",
        file=sys.stderr,
    )
    return verdict


@contextmanager
def _phase(name: str) -> Iterator[None]:
    start, used = time.monotonic(), _cpu_of_children()
    print(f"==> {name}", file=sys.stderr, flush=True)
    yield
    # Far less processor than time: this machine was busy with something else.
    cpu = _cpu_of_children() - used
    print(f"==> {name}: {time.monotonic() - start:.1f} s ({cpu:.1f} s processor)", file=sys.stderr, flush=True)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


sys.exit(main())
