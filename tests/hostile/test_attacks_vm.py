"""An agent that tries everything. Each attack is real code in a real box, with the denial that is expected.

What holds an *escaped* guest, one that has root in its own box, is tested elsewhere: the wire in
``tests/box/test_hostile_guest.py`` and ``tests/wire``, the device in ``tests/vsock``.
"""

from __future__ import annotations

import anyio
import pytest

from tests.hostile.attack import attack, outcomes, rules
from voidbox_lab.box import Box, Boxes
from voidbox_lab.errors import LimitExceeded, UserError

pytestmark = [pytest.mark.anyio, pytest.mark.vm, pytest.mark.timeout(240)]


# What the box knows


async def test_the_secret_and_pid_1(box: Box) -> None:
    """Neither boot data nor memory, environment or descriptors of PID 1, which is root's."""
    done = await attack(
        box,
        """
        attempt("boot", open, "/sys/firmware/qemu_fw_cfg/by_name/opt/voidbox/boot/raw", "rb")
        for name in ("environ", "mem", "maps", "auxv", "stack", "syscall"):
            attempt(name, lambda: open(f"/proc/1/{name}", "rb").read(1))
        attempt("fds", os.listdir, "/proc/1/fd")
        attempt("root", os.listdir, "/proc/1/root/root")
        attempt("kmsg", lambda: os.read(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK), 4096))
        attempt("memory", open, "/dev/mem", "rb")
        attempt("port", open, "/dev/port", "rb")
        """,
    )
    found = outcomes(done)
    assert set(found) == {
        "boot",
        "environ",
        "mem",
        "maps",
        "auxv",
        "stack",
        "syscall",
        "fds",
        "root",
        "kmsg",
        "memory",
        "port",
    }
    assert set(found.values()) <= {"EACCES", "EPERM", "ENOENT"}, found


async def test_ptrace_of_anybody(box: Box) -> None:
    """Not of PID 1, nor of its own children: no process has another's memory."""
    done = await attack(
        box,
        """
        attempt("init", syscall, 101, 16, 1, 0, 0)  # PTRACE_ATTACH
        child = subprocess.Popen(["sleep", "5"])
        attempt("child", syscall, 101, 16, child.pid, 0, 0)
        attempt("memory", syscall, 310, child.pid, 0, 0, 0, 0, 0)  # process_vm_readv
        attempt("read", open, f"/proc/{child.pid}/mem", "rb")
        attempt("write", open, f"/proc/{child.pid}/mem", "r+b")
        child.kill()
        """,
    )
    found = outcomes(done)
    assert (found.pop("read"), found.pop("write")) == ("EACCES", "EACCES")
    assert found == {"init": "EPERM", "child": "EPERM", "memory": "EPERM"}
    assert "syscalls.ptrace" in rules(done)


async def test_another_command(box: Box) -> None:
    """What runs beside it as the same user is closed to it: each command has a Landlock domain of its own."""
    async with await box.start_exec(["sh", "-c", "echo; read x"], stdin=True) as other:
        assert await other.stdout.receive() == b"\n"
        done = await attack(
            box,
            f"""
            for name in ("environ", "maps", "mem", "auxv"):
                attempt(name, lambda: open(f"/proc/{other.pid}/{{name}}", "rb").read(1))
            for name in ("exe", "cwd", "fd/1"):
                attempt(name, os.readlink, f"/proc/{other.pid}/{{name}}")
            """,
        )
    found = outcomes(done)
    assert len(found) == 7
    assert set(found.values()) <= {"EACCES", "EPERM"}, found


async def test_pid_1_cannot_be_killed(box: Box) -> None:
    """By no signal; and the box goes on."""
    done = await attack(
        box,
        """
        for number in (9, 11, 15, 1, 19):
            attempt(f"signal{number}", os.kill, 1, number)
        attempt("reboot", syscall, 169, 0xFEE1DEAD, 672274793, 0x4321FEDC, 0)
        attempt("sysrq", open, "/proc/sysrq-trigger", "w")
        """,
    )
    found = outcomes(done)
    assert set(found.values()) <= {"EPERM", "EACCES"}, found
    assert "syscalls.reboot" in rules(done)
    assert (await box.run(["id", "-u"])).stdout == b"1000\n"


# The way to the host


async def test_vsock_by_itself(box: Box) -> None:
    """The agent has the gateway on loopback; a vsock of its own would be past it."""
    done = await attack(
        box,
        """
        attempt("stream", socket.socket, 40, socket.SOCK_STREAM, 0)
        attempt("raw", syscall, 41, 40, 1, 0)
        attempt("pair", syscall, 53, 40, 1, 0, (ctypes.c_int * 2)())
        attempt("device", open, "/dev/vsock", "rb")
        """,
    )
    found = outcomes(done)
    assert (found["stream"], found["raw"]) == ("EPERM", "EPERM")
    assert "ok" not in found.values()
    assert "syscalls.af-vsock" in rules(done)


async def test_no_address_can_be_reached(box: Box) -> None:
    """Without a network: not the host's loopback, nor metadata services, nor other boxes, nor a name."""
    done = await attack(
        box,
        """
        def connect(host, port):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
                s.settimeout(3)
                s.connect((host, port))
        for host in ("10.0.2.2", "169.254.169.254", "192.168.122.1", "127.0.0.2", "1.1.1.1"):
            attempt(host, connect, host, 80)
        attempt("metadata6", connect, "fd00:ec2::254", 80)
        attempt("packet", socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 3)
        attempt("icmp", socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
        attempt("name", socket.getaddrinfo, "example.org", 80)
        """,
    )
    found = outcomes(done)
    assert len(found) == 9
    assert "ok" not in found.values(), found
    assert "syscalls.packet-sockets" in rules(done)


# Programs that are not allowed


async def test_programs_beside_the_allowlist(box: Box) -> None:
    """Through an interpreter, a copy, a symbolic or hard link, a script, a memfd, the dynamic loader."""
    done = await attack(
        box,
        """
        os.chdir("/workspace")
        run = lambda *argv: subprocess.run(argv, check=True, capture_output=True).stdout
        attempt("direct", run, "/usr/bin/git", "--version")
        attempt("shell", lambda: run("sh", "-c", "exec /usr/bin/git --version"))
        open("copy", "wb").write(open("/usr/bin/git", "rb").read()); os.chmod("copy", 0o755)
        attempt("copy", run, "./copy", "--version")
        os.symlink("/usr/bin/git", "symlink")
        attempt("symlink", run, "./symlink", "--version")
        attempt("hardlink", lambda: (os.link("/usr/bin/git", "hardlink"), run("./hardlink", "--version")))
        open("script", "w").write("#!/usr/bin/git --version\\n"); os.chmod("script", 0o755)
        attempt("script", run, "./script")
        open("allowed", "w").write("#!/bin/sh\\nid\\n"); os.chmod("allowed", 0o755)
        attempt("own", run, "./allowed")
        attempt("memfd", os.memfd_create, "x")
        attempt("loader", run, "/lib64/ld-linux-x86-64.so.2", "/usr/bin/git", "--version")
        attempt("loaded", run, "/lib64/ld-linux-x86-64.so.2", "/workspace/copy", "--version")
        loader = "ld-linux-x86-64.so.2"
        os.symlink(f"/lib64/{loader}", "/tmp/loader")
        os.symlink("/proc/self/cwd", "here")
        for name, way in {
            "link": "/tmp/loader",
            "cwd": f"cd /lib64; /proc/self/cwd/{loader}",
            "here": f"cd /lib64; $OLDPWD/here/{loader}",
            "devfd": "/dev/fd/9",
            "thread": "/proc/thread-self/fd/9",
            "long": "cd /lib64; " + "./" * 2035 + loader,
        }.items():
            attempt(name, run, "sh", "-c", f"exec 9</lib64/{loader}; {way} /usr/bin/git --version")
        attempt("itself", run, "sh", "-c", "/proc/self/exe -c true && /dev/fd/9 -c true 9</bin/sh")
        fd = os.open("/usr/bin/git", os.O_RDONLY)
        attempt("fd", lambda: os.execve(fd, ["git", "--version"], {}))
        """,
    )
    found = outcomes(done)
    assert found.pop("itself") == "ok", "what is allowed may find itself so"
    assert set(found) == {
        "direct", "shell", "copy", "symlink", "hardlink", "script", "own", "memfd", "loader", "loaded", "fd",
        "link", "cwd", "here", "devfd", "thread", "long",
    }  # fmt: skip
    assert "ok" not in found.values(), done.stdout
    assert {"commands", "syscalls.memfd"} <= rules(done)
    told = {denied.subject for denied in done.denied if denied.rule == "commands"}
    assert any("/usr/bin/git" in subject for subject in told), told


async def test_code_that_was_written_cannot_be_mapped(box: Box) -> None:
    """A library of the agent's own would be a program by another name: its directories are noexec."""
    done = await attack(
        box,
        """
        import mmap, shutil
        shutil.copy("/usr/lib/x86_64-linux-gnu/libz.so.1", "/workspace/mine.so")
        attempt("dlopen", ctypes.CDLL, "/workspace/mine.so")
        for place in ("/workspace", "/home/agent", "/tmp", "/var/tmp", "/dev/shm"):
            def mapped():
                with open(f"{place}/code", "wb+") as f:
                    f.write(bytes(4096)); f.flush()
                    mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
            attempt(place, mapped)
        """,
    )
    found = outcomes(done)
    assert len(found) == 6
    assert "ok" not in found.values(), found


async def test_more_rights(box: Box) -> None:
    """No setuid program, no user namespace, no mount, no module, no key, no device."""
    done = await attack(
        box,
        """
        attempt("uid", os.setuid, 0)
        attempt("unshare", syscall, 272, 0x10000000)  # CLONE_NEWUSER
        attempt("clone", syscall, 56, 0x10000000 | 17, 0, 0, 0, 0)
        attempt("setns", syscall, 308, os.open("/proc/self/ns/user", os.O_RDONLY), 0)
        attempt("mount", syscall, 165, b"none", b"/tmp", b"tmpfs", 0, 0)
        attempt("fsopen", syscall, 430, b"tmpfs", 0)
        attempt("chroot", os.chroot, "/tmp")
        attempt("module", syscall, 313, 0, b"", 0)
        attempt("kexec", syscall, 246, 0, 0, 0, 0)
        attempt("bpf", syscall, 321, 0, 0, 0)
        attempt("keyctl", syscall, 250, 0, 0, 0, 0, 0)
        attempt("userfaultfd", syscall, 323, 0)
        attempt("perf", syscall, 298, 0, 0, -1, -1, 0)
        attempt("uring", syscall, 425, 1, bytes(120))
        attempt("clock", syscall, 227, 0, (ctypes.c_long * 2)(0, 0))
        attempt("mknod", os.mknod, "/tmp/disk", 0o060600, os.makedev(254, 0))
        open("/tmp/s", "w")
        attempt("setuid", os.chmod, "/tmp/s", 0o4755)
        print("privileges", open("/proc/self/status").read().split("NoNewPrivs:")[1].split()[0])
        """,
    )
    found = outcomes(done)
    assert found.pop("privileges") == "1"
    assert found.pop("setuid") in {"ok", "EPERM"}  # to its own user: of no use
    assert set(found.values()) <= {"EPERM", "ENOSYS", "EACCES"}, found
    groups = {"namespaces", "mount", "kernel-modules", "kexec", "bpf", "keyrings", "userfaultfd", "perf", "time"}
    assert {f"syscalls.{group}" for group in groups} <= rules(done), rules(done)


# What others rely on


async def test_nothing_outside_its_own_can_be_written(box: Box) -> None:
    """Layers are read-only, and what lies over them is root's."""
    done = await attack(
        box,
        """
        for path in ("/usr/bin/id", "/etc/passwd", "/usr/lib/voidbox/init.py", "/etc/ld.so.preload",
                     "/run/x", "/sys/kernel/uevent_helper", "/proc/sys/kernel/core_pattern",
                     "/dev/vda", "/scratch/x", "/l/0/x"):
            attempt(path, open, path, "r+" if os.path.exists(path) else "w")
        attempt("cgroup", open, "/sys/fs/cgroup/cgroup.procs", "w")
        attempt("rename", os.rename, "/usr/bin/id", "/usr/bin/di")
        attempt("remove", os.unlink, "/usr/bin/id")
        attempt("link", os.symlink, "/workspace", "/usr/local/bin/x")
        """,
    )
    found = outcomes(done)
    assert len(found) == 14
    assert set(found.values()) <= {"EACCES", "EPERM", "EROFS", "ENOENT"}, found
    assert (await box.run(["id", "-u"])).stdout == b"1000\n"


async def test_paths_of_file_transfer(box: Box) -> None:
    """What the host fetches is fetched as the agent: a link to root's files leads nowhere, and `..` is a path."""
    await attack(
        box,
        """
        os.chdir("/workspace/output")
        os.symlink("/etc/shadow", "shadow")
        os.symlink("/proc/1/environ", "environ")
        os.symlink("/", "root")
        os.mkfifo("fifo")
        """,
    )
    for path in ("shadow", "environ", "root/etc/shadow", "../../etc/shadow", "fifo"):
        with anyio.fail_after(20), pytest.raises(UserError):
            await box.get(f"/workspace/output/{path}")
    with pytest.raises(UserError):
        await box.put(b"x", "/workspace/output/root/etc/cron.d/x")


# Using everything up


async def test_a_fork_bomb(boxes: Boxes) -> None:
    """It meets its bound on processes, the user is told, and the box goes on."""
    bomb = """
        import time
        made = 0
        try:
            while made < 20000:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                made += 1
        except OSError as e:
            print("bomb", errno.errorcode[e.errno], made, flush=True)
        """
    # Room for all it may start: with less, memory would be its bound.
    async with await boxes.open(memory_mb=512) as box:
        done = await attack(box, bomb)
        assert outcomes(done)["bomb"] == "EAGAIN"
        assert int(done.stdout.split()[2]) < 256
        assert rules(done) == {"rlimits.processes"}
        assert (await box.run(["id", "-u"])).stdout == b"1000\n"


async def test_memory_and_disk(fresh: Box) -> None:
    """Memory: the program is killed and the reason known. Disk: an error, and what was there stays."""
    done = await attack(fresh, "hog = []\nwhile True: hog.append(bytearray(b'x') * (16 << 20))", timeout_s=120)
    assert done.oom
    assert done.signal == 9
    assert "caps.memory" in rules(done)
    done = await attack(
        fresh,
        """
        def fill():
            with open("/workspace/full", "wb") as f:
                for _ in range(8192):
                    f.write(bytes(1 << 20))
        attempt("fill", fill)
        """,
        timeout_s=120,
    )
    assert outcomes(done)["fill"] in {"EFBIG", "ENOSPC"}
    assert (await fresh.run(["id", "-u"])).stdout == b"1000\n"


async def test_a_flood(boxes: Boxes) -> None:
    """Output without end is cut at its bound; the host keeps its memory, and the box answers meanwhile."""
    async with await boxes.open(memory_mb=256) as box:
        with pytest.raises(LimitExceeded) as caught:
            await box.run(["python3", "-c", "import os\nwhile True: os.write(1, b'x' * 65536)"], timeout_s=60)
        assert caught.value.limit in {"output", "time"}
        assert (await box.run(["id", "-u"])).stdout == b"1000\n"


async def test_a_flood_of_denials(box: Box) -> None:
    """Thousands of denied calls are told in a few events whose counts are right."""
    done = await attack(
        box,
        """
        for _ in range(3000):
            try:
                socket.socket(40, socket.SOCK_STREAM, 0)
            except OSError:
                pass
        print("done ok")
        """,
    )
    told = [denied for denied in done.denied if denied.rule == "syscalls.af-vsock"]
    assert sum(denied.count for denied in told) >= 3000
    assert len(told) < 100
