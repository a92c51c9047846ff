"""The guest as a template, on a host: the wait for other boot data, the padding, the scrubbing of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.box import birth
from voidbox_lab.box.birth import Birth
from voidbox_lab.box.boot_data import TEMPLATE_BOOT_DATA
from voidbox_lab.resources import data_dir
from voidbox_lab.settings import Settings
from voidbox_lab.wire import protocol as p

_PRELUDE = """
import builtins, os, sys, threading, time
sys.path[:0] = sys.argv[1:3]
from voidbox_guest import boot, kernel, template
import wire.jsonlite
directory = sys.argv[3]
boot_file = directory + "/boot"
said = []
boot.announce = said.append
template.BOOT_DATA = boot.BOOT_DATA = boot_file
def write(data):
    fd = os.open(boot_file, os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, data, 0)
    os.close(fd)
def opening(path, mode="r", _open=open):
    return _open(directory + "/" + path.rpartition("/")[2] if path.startswith("/proc/") else path, mode)
"""


def in_guest(script: str, directory: Path) -> Any:
    """Run `script` as the guest's Python would (-I -S), on the guest's modules; the JSON that it prints."""
    root = Path(__file__).parents[2] / "voidbox_lab"
    command = [sys.executable, "-I", "-S", "-c", _PRELUDE + script, str(data_dir("guest")), str(root)]
    done = subprocess.run([*command, str(directory)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SECRET = "ab" * 32


def padded(**data: object) -> bytes:
    """Boot data as the host writes it."""
    return json.dumps(data).encode().ljust(p.BOOT_DATA_SIZE)


def test_a_template_waits_for_other_boot_data(tmp_path: Path) -> None:
    """It says that it may be saved, sleeps while nothing changes, and wakes with the clone's own data."""
    (tmp_path / "boot").write_bytes(TEMPLATE_BOOT_DATA)
    (tmp_path / "clone").write_bytes(padded(version=1, secret=SECRET, hostname="vb-1"))
    script = """
changed = []
def change():
    time.sleep(0.3)
    changed.append(time.monotonic())
    write(open(directory + "/clone", "rb").read())
threading.Thread(target=change).start()
assert boot.read_boot_data()[0]["template"] is True
data, secret = template.await_clone()
waited = time.monotonic() >= changed[0]
print(wire.jsonlite.dumps({"said": said, "data": data, "secret": secret.hex(), "waited": waited}).decode())
"""
    out = in_guest(script, tmp_path)
    assert out["said"] == [p.TEMPLATE_LINE]
    assert (out["data"], out["secret"]) == ({"version": 1, "hostname": "vb-1"}, SECRET)
    assert out["waited"]


def test_saved_while_it_says_so(tmp_path: Path) -> None:
    """The host is quick: the line may reach it, and the clone wake up, before the guest's write has returned."""
    (tmp_path / "boot").write_bytes(TEMPLATE_BOOT_DATA)
    (tmp_path / "clone").write_bytes(padded(version=1, secret=SECRET, hostname="vb-1"))
    script = """
boot.announce = lambda line: write(open(directory + "/clone", "rb").read())
print(wire.jsonlite.dumps(template.await_clone()[0]).decode())
"""
    assert in_guest(script, tmp_path) == {"version": 1, "hostname": "vb-1"}


def test_saved_in_the_middle_of_a_read(tmp_path: Path) -> None:
    """The first read of a clone may be half its template's: what is not said twice does not count."""
    (tmp_path / "boot").write_bytes(TEMPLATE_BOOT_DATA)
    (tmp_path / "clone").write_bytes(padded(version=1, secret=SECRET, hostname="vb-1"))
    script = """
old, new = boot.BOOT_DATA and open(boot_file, "rb").read(), open(directory + "/clone", "rb").read()
reads = [old, old, old[:40] + new[40:], new[:50] + b"x" * 974]
boot.pread_boot_data = lambda fd: bytearray(reads.pop(0) if reads else new)
print(wire.jsonlite.dumps(template.await_clone()[0]).decode())
"""
    assert in_guest(script, tmp_path) == {"version": 1, "hostname": "vb-1"}


def test_no_read_of_the_boot_data_keeps_the_secret(tmp_path: Path) -> None:
    """Neither the two that agree nor the half one before them: a forked agent inherits what freed memory holds."""
    (tmp_path / "boot").write_bytes(TEMPLATE_BOOT_DATA)
    (tmp_path / "clone").write_bytes(padded(version=1, secret=SECRET, hostname="vb-1"))
    script = """
old, new = open(boot_file, "rb").read(), open(directory + "/clone", "rb").read()
reads, seen = [old, new[:60] + old[60:], new, new], []
def pread(fd):
    seen.append(bytearray(reads.pop(0)))
    return seen[-1]
boot.pread_boot_data = pread
data, secret = template.await_clone()
left = [data.count(b"ab" * 4) for data in seen]
print(wire.jsonlite.dumps({"secret": secret.hex(), "left": left}).decode())
"""
    assert in_guest(script, tmp_path) == {"secret": SECRET, "left": [0, 0, 0, 0]}


@pytest.mark.parametrize("data", [b" " * 1024, b"\0" * 1024, padded(version=2), padded(), b"[1]".ljust(1024)])
def test_boot_data_of_another_kind_is_refused(tmp_path: Path, data: bytes) -> None:
    """A clone without readable boot data ends; it never goes on as its template."""
    (tmp_path / "boot").write_bytes(TEMPLATE_BOOT_DATA)
    (tmp_path / "clone").write_bytes(data)
    script = """
pread, data = boot.pread_boot_data, open(directory + "/clone", "rb").read()
reads = []
def once_then_other(fd):
    reads.append(fd)
    return pread(fd) if len(reads) == 1 else bytearray(data)
boot.pread_boot_data = once_then_other
try:
    print('"' + str(template.await_clone()) + '"')
except Exception as error:
    print('"' + type(error).__name__ + '"')
"""
    assert in_guest(script, tmp_path) in {"WireError", "ValueError"}


@pytest.mark.parametrize("spaces", [0, 1, 500])
def test_padding_is_no_part_of_the_data(tmp_path: Path, spaces: int) -> None:
    """Spaces at the end go, spaces within stay."""
    data = {"version": 1, "secret": SECRET, "hostname": "a b "}
    (tmp_path / "boot").write_bytes(json.dumps(data).encode() + b" " * spaces)
    out = in_guest("print(wire.jsonlite.dumps(boot.read_boot_data()[0]).decode())", tmp_path)
    assert out == {"version": 1, "hostname": "a b "}


def test_a_template_is_told_nothing() -> None:
    """No secret, no identity, no entropy; as long as any clone's data."""
    assert len(TEMPLATE_BOOT_DATA) == p.BOOT_DATA_SIZE
    assert json.loads(TEMPLATE_BOOT_DATA) == {"version": 1, "template": True, "secret": "0" * 64}


@pytest.mark.anyio
@pytest.mark.parametrize("port", [1, 2**32 - 2])
async def test_boot_data_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Whatever a box is told, its boot data is as long as a template's: the guest's kernel learned that once."""

    class FakeTransport:
        def listen(self) -> Any:
            return type("Listener", (), {"port": port})

        async def aclose(self) -> None:
            return None

    async def fake(_settings: Settings, _box_dir: Path) -> Any:
        return FakeTransport()

    monkeypatch.setattr(birth, "_transport", fake)
    settings = Settings(cache=tmp_path, data=tmp_path, runtime=tmp_path / "run", shm=tmp_path / "shm")
    new = Birth(settings, None, None)  # type: ignore[arg-type]  # neither is used before a start
    (tmp_path / "run" / "b" / new.id).mkdir(parents=True)
    await new._open_transport()
    path = tmp_path / "run" / "b" / new.id / "boot.json"
    assert path.stat().st_size == p.BOOT_DATA_SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    data = json.loads(path.read_bytes())
    assert set(data) == {"version", "secret", "hostname", "machine_id", "control_port", "entropy", "time_ns"}
    assert (data["control_port"], data["hostname"]) == (port, new.id)
    assert (len(bytes.fromhex(data["secret"])), len(bytes.fromhex(data["entropy"]))) == (32, 64)


def test_an_identity_of_its_own(tmp_path: Path) -> None:
    """Entropy comes first, before anything could be drawn from the generator; then clock, name and machine-id."""
    script = """
did = []
kernel.add_entropy = lambda entropy: did.append(["entropy", len(entropy)])
boot.clock_settime_ns = lambda clock, ns: did.append(["clock", ns])
boot.sethostname = lambda name: did.append(["name", name])
boot.write_machine_id = lambda text: did.append(["id", text])
boot.identify({"entropy": "00" * 64, "time_ns": 5, "hostname": "vb-1", "machine_id": "f" * 32})
boot.identify({"time_ns": 0, "hostname": "", "machine_id": "", "entropy": ""})
print(wire.jsonlite.dumps({"did": did}).decode())
"""
    expected = [["entropy", 64], ["clock", 5], ["name", "vb-1"], ["id", "f" * 32]]
    assert in_guest(script, tmp_path)["did"] == expected


def test_a_machine_id_in_place_of_another(tmp_path: Path) -> None:
    """A template's is all zeros; a clone's has the same length, so that it costs no new block."""
    script = """
os_open = os.open
os.open = lambda path, *rest: os_open(directory + "/id" if path == "/etc/machine-id" else path, *rest)
seen = []
for text in ("", "0123456789abcdef" * 2, "f" * 40):
    boot.write_machine_id(text)
    os.chmod(directory + "/id", 0o600)  # read-only for all but PID 1, which is root
    seen.append(open(directory + "/id").read())
print(wire.jsonlite.dumps({"seen": seen}).decode())
"""
    seen = in_guest(script, tmp_path)["seen"]
    assert seen == ["0" * 32 + "\n", "0123456789abcdef" * 2 + "\n", "f" * 32 + "\n"]


def test_new_devices_are_looked_for(tmp_path: Path) -> None:
    """One write to the root port's bus; a kernel without that bus is an error, not a box without vsock."""
    (tmp_path / "rescan").write_bytes(b"")
    script = """
template.RESCAN = directory + "/rescan"
template.find_new_devices()
template.RESCAN = directory + "/none/rescan"
try:
    template.find_new_devices()
    failed = False
except OSError:
    failed = True
print(wire.jsonlite.dumps({"failed": failed}).decode())
"""
    assert in_guest(script, tmp_path)["failed"]
    assert (tmp_path / "rescan").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("free_mb", "low_mb", "total_mb", "scrubbed_mb"),
    [(100, 4, 128, 81), (20, 4, 128, 1), (19, 4, 128, 0), (3, 4, 128, 0), (974, 44, 1024, 888)],
)
def test_free_memory_is_scrubbed_but_for_a_margin(
    tmp_path: Path, free_mb: int, low_mb: int, total_mb: int, scrubbed_mb: int
) -> None:
    """All of it at once, touched, private; what the kernel keeps for itself stays, and with little free, all."""
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {total_mb << 10} kB\nMemFree: {free_mb << 10} kB\nHugePages_Free: 0\n"
    )
    (tmp_path / "min_free_kbytes").write_text(f"{low_mb << 10}\n")
    script = """
import contextlib, mmap
asked = []
@contextlib.contextmanager
def fake(fd, size, flags):
    asked.append([fd, size, flags == mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE])
    yield
mmap.mmap = fake
template.open = opening
template.scrub_free_memory()
print(wire.jsonlite.dumps({"asked": asked}).decode())
"""
    expected = [[-1, scrubbed_mb << 20, True]] if scrubbed_mb else []
    assert in_guest(script, tmp_path)["asked"] == expected
