"""Paths as another thread sees them: what /proc/self and all that leads there is to it, and not to who looks."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.resources import data_dir

sys.path.append(str(data_dir("guest")))
try:
    guest = importlib.import_module("voidbox_guest.lookup")
finally:
    sys.path.pop()


@contextmanager
def asking(directory: Path) -> Iterator[int]:
    """A process in `directory`; standard input is its own program."""
    with (
        Path("/bin/sleep").open("rb") as program,
        subprocess.Popen(["/bin/sleep", "60"], cwd=directory, stdin=program) as child,
    ):
        try:
            yield child.pid
        finally:
            child.kill()


def found(view: Any, path: str, directory: int | None = None) -> str:
    """Where `path` leads."""
    fd = view.locate(path, directory)
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    finally:
        os.close(fd)


def test_proc_self_is_the_callers(tmp_path: Path) -> None:
    """By each of its names, behind links of the caller's own too, from wherever it is; not that of who looks."""
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "file"
    file.touch()
    (tmp_path / "me").symlink_to("/proc/self")
    (tmp_path / "here").symlink_to("me/cwd/deep")
    (tmp_path / "input").symlink_to("/dev/stdin")
    (tmp_path / "plain").symlink_to("deep/../deep/file")
    sleep = os.path.realpath("/bin/sleep")
    with asking(tmp_path) as pid:
        view = guest.View(pid)
        for path in (
            *("/proc/self/exe", "/proc/thread-self/exe", "/dev/fd/0", "/dev/stdin", "input", "me/fd/0"),
            *(f"{tmp_path}/me/exe", "/proc/self/../thread-self/exe", f"/proc/{pid}/root/proc/self/exe"),
        ):
            assert found(view, path) == sleep, path
        for path in ("/proc/self/cwd/deep/file", "here/file", "plain", f"{tmp_path}/plain", "./here/..//plain"):
            assert found(view, path) == str(file), path
        assert found(view, "", 0) == sleep
        with pytest.raises(NotADirectoryError):
            view.locate("file", 0)
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        view.locate("/proc/self/exe")


def test_a_thread_with_a_directory_of_its_own(tmp_path: Path) -> None:
    """unshare(CLONE_FS): relative paths are the thread's, /proc/self the process's."""
    known, done = threading.Event(), threading.Event()
    tids = []

    def wait() -> None:
        assert ctypes.CDLL(None).unshare(0x200) == 0
        os.chdir(tmp_path)
        tids.append(threading.get_native_id())
        known.set()
        done.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        assert known.wait(60)
        view = guest.View(tids[0])
        assert found(view, ".") == found(view, "/proc/thread-self/cwd") == str(tmp_path)
        assert found(view, "/proc/self/cwd") == str(Path.cwd()) != str(tmp_path)
    finally:
        done.set()
        thread.join()


def test_what_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    """Absence, loops, names that are too long, and ways that are long enough to keep PID 1 from its work."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "absent").symlink_to("/proc/self/cwd/absent")
    with asking(tmp_path) as pid:
        view = guest.View(pid)
        assert found(view, "./" * 2047) == str(tmp_path)
        for path, error in {
            "no": errno.ENOENT,
            "/proc/self/cwd/no": errno.ENOENT,
            "/proc/self/fd/77": errno.ENOENT,
            "loop": errno.ELOOP,
            "absent": errno.ELOOP,
            "/proc/self/cwd/" + "x/../" * 800: errno.ENOENT,
            "/proc/self/root/" + "usr/../" * 400: errno.ELOOP,
            "x" * 300: errno.ENAMETOOLONG,
            "./" * 2048: errno.ENAMETOOLONG,
        }.items():
            with pytest.raises(OSError, match=os.strerror(error)):
                view.locate(path)
