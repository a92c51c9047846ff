"""What a running box costs: a command, a request, a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.bench.samples import Figure, Series
from voidbox_lab.bench.stand import Stand
from voidbox_lab.box import Box
from voidbox_lab.errors import ProviderError

ECHO_PORT = 7001
IDLE_S = 20.0
"""Seconds over which an idle box's processor time is counted."""
SIZES = ((1, "1 B"), (64 << 10, "64 kB"), (64 << 20, "64 MB"))
_TRUE = ["/bin/true"]
# posix_spawn and not subprocess: what a command costs at least in this guest, with nothing of ours around it.
_SPAWN = """
import json, os, sys, time
took = []
for n in range(int(sys.argv[1]) + 5):
    began = time.monotonic()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    took.append(time.monotonic() - began)
print(json.dumps(took[5:]))
"""
_ECHO = """
import socket
listener = socket.socket(socket.AF_VSOCK)
listener.bind((socket.VMADDR_CID_ANY, %d))
listener.listen()
print("listening", flush=True)
stream, _ = listener.accept()
while data := stream.recv(65536):
    stream.sendall(data)
"""


async def commands(stand: Stand) -> list[Figure]:
    """`exec` of true beside a spawn timed in that guest; an empty request beside a raw vsock echo."""
    count = stand.samples(60)
    async with stand.boxes() as boxes, await boxes.open(memory_mb=stand.memory_mb) as box:
        for _ in range(5):
            await box.run(_TRUE)
        execs, same, spawned = [], [], []
        # In three parts, alternating: a neighbour that comes or goes hits both.
        for _ in range(3):
            inside = await box.run(["python3", "-I", "-S", "-c", _SPAWN, str(count // 3 + 1)], timeout_s=120)
            spawned += [float(s) for s in json.loads(inside.stdout)]
            for _ in range(count // 3 + 1):
                began = time.monotonic()
                done = await box.run(_TRUE)
                execs.append(time.monotonic() - began)
                same.append(done.duration_s)
        pings = [await box.ping() for _ in range(count * 2)]
        echoes = await _echoes(box, count * 2)
    exec_of_true = Series("exec of true", "s", tuple(execs))
    return [
        Figure(
            "exec",
            exec_of_true,
            Series("the same spawn and wait, timed in the guest", "s", tuple(same)),
            wanted_ratio=1.3,
            note="its own user, cgroup, limits and Landlock; three pipes",
        ),
        Figure("exec", exec_of_true, Series("posix_spawn and wait, nothing around it", "s", tuple(spawned))),
        Figure(
            "exec",
            Series("empty request", "s", tuple(pings)),
            Series("raw vsock echo of one byte", "s", tuple(echoes)),
            wanted=0.002 + Series("", "s", tuple(echoes)).p50,
            note="wanted: 2 ms above the echo",
        ),
    ]


async def _echoes(box: Box, count: int) -> list[float]:
    took = []
    argv = ["python3", "-I", "-S", "-c", _ECHO % ECHO_PORT]
    # As root: agents have no vsock sockets of their own.
    async with await box.start_exec(argv, user="root", cwd="/", timeout_s=120) as server:
        await server.stdout.receive()
        stream = await box.connect(ECHO_PORT)
        try:
            for _ in range(count):
                began = time.monotonic()
                await stream.send(b"x")
                await stream.receive(1)
                took.append(time.monotonic() - began)
        finally:
            await stream.aclose()
    return took


async def files(stand: Stand) -> list[Figure]:
    """Files in and out, beside a plain copy with fsync on the host."""
    figures = []
    async with stand.boxes() as boxes, await boxes.open(memory_mb=max(stand.memory_mb, 256)) as box:
        for size, label in SIZES:
            source = stand.work / f"file-{size}"
            source.write_bytes(os.urandom(size))
            copies, into, out = [], [], []
            for _ in range(stand.samples(3 if size > 1 << 20 else 10)):
                copies.append(await run_sync(_plain_copy, source, Path("/tmp")))  # noqa: S108 - a disk, not a secret
                began = time.monotonic()
                await box.put(source, "/workspace/file")
                into.append(time.monotonic() - began)
                began = time.monotonic()
                received = stand.work / "received"
                await box.get_file("/workspace/file", received)
                out.append(time.monotonic() - began)
                if (got := received.stat().st_size) != size:
                    raise ProviderError(f"Of a file of {size} bytes {got} came back from box {box.id}.")
                received.unlink()
            floor = Series(f"plain copy of {label}", "s", tuple(copies))
            figures.append(Figure("files", Series(f"{label} in", "s", tuple(into)), floor))
            figures.append(Figure("files", Series(f"{label} out", "s", tuple(out)), floor))
            source.unlink()
    return figures


def _plain_copy(source: Path, directory: Path) -> float:
    target = directory / f"voidbox-bench-{os.getpid()}"
    began = time.monotonic()
    try:
        with source.open("rb") as old, target.open("wb") as new:
            while data := old.read(1 << 20):
                new.write(data)
            new.flush()
            os.fsync(new.fileno())
        return time.monotonic() - began
    finally:
        target.unlink(missing_ok=True)


async def footprint(stand: Stand) -> list[Figure]:
    """Host memory of a further clone, and the processor that an idle one takes."""
    count = max(2, stand.samples(8))
    async with stand.boxes(spares=0) as boxes:
        opened = [await boxes.open(memory_mb=stand.memory_mb) for _ in range(count)]
        for box in opened:
            await box.run(_TRUE)
        await anyio.sleep(5)  # what starting left to do
        pids = {box.id: _processes(box.id) for box in opened}
        # The first pays for what all share, by whose pages count for a part in each.
        held = []
        for found in pids.values():
            parts = [_memory_mb(pid) for pid in found]
            # One that ended, or may not be looked at, would make a box look light.
            if parts and None not in parts:
                held.append(sum(part for part in parts if part is not None))
        if not held:
            raise ProviderError("No box's processes can be looked at in /proc; measure as the user who runs them.")
        before = {name: sum(map(_cpu_s, found)) for name, found in pids.items()}
        await anyio.sleep(IDLE_S)
        idle = [100 * (sum(map(_cpu_s, found)) - before[name]) / IDLE_S for name, found in pids.items()]
        for box in opened:
            await box.close()
    return [
        Figure(
            "footprint",
            Series(f"host memory of a further {stand.memory_mb} MB clone", "MB", tuple(held)),
            wanted=90.0,
            note="proportional anonymous and file pages of QEMU and its vsock device, and the memory file",
        ),
        Figure("footprint", Series("an idle box", "% of a core", tuple(idle)), wanted=1.0),
    ]


def _memory_mb(pid: int) -> float | None:
    """What process `pid` holds of the host's memory: pages by proc(5) smaps_rollup, and its clone's memory file.

    The file's pages count by its blocks: those that the guest has not touched are in no page table. None of a
    process that is gone or may not be looked at.
    """
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith(("Pss_Anon:", "Pss_File:")):
                total += int(line.split()[1]) << 10
        files = {}
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.endswith("/ram (deleted)"):
                info = link.stat()
                files[info.st_ino] = info.st_blocks * 512
        # The vsock device has the file open as well: it is QEMU's.
        is_qemu = b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return None
    return (total + (sum(files.values()) if is_qemu else 0)) / 2**20


def _processes(box: str) -> list[int]:
    """QEMU and the vsock device of `box`: both name its directory or itself."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if box.encode() in line:
                found.append(int(entry.name))
    return found


def _cpu_s(pid: int) -> float:
    """User and system time (proc(5), fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
