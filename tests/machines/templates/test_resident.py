"""Templates in memory: shared by processes, checked when loaded and when used, gone with their last user."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines import sweeping
from voidbox_lab.machines.sparse import copy_sparse
from voidbox_lab.machines.templates import pages, resident
from voidbox_lab.machines.templates.pages import Damaged
from voidbox_lab.machines.templates.resident import NoRoom, check_room, load, remove_unused
from voidbox_lab.machines.templates.store import Template, TemplateStore
from voidbox_lab.settings import Settings

from .conftest import Begin, heard


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    """What stands for the tmpfs, private like the real one."""
    path = tmp_path / "shm"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(autouse=True)
def _no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "MARGIN", 0)


def left(shm: Path) -> list[str]:
    """What lies in memory, lock files apart."""
    return sorted(path.name for path in (shm / "t").glob("*") if path.suffix not in {".load", ".use"})


def content(loaded: resident.Resident, name: str) -> bytes:
    """All of one file, by a descriptor as clones get them."""
    with os.fdopen(loaded.open(name), "rb") as file:
        return file.read()


def test_loaded_and_let_go(store: TemplateStore, template: Template, saved: Path, shm: Path) -> None:
    """The three files as saved, private to the user; closing twice is fine."""
    os.utime(template.path / "template.json", (1000, 1000))
    loaded = load(store, template, shm)
    assert loaded.intact
    assert left(shm) == [template.digest]
    for name in ("memory", "scratch", "state"):
        assert content(loaded, name) == (saved / name).read_bytes()
        # Writable: QEMU opens a file so even where it maps it privately, and a root without capabilities may not.
        assert (loaded.path / name).stat().st_mode & 0o777 == 0o600
    assert loaded.path.stat().st_mode & 0o777 == 0o700
    assert (loaded.path / "memory").stat().st_blocks < (1 << 20) // 512, "the holes were filled"
    assert store.all()[0].used > 1000, "a load is a use"
    loaded.close()
    loaded.close()
    assert not loaded.intact
    assert left(shm) == []


def test_closed_is_closed(store: TemplateStore, template: Template, shm: Path) -> None:
    """The descriptor's number may be another file's by now: that one is never handed out."""
    loaded = load(store, template, shm)
    loaded.close()
    decoys = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(4)]
    try:
        with pytest.raises(ProviderError) as caught:
            loaded.open("memory")
        assert caught.value.cause == "shm"
    finally:
        for fd in decoys:
            os.close(fd)


def test_no_descriptor_is_lost(store: TemplateStore, template: Template, shm: Path) -> None:
    """Neither by loading nor by refusing."""
    places = (str(store.root), str(shm))
    with_one = load(store, template, shm)
    assert open_below(*places)
    with_one.close()
    for _ in range(3):
        load(store, template, shm).close()
    broken(template, "memory.pages")
    for _ in range(3):
        with pytest.raises(Damaged):
            load(store, template, shm)
    assert open_below(*places) == []


def open_below(*places: str) -> list[str]:
    """Files there that this process has open."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            links.append(str(fd.readlink()))
    return [link for link in links if link.startswith(places)]


def test_two_processes_share_it(store: TemplateStore, template: Template, shm: Path, begin: Begin) -> None:
    """The second finds what the first loaded; the last to close removes it, in whatever order."""
    first, second = (begin("load", store.root, template.digest, shm) for _ in range(2))
    inodes = {heard(first), heard(second)}
    loaded = load(store, template, shm)
    assert inodes == {str(loaded.path.stat().st_ino)}
    finish(first)
    assert loaded.intact
    loaded.close()
    assert left(shm) == [template.digest]
    finish(second)
    assert left(shm) == []


def finish(process: subprocess.Popen[str]) -> None:
    """Have `process` close what it loaded."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert heard(process) == "closed"


def test_the_last_one_waits_a_moment(store: TemplateStore, template: Template, shm: Path) -> None:
    """Two that close together hold each other's lock for an instant; one of them removes it all the same."""
    loaded = load(store, template, shm)
    fd = os.open(loaded.path.with_suffix(".load"), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    timer = threading.Timer(0.1, os.close, [fd])
    timer.start()
    loaded.close()
    timer.join()
    assert left(shm) == []


def sweep(shm: Path) -> None:
    """`Hypervisor.sweep` without a libvirt that has domains."""

    class Empty:
        def listAllDomains(self, _flags: int) -> list[object]:  # noqa: N802 - libvirt's name
            return []

    home = shm.parent
    sweeping.sweep(Empty(), Settings(cache=home / "c", data=home / "d", runtime=home / "r", shm=shm))


@pytest.mark.parametrize("remove", [remove_unused, sweep])
def test_kill_9_of_the_only_user(
    store: TemplateStore, template: Template, shm: Path, begin: Begin, remove: Callable[[Path], None]
) -> None:
    """It stays until somebody looks; a living user keeps it."""
    process = begin("load", store.root, template.digest, shm)
    assert heard(process)
    remove(shm)
    assert left(shm) == [template.digest]
    process.kill()
    process.wait()
    assert left(shm) == [template.digest]
    remove(shm)
    assert left(shm) == []
    with_again = load(store, template, shm)
    assert with_again.intact
    with_again.close()


@pytest.mark.parametrize("remove", [remove_unused, sweep])
def test_kill_9_while_it_loads(
    store: TemplateStore, template: Template, shm: Path, begin: Begin, remove: Callable[[Path], None]
) -> None:
    """Half a template is nobody's: removed by whoever looks, and never taken for a whole one."""
    process = begin("loading", store.root, template.digest, shm)
    assert heard(process) == "middle"
    remove(shm)
    assert left(shm) == [template.digest], "its loader lives"
    process.kill()
    process.wait()
    remove(shm)
    assert left(shm) == []


def test_half_a_load_is_loaded_again(
    store: TemplateStore, template: Template, shm: Path, begin: Begin, saved: Path
) -> None:
    """Without a sweep in between."""
    process = begin("loading", store.root, template.digest, shm)
    assert heard(process) == "middle"
    process.kill()
    process.wait()
    loaded = load(store, template, shm)
    assert content(loaded, "scratch") == (saved / "scratch").read_bytes()
    loaded.close()
    assert left(shm) == []


def broken(template: Template, name: str) -> None:
    """Flip one byte in the middle of a template's file."""
    with (template.path / name).open("r+b") as file:
        file.seek((template.path / name).stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize("name", ["memory.pages", "scratch.pages", "state"])
def test_a_damaged_source(store: TemplateStore, template: Template, shm: Path, name: str) -> None:
    """A flipped byte of any file: told as damage, and nothing of it stays in memory."""
    broken(template, name)
    assert store.find(template.digest) == template, "sizes are right"
    with pytest.raises(Damaged) as caught:
        load(store, template, shm)
    assert caught.value.cause == "template-damaged"
    assert left(shm) == []


def test_a_source_that_went(store: TemplateStore, template: Template, shm: Path) -> None:
    """Discarded by another process between finding and loading: damaged, so that it is made again."""
    store.discard(template.digest)
    with pytest.raises(Damaged):
        load(store, template, shm)
    assert left(shm) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_a_full_tmpfs(
    store: TemplateStore, template: Template, shm: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Found out in the middle: a sentence with the cause, nothing left, and the next load works."""
    calls = 0

    def pwrite(*_: object) -> int:
        nonlocal calls
        calls += 1
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(pages.os, "pwrite", pwrite)
        with pytest.raises(NoRoom) as caught:
            load(store, template, shm)
    assert calls == 1
    assert (caught.value.cause, str(shm) in caught.value.message) == ("shm-full", True)
    assert left(shm) == []
    load(store, template, shm).close()


def test_room_is_asked_for_first(
    store: TemplateStore, template: Template, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less than the margin free, nothing is written at all."""
    check_room(shm, 0)
    monkeypatch.setattr(resident, "MARGIN", 1 << 60)
    monkeypatch.setattr(pages, "unpack", lambda *_: pytest.fail("it was written"))
    for attempt in (lambda: check_room(shm, 0), lambda: load(store, template, shm)):
        with pytest.raises(NoRoom, match="make it larger") as caught:
            attempt()
        assert caught.value.cause == "shm-full"
    assert left(shm) == []


def test_no_tmpfs_at_all(store: TemplateStore, template: Template, tmp_path: Path) -> None:
    """Something else lies under its name, or it went with the login session: typed."""
    with pytest.raises(ProviderError) as caught:
        check_room(tmp_path / "gone", 0)
    assert caught.value.cause == "shm"
    (tmp_path / "file").touch()
    with pytest.raises(ProviderError) as caught:
        load(store, template, tmp_path / "file")
    assert caught.value.cause == "shm"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real tmpfs of 32 KiB, which holds no template of these tests."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = tmp_path / "small"
    path.mkdir(mode=0o700)
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, b"size=32k,mode=0700"):
        pytest.skip(
            f"a tmpfs cannot be mounted here ({os.strerror(ctypes.get_errno())}); test_a_full_tmpfs injects it"
        )
    yield path
    libc.umount2(bytes(path), 2)


def test_a_small_tmpfs(
    store: TemplateStore, template: Template, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own refusal, with and without the look ahead."""
    for look in (True, False):
        if not look:
            monkeypatch.setattr(resident, "check_room", lambda *_: None)
        with pytest.raises(NoRoom):
            load(store, template, small)
        assert left(small) == []


def writable(path: Path) -> Path:
    """`path`, for whom it belongs to."""
    path.chmod(0o600)
    return path


CHANGES: dict[str, Callable[[Path], object]] = {
    "memory cut short": lambda path: os.truncate(writable(path / "memory"), 4096),
    "memory longer": lambda path: os.truncate(writable(path / "memory"), 2 << 20),
    "a byte of the memory": lambda path: writable(path / "memory").open("r+b").write(b"x"),
    "a byte of the scratch": lambda path: writable(path / "scratch").open("r+b").write(b"x"),
    "no mark": lambda path: (path / "loaded").unlink(),
    "half a mark": lambda path: os.truncate(path / "loaded", 10),
    "another mark": lambda path: (path / "loaded").write_text("[]"),
    "a mark that lies": lambda path: (path / "loaded").write_text('{"memory": [1, 2, 3]}'),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_is_loaded_anew(
    store: TemplateStore, template: Template, saved: Path, shm: Path, change: Callable[[Path], object]
) -> None:
    """Who has it open notices; whoever loads next gets what is on disk, from any process."""
    loaded = load(store, template, shm)
    time.sleep(0.02)  # the kernel's clock of files ticks every 4 to 10 ms
    change(loaded.path)
    assert not loaded.intact
    again = load(store, template, shm)
    try:
        assert again.intact
        assert not loaded.intact
        for name in ("memory", "scratch", "state"):
            assert content(again, name) == (saved / name).read_bytes()
    finally:
        loaded.close()
        again.close()
    assert left(shm) == []


def test_a_file_in_place_of_another(store: TemplateStore, template: Template, saved: Path, shm: Path) -> None:
    """Who has the old one open has it whole; who loads next does not take the new one."""
    loaded = load(store, template, shm)
    (loaded.path / "state").unlink()
    (loaded.path / "state").write_bytes(b"x" * 10_000)
    assert content(loaded, "state") == (saved / "state").read_bytes()
    again = load(store, template, shm)
    assert content(again, "state") == (saved / "state").read_bytes()
    assert (again.intact, loaded.intact) == (True, False)
    loaded.close()
    again.close()
    assert left(shm) == []


def test_good_without_its_names(
    store: TemplateStore, template: Template, saved: Path, shm: Path, tmp_path: Path
) -> None:
    """Removed under a process that has it open: not intact for the next look, whole for copies under way."""
    loaded = load(store, template, shm)
    for path in loaded.path.iterdir():
        path.unlink()
    loaded.path.rmdir()
    assert not loaded.intact
    for copy in range(2):
        source = loaded.open("memory")
        copy_sparse(source, tmp_path / f"copy{copy}")
        os.close(source)
        assert (tmp_path / f"copy{copy}").read_bytes() == (saved / "memory").read_bytes()
    loaded.close()


def test_descriptors_are_independent(store: TemplateStore, template: Template, saved: Path, shm: Path) -> None:
    """Each begins at the beginning and none can write."""
    loaded = load(store, template, shm)
    one, other = loaded.open("state"), loaded.open("state")
    try:
        assert os.read(one, 5000) == os.read(other, 5000) == (saved / "state").read_bytes()[:5000]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(one, b"x")
    finally:
        os.close(one)
        os.close(other)
        loaded.close()


def test_the_lock_has_a_bound(
    store: TemplateStore, template: Template, shm: Path, monkeypatch: pytest.MonkeyPatch, begin: Begin
) -> None:
    """Another process that loads and does not get on is named after a while, with the bound."""
    process = begin("loading", store.root, template.digest, shm)
    assert heard(process) == "middle"
    monkeypatch.setattr(resident, "LOCK_TIMEOUT_S", 0.1)
    with pytest.raises(ProviderError, match=r"0\.1 s") as caught:
        load(store, template, shm)
    assert caught.value.cause == "shm"
