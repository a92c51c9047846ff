"""Real boxes: what only a kernel of their own can show."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import anyio
import pytest

from voidbox_lab.box import Box, Boxes, Completed
from voidbox_lab.errors import BoxLost, LimitExceeded, UserError
from voidbox_lab.machines.boxdirs import OWNER_FILE
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Policy, Rlimits

pytestmark = [pytest.mark.anyio, pytest.mark.vm]


async def sh(box: Box, script: str, **options: object) -> Completed:
    """Run a shell script in `box`."""
    return await box.run(["sh", "-c", script], timeout_s=60, **options)  # type: ignore[arg-type]


@pytest.fixture
async def fresh(boxes: Boxes) -> AsyncIterator[Box]:
    """A box of this test's own, to be broken."""
    async with await boxes.open(memory_mb=256) as made:
        yield made


async def test_facts_and_identity(box: Box) -> None:
    """The facts are the box's; hostname, clock and user are as told."""
    assert box.facts.domain == box.id
    assert box.facts.boot_s > 0
    assert set(box.phases) >= {"prepare", "start", "dial", "handshake", "policy", "kernel", "agent"}
    done = await sh(
        box, "id -u; id -g; id -G; cat /proc/sys/kernel/hostname; date +%s; pwd; echo $HOME; ulimit -n"
    )
    uid, gid, groups, hostname, now, cwd, home, files = done.stdout.decode().split()
    assert (uid, gid, groups) == ("1000", "1000", "1000")
    assert hostname == box.id
    assert abs(int(now) - time.time()) < 3
    assert (cwd, home, files) == ("/workspace", "/home/agent", "1024")


async def test_exit_codes_signals_and_streams(box: Box) -> None:
    """As on a host."""
    done = await sh(box, "echo o; echo e >&2; exit 42")
    assert (done.exit_code, done.stdout, done.stderr) == (42, b"o\n", b"e\n")
    assert (await sh(box, "kill -TERM $$")).signal == signal.SIGTERM
    assert (await box.run(["cat"], stdin=b"x" * 500_000)).stdout == b"x" * 500_000
    assert (await box.run(["id", "-u"], user="root")).stdout == b"0\n"


async def test_no_network_but_loopback(box: Box) -> None:
    """A box has no network card, whatever its policy of today."""
    names = [e.name for e in (await box.list("/sys/class/net")).entries]
    assert names == ["lo"]
    assert b"127.0.0.1" in (await sh(box, "cat /proc/net/fib_trie")).stdout
    # Nor does anything listen there for the host, or say that it does.
    assert (await sh(box, "cat /proc/net/tcp | grep -c ' 0A '; env | grep -ci proxy")).stdout == b"0\n0\n"


async def test_the_secret_is_out_of_reach(box: Box) -> None:
    """Neither the kernel's command line nor fw_cfg nor PID 1 tells the agent anything."""
    cmdline = (await sh(box, "cat /proc/cmdline")).stdout
    assert b"secret" not in cmdline
    boot = "/sys/firmware/qemu_fw_cfg/by_name/opt/voidbox/boot/raw"
    with pytest.raises(UserError) as caught:
        await box.get(boot)
    assert caught.value.cause == "denied"
    assert (await sh(box, f"cat {boot} /proc/1/environ /proc/1/mem; ls /proc/1/fd")).stdout == b""


async def test_landlock_binds_children(box: Box) -> None:
    """The default allows the image's own programs and nothing the agent wrote, however it is started."""
    script = "cp /usr/bin/id /workspace/mine && chmod 755 /workspace/mine; {}; rm -f /workspace/mine"
    for way in (
        "/workspace/mine",
        "sh -c /workspace/mine",
        "env /workspace/mine",
        "find /workspace/mine -exec {} \\;",
    ):
        done = await sh(box, script.format(way.replace("{}", "{{}}").replace("{{}}", "{}")))
        assert b"uid=" not in done.stdout
        assert b"ermission denied" in done.stderr, way
    await box.put(b"#!/bin/sh\necho ran\n", "/workspace/script", mode=0o755)
    with pytest.raises(UserError, match="allowlist") as caught:
        await box.run(["/workspace/script"])
    assert caught.value.cause == "denied"
    assert (await box.run(["sh", "/workspace/script"])).stdout == b"ran\n"
    # Root is bound by no policy, but by how the place is mounted.
    assert (await box.run(["sh", "/workspace/script"], user="root")).stdout == b"ran\n"
    with pytest.raises(UserError, match="not executable"):
        await box.run(["/workspace/script"], user="root")
    await box.remove("/workspace/script")


async def test_an_allowlist_names_programs(box: Box) -> None:
    """Only what is named runs; the refusal of a child is the child's to read."""
    await box.apply(Policy(commands=("sh", "id")))
    try:
        done = await sh(box, "id -u; cat /etc/hostname; echo $?")
        assert done.stdout == b"1000\n126\n"
        assert b"ermission denied" in done.stderr
        with pytest.raises(UserError, match="does not name"):
            await box.run(["cat", "/etc/hostname"])
        with pytest.raises(UserError, match="no-such"):
            await box.apply(Policy(commands=("no-such",)))
        assert (await box.run(["id", "-u"])).exit_code == 0, "a bad policy replaced a good one"
    finally:
        await box.apply(Policy())


async def test_no_new_privileges_and_rlimits(box: Box) -> None:
    """Set-uid programs are plain programs; limits bind children."""
    await box.apply(Policy(rlimits=Rlimits(open_files=64, processes=32, file_mb=1)))
    try:
        done = await sh(box, "grep NoNewPrivs /proc/self/status; sh -c 'ulimit -n; ulimit -p'")
        assert done.stdout.split() == [b"NoNewPrivs:", b"1", b"64", b"32"]
        done = await sh(
            box, "head -c 3000000 /dev/zero > /workspace/big; stat -c %s /workspace/big; rm /workspace/big"
        )
        assert done.stdout.split()[-1] == b"1048576"
        done = await sh(box, "for i in $(seq 100); do sleep 5 & done; echo made")
        assert b"ork" in done.stderr  # "Cannot fork"
    finally:
        await box.apply(Policy())
    assert (await sh(box, "true")).exit_code == 0


async def test_the_agent_cannot_write_outside_its_own(box: Box) -> None:
    """put and remove act as the agent, through links too; root is another matter."""
    await sh(box, "ln -sf /etc /workspace/door")
    for path in ("/etc/x", "/workspace/door/x", "/usr/bin/x"):
        with pytest.raises(UserError) as caught:
            await box.put(b"x", path)
        assert caught.value.cause == "denied"
    with pytest.raises(UserError):
        await box.remove("/workspace/door/passwd")
    with pytest.raises(UserError):
        await box.get("/etc/shadow")
    await box.put(b"x", "/workspace/mine")
    assert (await box.stat("/workspace/mine")).uid == 1000
    await box.put(b"x", "/etc/theirs", user="root")
    assert (await box.stat("/etc/theirs")).uid == 0
    for path in ("/workspace/door", "/workspace/mine"):
        await box.remove(path)


async def test_timeouts_and_daemons_leave_nothing(box: Box) -> None:
    """Whatever a command does to get away, its cgroup holds it."""
    done = await box.run(["sh", "-c", "setsid setsid sleep 1000 & sleep 1000"], timeout_s=0.5)
    assert done.timed_out
    script = (
        "import os\nif not os.fork():\n os.setsid()\n if not os.fork(): os.execv('/bin/sleep', ['sleep', '9'])"
    )
    await box.run(["python3", "-c", script])
    await anyio.sleep(0.5)
    left = await box.run(["sh", "-c", "cat /proc/[0-9]*/comm; ls /sys/fs/cgroup/execs | grep ^x"], user="root")
    assert b"sleep" not in left.stdout
    assert left.stdout.count(b"\nx") == 1, "only its own cgroup"


async def test_two_hundred_at_once(box: Box) -> None:
    """Each command gets its own answer, on one emulated processor."""
    answers: set[int] = set()

    async def one(number: int) -> None:
        done = await box.run(["echo", str(number)])
        answers.add(int(done.stdout))

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(one, number)
    assert answers == set(range(200))


async def test_telemetry_is_sane(box: Box) -> None:
    """A busy loop is seen, by name."""
    samples = []
    async with await box.start_exec(["sh", "-c", "while :; do :; done"]):
        stream = box.telemetry(0.5)
        async for sample in stream:
            samples.append(sample)
            if len(samples) == 4:
                break
        await stream.aclose()  # type: ignore[attr-defined]
    last = samples[-1]
    assert 0.3 < last.cpu <= 1
    assert last.top[0].name == "sh"
    assert 0 < last.memory_used_kb < last.memory_total_kb < 400_000
    assert last.disk_total_kb > 0
    assert (last.net_rx_bytes, last.net_tx_bytes) == (0, 0)


async def test_two_hundred_megabytes_each_way(box: Box, tmp_path: Path) -> None:
    """By digest, on both sides, through the box's disk."""
    source, back = tmp_path / "in", tmp_path / "out"
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for number in range(200):
            piece = number.to_bytes(4, "big") + block[4:]
            digest.update(piece)
            file.write(piece)
    began = time.monotonic()
    await box.put(source, "/workspace/large")
    into = time.monotonic() - began
    assert (await box.run(["sha256sum", "/workspace/large"])).stdout.split()[0].decode() == digest.hexdigest()
    began = time.monotonic()
    await box.get_file("/workspace/large", back)
    out = time.monotonic() - began
    assert hashlib.sha256(back.read_bytes()).digest() == digest.digest()
    await box.remove("/workspace/large")
    print(f"in {200 / into:.0f} MiB/s, out {200 / out:.0f} MiB/s")


async def test_gateway_is_reached_on_loopback(boxes: Boxes, tmp_path: Path) -> None:
    """A TCP connection inside the box ends at the host's UNIX socket."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"heard " + await stream.receive())

    listener = await anyio.create_unix_listener(tmp_path / "gw")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        async with await boxes.open(memory_mb=256, gateway_socket=tmp_path / "gw") as box:
            script = (
                "import socket\ns = socket.create_connection(('127.0.0.1', 8129))\n"
                "s.sendall(b'hello')\nprint(s.makefile().read())"
            )
            assert (await box.run(["python3", "-c", script])).stdout == b"heard hello\n"
        tasks.cancel_scope.cancel()


async def test_a_hog_is_killed_and_named_and_the_box_lives(fresh: Box) -> None:
    """Memory ends for the command, not for the box."""
    with anyio.fail_after(90):
        done = await fresh.run(["python3", "-c", "x = []\nwhile True: x.append(b'x' * 1_000_000)"])
    assert done.oom
    assert done.signal == signal.SIGKILL
    assert (await fresh.run(["echo", "alive"])).stdout == b"alive\n"


async def test_a_full_disk_is_a_limit(fresh: Box) -> None:
    """For put a typed error; for a command its own."""
    script = (
        "import os\nfs = os.statvfs('/')\nfd = os.open('/workspace/filler', os.O_CREAT | os.O_WRONLY)\n"
        "os.posix_fallocate(fd, 0, fs.f_bavail * fs.f_frsize - 2_000_000)"
    )
    assert (await fresh.run(["python3", "-c", script], user="root")).exit_code == 0
    with pytest.raises(LimitExceeded) as caught:
        await fresh.put(bytes(8_000_000), "/workspace/more")
    assert caught.value.limit == "disk"
    assert [e.name for e in (await fresh.list("/workspace")).entries] == ["filler", "input", "output"]
    done = await sh(fresh, "head -c 8000000 /dev/zero > /workspace/more")
    assert b"No space left" in done.stderr


async def lose(box: Box, cause: str, how: list[str] | None, pid: int | None = None) -> None:
    """Kill `box` with a command pending; it and every later call raise BoxLost with `cause`, soon."""
    process = await box.start_exec(["sh", "-c", "echo first; sleep 1000"])
    assert await process.stdout.receive() == b"first\n"
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    if how:
        with suppress(BoxLost):
            await box.start_exec(how, user="root")
    with anyio.fail_after(25), pytest.raises(BoxLost) as caught:
        await process.wait()
    assert caught.value.cause == cause
    with pytest.raises(BoxLost) as again:
        await box.run(["true"])
    assert again.value.cause == cause


async def test_a_guest_panic_is_told(fresh: Box) -> None:
    """The kernel's end, with its last words."""
    await lose(fresh, "guest-panic", ["sh", "-c", "echo c > /proc/sysrq-trigger"])


async def test_a_dead_guest_agent_is_told(fresh: Box) -> None:
    """PID 1 dies, the kernel panics for it; the cause is the agent."""
    script = "import ctypes\nctypes.CDLL(None).reboot(0x4321FEDC)"
    await lose(fresh, "guest-agent-died", ["python3", "-c", script])


async def test_a_killed_qemu_is_told(boxes: Boxes, fresh: Box) -> None:
    """By its process, as the host's OOM killer would."""
    (pid,) = qemus(fresh.id)
    await lose(fresh, "qemu-died", None, pid)


async def test_a_killed_device_is_told(boxes: Boxes, fresh: Box) -> None:
    """The user-space vsock device is a process of its own."""
    if fresh.facts.vsock != "user":
        pytest.skip("the kernel carries vsock here; its half is in scripts/test-kvm")
    pids = [pid for pid, line in processes() if f"/{fresh.id}/vs" in line and "vsock.device" in line]
    assert len(pids) == 1
    await lose(fresh, "vsock-died", None, pids[0])


async def test_closing_leaves_nothing(boxes: Boxes) -> None:
    """Domain, processes, directories: gone, also when closed by cancellation, and twice."""
    settings = Settings.from_env()
    box = await boxes.open(memory_mb=256)
    assert qemus(box.id)
    with anyio.move_on_after(0.05):
        await box.close()
    await box.close()
    left(settings, box.id)


@pytest.mark.parametrize(
    ("warm", "after_s"),
    [("auto", 0.01), ("auto", 0.05), ("auto", 0.2), ("auto", 0.4), ("auto", 0.5), ("auto", 0.6), ("off", 2.0)],
)
async def test_a_cancelled_start_leaves_nothing(
    boxes: Boxes, warm: Literal["auto", "off"], after_s: float
) -> None:
    """Between any two steps."""
    settings = Settings.from_env()
    places = (settings.runtime / "b", settings.shm / "b", settings.cache / "boxes")

    def mine(path: Path) -> bool:
        with suppress(OSError):  # in a shared cache are other processes' boxes too, which come and go
            return bool(json.loads((path / OWNER_FILE).read_text())["pid"] == os.getpid())
        return path.exists()

    def entries() -> set[Path]:
        return {path for place in places for path in place.iterdir() if mine(path)}

    async with Boxes(replace(settings, warm=warm, spares=0), boxes.hypervisor) as others:
        async with await others.open(memory_mb=256):  # the template is there, loaded, and it works
            before = entries()
        before = entries() & before
        opened: list[Box] = []
        with anyio.move_on_after(after_s):
            opened.append(await others.open(memory_mb=256))
        for box in opened:  # it was quicker
            await box.close()
        assert entries() <= before


async def test_a_boot_that_takes_too_long_says_so(boxes: Boxes) -> None:
    """The bound is in the error."""
    async with Boxes(replace(Settings.from_env(), warm="off"), boxes.hypervisor) as cold:
        with pytest.raises(LimitExceeded, match="did not come up within") as caught:
            await cold.open(memory_mb=256, timeout_s=1.5)
    assert caught.value.limit == "time"


def processes() -> list[tuple[int, str]]:
    """PID and command line of every process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry.name), line))
    return found


def qemus(box: str) -> list[int]:
    """The QEMU processes of `box`."""
    return [pid for pid, line in processes() if f"guest={box}," in line]


def left(settings: Settings, box: str) -> None:
    """Assert that nothing of `box` is left."""
    assert not [line for _, line in processes() if box in line]
    assert not (settings.runtime / "b" / box).exists()
    assert not (settings.cache / "boxes" / box).exists()
