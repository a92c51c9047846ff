"""Runs the host's tools that images and volumes are made with, and says in one sentence what is missing.

Every run has a bound, a fixed locale and no terminal; a tool that fails becomes a `ProviderError` that
carries the tool's own last lines.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio.from_thread

from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable

PACKAGES = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "npm": "npm",
    "skopeo": "skopeo",
    "sqfstar": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "zstd": "zstd",
}
"""Host tool to the Debian package that brings it."""

IMAGE = "an image is built"
"""What tools are run for unless told otherwise, as messages say it."""

POLL_S = 0.2
"""How soon a cancelled caller is noticed."""

_ALSO = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Searched after PATH: a user's often lacks the places where mkfs.ext4 and debugfs are."""


def find(tool: str, purpose: str = IMAGE) -> str:
    """Absolute path of `tool`.

    Raises:
        Unavailable: it is not installed; the message names the package.
    """
    path = shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_ALSO)))
    if path is None:
        package = PACKAGES.get(tool, tool)
        raise Unavailable(
            f"{purpose[0].upper()}{purpose[1:]} with `{tool}`, which is not installed; "
            f"run `sudo apt-get install {package}`.",
            cause="host-tool-missing",
        )
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment, made predictable: C locale, UTC, no questions asked."""
    # SOURCE_DATE_EPOCH would make mksquashfs refuse our own explicit times.
    kept = {k: v for k, v in os.environ.items() if k not in {"SOURCE_DATE_EPOCH", "MKE2FS_CONFIG"}}
    fixed = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive"}
    return kept | fixed | dict(extra or {})


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    purpose: str = IMAGE,
    watch: Callable[[], None] | None = None,
) -> bytes:
    """Standard output of ``argv[0]`` (a name in `PACKAGES`, or a path), run to its end.

    Args:
        watch: called every `POLL_S` while it runs; what that raises ends it.

    Raises:
        Unavailable: the tool is not installed.
        LimitExceeded: it ran longer than `timeout_s` seconds and was killed.
        ProviderError: it exited with a status other than 0; the message ends with its last lines.

    A cancelled caller (see `check_cancelled`) ends it at once.
    """
    program = str(argv[0])
    command = [program if "/" in program else find(program, purpose), *map(str, argv[1:])]
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        # A file, not a pipe: `communicate` does not go on writing after its time-out.
        given = stack.enter_context(tempfile.TemporaryFile())
        given.write(stdin)
        given.seek(0)
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=environment(env),
                start_new_session=True,
            )
        )
        try:
            while True:
                check_cancelled()
                if watch is not None:
                    watch()
                try:
                    printed, said = process.communicate(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise too_slow(program, timeout_s, purpose) from None
        except BaseException:
            # With all it started: npm is a shell, a node and whatever that runs.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise failed(program, process.returncode, said or printed, purpose)
    return printed


def check_cancelled() -> None:
    """In a worker thread of anyio's whose caller was cancelled: raise that cancellation. Elsewhere: nothing."""
    with contextlib.suppress(RuntimeError):
        anyio.from_thread.check_cancelled()


def failed(program: str, status: int, output: bytes, purpose: str = IMAGE) -> ProviderError:
    """The error for `program` having exited with `status`, with the end of what it said."""
    said = " / ".join(output.decode(errors="replace").strip().splitlines()[-4:]) or "nothing was printed"
    return ProviderError(
        f"`{Path(program).name}` failed with status {status} as {purpose}: {said[-800:]}",
        cause="host-tool-failed",
    )


def last_words(error: ProviderError) -> str:
    """What the tool of a `failed` said, without our own sentence around it."""
    return error.message.partition(f" as {IMAGE}: ")[2] or error.message


def too_slow(program: str, timeout_s: float, purpose: str = IMAGE) -> LimitExceeded:
    """The error for `program` having been killed at its time bound."""
    return LimitExceeded(
        f"`{Path(program).name}` did not end within {timeout_s:g} s as {purpose}; try again.",
        limit="time",
        value=timeout_s,
        unit="s",
    )
