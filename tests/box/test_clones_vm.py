"""Twenty clones of one template: what must differ does, and the template knows nothing of any of them."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tests.machines.guests import qemus
from voidbox_lab.box import Box, Boxes, birth, boot_data
from voidbox_lab.box.birth import Birth
from voidbox_lab.machines import Recipe, Template, TemplateStore
from voidbox_lab.machines.sparse import data_runs
from voidbox_lab.machines.templates import pages
from voidbox_lab.settings import Settings
from voidbox_lab.wire import protocol as p

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

CLONES = 20
AT_ONCE = 4
MEMORY_MB = 136
"""As little as boots, and no other test's: the template is this module's own."""
SENTINEL = "sk-ant-" + secrets.token_hex(24)

# As root. struct vm_sockets: the ioctl returns the CID (include/uapi/linux/vm_sockets.h).
FACTS = r"""
uname -n
cat /etc/machine-id
cat /proc/sys/kernel/random/boot_id
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; echo
python3 -c "import ssl; print(ssl.RAND_bytes(16).hex())"
python3 -c "import random; print(random.random())
import fcntl, struct
print(struct.unpack('I', fcntl.ioctl(open('/dev/vsock'), 0x7b9, bytes(4)))[0])"
ls /sys/class/net
date +%s.%N
"""
NAMES = ("hostname", "machine_id", "boot_id", "urandom", "ssl", "random", "cid", "interfaces", "time")


@dataclass
class Fork:
    """Everything that the module's clones showed."""

    boxes: list[Box] = field(default_factory=list)
    facts: list[dict[str, str]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """Host time before and after a clone told its own."""
    births: dict[str, Birth] = field(default_factory=dict)
    uuids: list[str] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Box ids, machine ids and entropy, in hexadecimal."""
    template: Template | None = None
    memory: bytes = b""
    """The template's, in the resident file: only what is data."""
    memory_digest: str = ""
    """Of the resident file, packed again."""


@pytest.fixture(scope="module")
async def fork(boxes: Boxes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fork]:
    """A template made with a provider's key in the host's environment, and `CLONES` of it, all up at once."""
    seen = Fork()

    def token_bytes(count: int) -> bytes:
        seen.secrets.append(secrets.token_bytes(count))
        return seen.secrets[-1]

    def token_hex(count: int) -> str:
        seen.tokens.append(secrets.token_hex(count))
        return seen.tokens[-1]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "VOIDBOX_TEST_SENTINEL"):
            patch.setenv(name, SENTINEL)
        drawn = SimpleNamespace(token_bytes=token_bytes, token_hex=token_hex, randbelow=secrets.randbelow)
        for module in (birth, boot_data):
            patch.setattr(module, "secrets", drawn)
        settings = replace(Settings.from_env(), spares=0).prepare()
        async with Boxes(settings, boxes.hypervisor) as made, AsyncExitStack() as stack:
            made.templates.store = TemplateStore(tmp_path_factory.mktemp("templates"))
            born = made._born

            async def remember(recipe: Recipe, up: Any) -> Birth:
                new = await born(recipe, up)
                seen.births[new.id] = new
                return new

            patch.setattr(made, "_born", remember)
            turns = anyio.Semaphore(AT_ONCE)

            async def one() -> None:
                async with turns:
                    box = await stack.enter_async_context(await made.open(memory_mb=MEMORY_MB))
                    before = time.time()
                    done = await box.run(["sh", "-c", FACTS], user="root", timeout_s=60)
                    assert done.exit_code == 0, done.stderr
                    lines = done.stdout.decode().splitlines()
                    facts = dict(zip(NAMES, lines, strict=True))
                    seen.boxes.append(box)
                    seen.facts.append(facts)
                    seen.spans.append((before, time.time()))

            async with anyio.create_task_group() as tasks:
                for _ in range(CLONES):
                    tasks.start_soon(one)
            loaded = await made.templates.resident(await made.recipe(memory_mb=MEMORY_MB))
            seen.template = loaded.template
            with (loaded.path / "memory").open("rb") as file:
                runs = list(data_runs(file.fileno()))
                seen.memory = b"".join(os.pread(file.fileno(), end - at, at) for at, end in runs)
            seen.memory_digest = pages.pack(
                loaded.path / "memory", tmp_path_factory.mktemp("again") / "memory.pages"
            )
            handle = boxes.hypervisor._connection.handle
            seen.uuids = [handle.lookupByName(box.id).UUIDString() for box in seen.boxes]
            yield seen


async def test_all_are_clones_of_one_template(fork: Fork) -> None:
    """None of them booted, so the rest of this module is about clones."""
    assert [box.facts.start for box in fork.boxes] == ["clone"] * CLONES
    assert {box.facts.start_note for box in fork.boxes} == {""}
    assert len(fork.births) == CLONES


@pytest.mark.parametrize("what", ["hostname", "machine_id", "boot_id", "urandom", "ssl", "random", "cid"])
async def test_told_apart_from_inside(fork: Fork, what: str) -> None:
    """No two clones have the same name, identity or random numbers."""
    values = [facts[what] for facts in fork.facts]
    assert all(values)
    assert len(set(values)) == CLONES


async def test_told_apart_from_outside(fork: Fork) -> None:
    """Names, domains' UUIDs, vsock addresses, handshake secrets; and both sides agree on what is whose."""
    cids = [fork.births[box.id].transport.cid for box in fork.boxes]
    for values in (fork.uuids, cids, [box.id for box in fork.boxes], fork.secrets):
        assert len(set(values)) == len(values) == CLONES
    assert [facts["hostname"] for facts in fork.facts] == [box.id for box in fork.boxes]
    assert [int(facts["cid"]) for facts in fork.facts] == cids
    assert {facts["machine_id"] for facts in fork.facts} <= set(fork.tokens)
    assert all(len(secret) == 32 for secret in fork.secrets)


async def test_clocks_are_right(fork: Fork) -> None:
    """Within two seconds of the host's, however old the template is."""
    for facts, (before, after) in zip(fork.facts, fork.spans, strict=True):
        assert before - 2 < float(facts["time"]) < after + 2


async def test_no_interface_but_loopback(fork: Fork) -> None:
    """So there is no MAC address to be unique."""
    assert {facts["interfaces"] for facts in fork.facts} == {"lo"}


def forms(token: str) -> tuple[bytes, bytes]:
    """A token as text and as the bytes that it spells."""
    return token.encode(), bytes.fromhex(token)


async def test_the_template_knows_no_clone(fork: Fork) -> None:
    """Its memory, in the tmpfs and on disk, holds no secret, entropy, identity or random number of a clone."""
    assert fork.template is not None
    file = fork.template.files["memory.pages"]
    assert fork.memory_digest == file.sha256, "what is searched is what lies on disk as well"
    assert p.TEMPLATE_LINE.encode() in fork.memory, "this is not the guest's memory"
    needles = [form for secret in fork.secrets for form in forms(secret.hex())]
    needles += [form for token in fork.tokens if len(token) >= 32 for form in forms(token)]
    needles += [form for facts in fork.facts for form in forms(facts["urandom"]) + forms(facts["ssl"])]
    needles += [text for facts in fork.facts for text in (facts["boot_id"].encode(), facts["hostname"].encode())]
    assert len(needles) == CLONES * (2 + 4 + 4 + 2)
    assert [needle for needle in needles if needle in fork.memory] == []


async def test_the_template_knows_no_key(fork: Fork) -> None:
    """Neither the memory, nor the disk, nor the device state, nor what is said about them."""
    assert fork.template is not None
    assert SENTINEL.encode() not in fork.memory
    for path in fork.template.path.iterdir():
        assert SENTINEL.encode() not in path.read_bytes(), path


def guest_memory(box: str, size: int) -> bytes:
    """All of a running guest's memory, as its QEMU has it mapped."""
    (pid,) = qemus(box)
    pattern = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.*/(?:ram|memory)(?: \(deleted\))?$", re.MULTILINE)
    spans = [[int(at, 16) for at in span] for span in pattern.findall(Path(f"/proc/{pid}/maps").read_text())]
    (span,) = [span for span in spans if span[1] - span[0] == size]
    with Path(f"/proc/{pid}/mem").open("rb") as file:
        file.seek(span[0])
        return file.read(size)


async def test_a_clone_knows_no_other(fork: Fork) -> None:
    """Its memory holds its own name, and of the others neither secret nor name."""
    for box in fork.boxes[:: CLONES // 2]:
        memory = guest_memory(box.id, MEMORY_MB << 20)
        assert box.id.encode() in memory, "this is not the guest's memory"
        secret = fork.births[box.id]._secret
        foreign = [form for other in fork.secrets if other != secret for form in forms(other.hex())]
        foreign += [other.id.encode() for other in fork.boxes if other is not box]
        assert len(foreign) == 3 * (CLONES - 1)
        assert [needle for needle in foreign if needle in memory] == []
