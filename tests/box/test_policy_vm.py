"""The policy tried for real in a box, as uid 1000: each rule by what it forbids, and ordinary work beside it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from voidbox_lab.box import Box, Boxes, Completed
from voidbox_lab.errors import UserError
from voidbox_lab.gateway import Gateway, StageSession, serving
from voidbox_lab.spec import Model, Policy
from voidbox_lab.spec.policy import Caps, Rlimits

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

_CALLS = """
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    got = libc.syscall(number, *[ctypes.c_long(a) for a in args])
    print(name, errno.errorcode.get(ctypes.get_errno(), 0) if got < 0 else "done", flush=True)
call("mount", 165, 0, 0, 0, 0, 0)
call("fsopen", 430, 0, 0)
call("open_tree", 428, -100, 0, 1)
call("chroot", 161, 0)
call("ptrace", 101, 0, 0, 0, 0)
call("process_vm_readv", 310, os.getpid(), 0, 0, 0, 0, 0)
call("kexec_load", 246, 0, 0, 0, 0)
call("bpf", 321, 0, 0, 0)
call("add_key", 248, 0, 0, 0, 0, 0)
call("userfaultfd", 323, 1)
call("init_module", 175, 0, 0, 0)
call("perf_event_open", 298, 0, 0, -1, -1, 0)
call("unshare", 272, 0x10000000)
call("setns", 308, 0, 0)
call("clone", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0)
call("memfd_create", 319, 0, 0)
call("memfd_secret", 447, 0)
call("reboot", 169, 0, 0, 0, 0)
call("sethostname", 170, 0, 0)
call("clock_settime", 227, 0, 0)
call("io_uring_setup", 425, 1, 0)
call("seccomp", 317, 1, 8, 0)
call("x32", 0x40000000 | 39)
for family in (socket.AF_VSOCK, socket.AF_PACKET, 38):
    try:
        socket.socket(family, socket.SOCK_STREAM)
    except OSError as e:
        print("family", int(family), errno.errorcode[e.errno])
try:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
except OSError as e:
    print("raw", errno.errorcode[e.errno])
print(bool(socket.if_nameindex()), len(socket.getaddrinfo("127.0.0.1", 80)))
"""
_ABSENT = ("clone3", "io_uring_setup")
_RULES = {
    *("mount", "ptrace", "kexec", "bpf", "keyrings", "userfaultfd", "kernel-modules", "perf", "namespaces"),
    *("memfd", "reboot", "time", "af-vsock", "packet-sockets"),
}


async def sh(box: Box, script: str, **options: object) -> Completed:
    """Run a shell script in `box`."""
    return await box.run(["bash", "-c", script], timeout_s=90, **options)  # type: ignore[arg-type]


def rules(done: Completed) -> dict[str, int]:
    """How often each rule was hit."""
    counts: dict[str, int] = {}
    for denied in done.denied:
        counts[denied.rule] = counts.get(denied.rule, 0) + denied.count
    return counts


@asynccontextmanager
async def under(box: Box, policy: Policy) -> AsyncIterator[None]:
    """`policy` for a while."""
    await box.apply(policy)
    try:
        yield
    finally:
        await box.apply(Policy())


async def test_every_group_of_system_calls_is_denied_and_told(box: Box) -> None:
    """Called from Python by number: EPERM, or ENOSYS where programs know a way round; each group has its event."""
    done = await box.run(["python3", "-c", _CALLS], timeout_s=60)
    assert done.exit_code == 0, done
    *said, last = done.stdout.decode().splitlines()
    assert last.startswith("True 3")
    assert len(said) == 28
    for line in said:
        name, *_, error = line.split()
        assert error == ("ENOSYS" if name in _ABSENT else "EPERM"), line
    assert set(rules(done)) == {f"syscalls.{rule}" for rule in _RULES}
    told = next(d for d in done.denied if d.subject == "ptrace")
    assert told.program == "python3"
    assert "add 'ptrace' to the policy's syscalls" in told.message
    # A foreign architecture ends the program: 32-bit calls have other numbers.
    foreign = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    )
    assert (await box.run(["python3", "-c", foreign], timeout_s=60)).signal == 31  # SIGSYS


async def test_open_groups_are_open(box: Box) -> None:
    """What the policy opens is the kernel's to decide, and nothing is told of it."""
    memory = "sleep 9 & exec 9< /proc/$!/mem && echo open; kill $!"
    async with under(box, Policy(syscalls=("ptrace", "memfd", "namespaces"))):
        assert (await sh(box, memory)).stdout == b"open\n"
        done = await box.run(["python3", "-c", _CALLS], timeout_s=60)
    assert (await sh(box, memory)).stdout == b""
    said = dict(
        line.split()[::2] if len(line.split()) == 3 else line.split() for line in done.stdout.decode().splitlines()
    )
    assert (said["ptrace"], said["memfd_secret"]) != ("EPERM", "EPERM")
    assert said["mount"] == "EPERM"
    assert {f"syscalls.{r}" for r in _RULES - {"ptrace", "memfd", "namespaces"}} == set(rules(done))


async def test_nothing_the_agent_wrote_runs(box: Box) -> None:
    """Copies, links, scripts, the dynamic loader, libraries, a memfd and mmap: each way is closed."""
    script = """
    cp /usr/bin/id mine; chmod 755 mine; ln -sf "$PWD/mine" link
    printf '#!%s\\n' "$PWD/mine" > script; chmod 755 script
    for p in ./mine ./link ./script "$PWD/mine"; do $p; done
    env ./mine; find mine -exec {} \\; ; python3 -c 'import os; os.execv("mine", ["mine"])'
    for d in /tmp /var/tmp /dev/shm /home/agent; do cp /usr/bin/id $d/mine; $d/mine; rm $d/mine; done
    /lib64/ld-linux-x86-64.so.2 ./mine; /lib64/ld-linux-x86-64.so.2 --library-path /x mine
    cp $(ldd /usr/bin/id | awk '/libc.so/ {print $3}') lib.so
    LD_PRELOAD=$PWD/lib.so /usr/bin/true
    python3 - <<'P'
import ctypes, mmap, os
for make in (lambda: ctypes.CDLL(os.path.abspath("lib.so")), lambda: os.memfd_create("x"),
             lambda: mmap.mmap(os.open("mine", os.O_RDONLY), 4096, mmap.MAP_PRIVATE, 1 | mmap.PROT_EXEC)):
    try:
        make()
        print("made")
    except OSError as e:
        print("refused")
P
    rm -f mine link script lib.so; ldd /usr/bin/id | head -n 1
    """
    done = await sh(box, script)
    assert b"uid=" not in done.stdout, done
    out = done.stdout.decode().splitlines()
    assert out[:3] == ["refused"] * 3
    assert "linux-vdso" in out[3], "the loader may still show what the image's own programs need"
    counts = rules(done)
    assert counts.keys() == {"commands", "syscalls.memfd"}
    assert counts["commands"] >= 12
    assert any("ld-linux" in d.subject and "is to run /workspace/mine" in d.message for d in done.denied)


async def test_named_places_may_hold_programs(box: Box) -> None:
    """By name, in the policy, and in no other place."""
    async with under(box, Policy(commands=("/usr/", "/workspace/"))):
        script = (
            "cp /usr/bin/id /tmp/mine; cp /usr/bin/id mine; ./mine; /lib64/ld-linux-x86-64.so.2 ./mine; /tmp/mine"
        )
        done = await sh(box, script)
    assert done.stdout.count(b"uid=1000") == 2, done
    assert rules(done) == {"commands": 1}
    assert b"uid=" not in (await sh(box, "./mine; rm mine /tmp/mine")).stdout


async def test_paths_bind_reading_and_writing(box: Box) -> None:
    """A list of places to write is all there is; one of places to read leaves programs and libraries."""
    await sh(box, "mkdir -p keep && echo kept > keep/f && chmod -R a+rwX keep")
    policy = Policy(write=("/workspace/out/deep", "/home/agent"), read=("/var/log",))
    async with under(box, policy):
        done = await sh(
            box,
            "echo a > out/deep/f; mkdir out/deep/d; mv out/deep/f out/deep/d/f; cat out/deep/d/f;"
            "stat -c %u:%a out/deep;"
            "echo b > keep/f; rm keep/f; mv keep kept; ln -s x link; mkfifo fifo; echo c > /tmp/f;"
            "touch /var/tmp/f;"
            "truncate -s 0 /tmp/nothing; cat keep/f; echo d > /dev/null; echo e > /dev/shm/e; rm /dev/shm/e;"
            "ls /var/log > /dev/null && echo listed; ls /var/lib; ls /; cat /etc/hostname;"
            "python3 -c 'print(1)'; git --version",
        )
        with pytest.raises(UserError, match="/no/such"):
            await box.apply(Policy(read=("/no/such",)))
    words = done.stdout.decode().split()
    assert words[:4] == ["a", "1000:755", "kept", "listed"], done
    assert words[5:8] == ["1", "git", "version"]
    assert done.stderr.count(b"ermission denied") >= 9, done
    assert not (await box.list("/tmp")).entries
    done = await sh(box, "echo b > keep/f && mv keep/f moved && rm -r moved keep out; ls /var/lib > /dev/null")
    assert (done.exit_code, done.stderr) == (0, b"")


async def test_caps_bind_the_tree_and_are_told(box: Box) -> None:
    """A fork bomb meets pids.max, a hog memory.max, a spinner cpu.max; the box lives, the next command is free."""
    async with under(box, Policy(caps=Caps(memory_mb=64, pids=16, cpus=0.2), rlimits=Rlimits(processes=64))):
        bomb = await sh(box, "for i in $(seq 40); do sleep 3 & done 2>/dev/null; wait")
        assert set(rules(bomb)) == {"caps.pids"}
        assert "16 processes" in bomb.denied[0].message
        hog = 'bash -c \'python3 -c "x = b\\"x\\" * 200_000_000"; echo after $?\''
        eaten = await sh(box, hog)
        assert eaten.stdout == b"after 137\n", eaten
        assert rules(eaten) == {"caps.memory": 1}
        assert "64 MiB" in eaten.denied[0].message
        spun = await box.run(["python3", "-c", "import time\nwhile time.process_time() < 0.4: pass"], timeout_s=60)
        assert spun.exit_code == 0
        assert spun.duration_s > 1.2
    async with under(box, Policy(rlimits=Rlimits(processes=12))):
        bomb = await sh(box, "for i in $(seq 30); do sleep 3 & done 2>/dev/null; wait")
        assert set(rules(bomb)) == {"rlimits.processes"}
    assert (await sh(box, "true")).denied == ()


async def test_a_flood_of_denials_is_told_together_and_blocks_nobody(box: Box) -> None:
    """Thousands a second, from many processes at once, or from one that is killed: few events, right counts."""
    flood = "import ctypes\nlibc = ctypes.CDLL(None)\nfor i in range(1500): libc.syscall(101, 0, 0, 0, 0)"
    async with await box.start_exec(
        ["bash", "-c", f"for i in 1 2 3 4; do python3 -c '{flood}' & done; wait"]
    ) as process:
        for _ in range(5):
            assert await box.ping() < 5
        told = [denied async for denied in process.denials()]
        assert (await process.wait()).code == 0
    assert sum(d.count for d in told) == 6000
    assert len(told) < 100
    assert {(d.rule, d.subject, d.program) for d in told} == {("syscalls.ptrace", "ptrace", "python3")}
    many = "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    many += "while True: libc.prctl(15, os.urandom(4).hex().encode()); libc.syscall(101)"
    async with await box.start_exec(["python3", "-c", many]) as process:
        told = []
        with anyio.move_on_after(3):
            told += [denied async for denied in process.denials()]
        assert len(told) < 150
    assert await box.ping() < 5


async def test_a_supervisor_survives_what_it_looks_at(box: Box) -> None:
    """Paths that are not there or are no text, and callers that die or are killed while they ask."""
    script = """
import ctypes, os, signal, threading
libc = ctypes.CDLL(None, use_errno=True)
for address in (0, 1, 2**47, 2**63, 2**64 - 1):
    print(libc.syscall(59, ctypes.c_ulong(address), None, None), ctypes.get_errno())
for path in (b"/" + b"x" * 5000, b"\\xff\\n\\x1b[31m", b""):
    print(libc.execve(path, None, None))
for i in range(60):
    pid = os.fork()
    if not pid:
        while True:
            libc.execve(b"/no/such", None, None)
    os.kill(pid, signal.SIGSTOP if i % 2 else 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
open("evil", "w").write("x"); os.chmod("evil", 0o755); os.rename("evil", "e\\x1b[31mvil\\xff")
try:
    os.execv("./e\\x1b[31mvil\\xff", ["x"])
except OSError as e:
    print(e.errno)
"""
    done = await box.run(["python3", "-c", script], timeout_s=90)
    assert done.stdout.decode().split() == ["-1", "14"] * 5 + ["-1", "-1", "-1", "13"], done
    assert [d.rule for d in done.denied] == ["commands"]
    assert "\x1b" not in done.denied[0].subject + done.denied[0].message
    await sh(box, "rm -f ./*vil*")
    assert (await sh(box, "true")).exit_code == 0


async def test_ordinary_work_meets_no_rule(boxes: Boxes) -> None:
    """git, python, pipelines, background jobs and the default agent, whose refusals have words."""
    path = Path(os.environ["XDG_RUNTIME_DIR"]) / "policy"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        gateway = Gateway(lambda *_: None)
        async with (
            serving(gateway, sock),
            gateway,
            await boxes.open(memory_mb=384, gateway_socket=path) as box,
        ):
            script = """
            set -e
            git init -q r; cd r; echo a > f; git add f
            git -c user.name=a -c user.email=a@b commit -qm x; git mv f g
            git log --oneline | wc -l; cd ..; git clone -q r s; ls s
            python3 -c 'import subprocess, threading, multiprocessing, tempfile, sqlite3
with multiprocessing.Pool(2) as pool: print(sum(pool.map(abs, [-1, -2])))'
            seq 100 | sort -rn | head -n 1 | xargs echo; diff <(echo a) <(echo a); cat <<< here
            (sleep 0.1; echo late) & wait; mkdir a b; touch a/x
            python3 -c 'import os; os.rename("a/x", "b/x")'; ls b
            timeout 5 rg --files r | wc -l; tar cz r | tar tz | head -n 1; rm -rf r s a b
            """
            done = await sh(box, script)
            assert (done.exit_code, done.stderr, done.denied) == (0, b"", ()), done
            words = done.stdout.decode().split()
            assert words == ["1", "f", "3", "100", "here", "late", "x", "1", "r/"]
            token = gateway.register(StageSession("run-1", "analyst", Model.parse("scripted:shell")))
            env = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8129", "ANTHROPIC_API_KEY": token}
            prompt = b"```\ncp /usr/bin/id mine; chmod 755 mine; ./mine\n```"
            done = await box.run(
                ["lab-agent", "-p", "-", "--model", "scripted:shell"], env=env, stdin=prompt, timeout_s=90
            )
            assert done.exit_code == 0, done
            assert "rule 'commands') does not let ./mine run" in json.loads(done.stdout.splitlines()[-1])["result"]
            assert rules(done) == {"commands": 1}, "the tree of a forked agent is supervised too"
    path.unlink()
