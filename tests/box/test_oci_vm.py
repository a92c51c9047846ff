"""OCI images in real boxes: as a root that has neither Python nor a C library, and as a skill at a path."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.images.oci.maker import Layer, Registry, entry, folder, link, registry
from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.box.egress import Close
from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import OciMount, Policy, Rootfs

pytestmark = [pytest.mark.anyio, pytest.mark.vm, pytest.mark.timeout(240)]
APPLETS = ("sh", "cat", "ls", "id", "env", "cp", "touch", "mkdir", "echo", "test", "nslookup", "wget")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry of this module's own."""
    with registry(tmp_path_factory.mktemp("hub") / "registry") as made:
        yield made


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program, from the package that the guest image's own shell comes from."""
    settings = Settings.from_env()
    (package,) = images.read_manifest(settings, images.resolve(settings))["packages"]["initramfs"]
    deb = settings.cache / "packages" / f"{package['sha256']}.deb"
    directory = tmp_path_factory.mktemp("busybox")
    subprocess.run(["dpkg-deb", "-x", deb, directory], check=True)
    found = next(p for p in directory.rglob("busybox") if p.is_file() and p.parent.name == "bin")
    return found.read_bytes()


@pytest.fixture(scope="module")
def tiny(hub: Registry, busybox: bytes) -> str:
    """A reference to an image of one program, with files of its own and hidden ones."""
    hub.push(
        "tiny:1",
        [
            Layer([
                folder("bin"),
                entry("bin/busybox", busybox, mode=0o755),
                *(link(f"bin/{name}", "busybox") for name in APPLETS),
                entry("app/old", b"old\n"),
                entry("app/kept", b"kept\n"),
                folder("app/dir"),
                entry("app/dir/below", b"below\n"),
                entry("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n"),
            ]),
            Layer([entry("app/.wh.old"), entry("app/dir/.wh..wh..opq"), entry("app/dir/above", b"above\n")]),
        ],
        Env=["PATH=/opt/none:/bin", "GREETING=hello"],
    )  # fmt: skip
    return f"{hub.address}/tiny:1"


async def test_a_root_and_a_skill(boxes: Boxes, hub: Registry, tiny: str) -> None:
    """Its programs, environment and hidden files; our agent in it by its own interpreter; the policy; a skill."""
    hub.push(
        "words:1", [Layer([entry("list.txt", b"alpha\n"), entry("run", b"#!/bin/sh\necho ran\n", mode=0o755)])]
    )
    rootfs = Rootfs(image=tiny, oci=(OciMount(image=f"{hub.address}/words:1", path="/skills/words"),))
    async with await boxes.open(memory_mb=256, rootfs=rootfs) as box:

        async def sh(script: str) -> str:
            done = await box.run(["sh", "-c", script], timeout_s=60)
            return (done.stdout + done.stderr).decode()

        assert await sh("cat /app/kept; ls /app /app/dir") == "kept\n/app:\ndir\nkept\n\n/app/dir:\nabove\n"
        assert await sh("echo $GREETING; id -un; cat /etc/passwd") == (
            "hello\nagent\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n"
            "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n"
        )
        # Our agent, forked, and by its own interpreter, where there is no Python at all.
        for program in ("lab-agent", "/usr/lib/voidbox/bin/lab-agent"):
            assert b"lab-agent" in (await box.run([program, "--version"], timeout_s=60)).stdout
        # The policy is in force there as anywhere.
        said = await sh("cp /bin/busybox /tmp/sh; /tmp/sh; touch /bin/x; echo x > /app/kept")
        assert said.count("ermission denied") + said.count("ead-only") >= 3
        assert await sh("cd /workspace && echo a > output/a && cat output/a") == "a\n"
        # The skill is read-only, and where it was to be.
        assert await sh("cat /skills/words/list.txt; /skills/words/run") == "alpha\nran\n"
        assert "ead-only" in await sh("touch /skills/words/x")
    # A second one is a clone of the first's template, with an allowlist from the image's own programs. All applets
    # are one program to a kernel; the skill's script is another.
    async with await boxes.open(memory_mb=256, rootfs=rootfs, policy=Policy(commands=("sh",))) as box:
        assert box.facts.start == "clone", box.facts.start_note
        done = await box.run(["sh", "-c", "cat /app/kept; /skills/words/run"], timeout_s=60)
        assert done.stdout == b"kept\n"
        assert {denied.rule for denied in done.denied} == {"commands"}


async def test_two_boxes_on_one_root(boxes: Boxes, tiny: str) -> None:
    """At once, from the same layers: neither sees what the other, or its root, writes."""
    rootfs = Rootfs(image=tiny)
    look = "echo $0 >> /workspace/mine; cat /workspace/mine /app/kept; ls /app"
    async with (
        await boxes.open(memory_mb=256, rootfs=rootfs) as one,
        await boxes.open(memory_mb=256, rootfs=rootfs) as other,
    ):
        named = (("one", one), ("other", other))
        for name, box in named:
            await box.put(f"{name}'s\n".encode(), "/app/kept", user="root")
            await box.put(b"", f"/app/{name}", user="root")
        for name, box in named:
            done = await box.run(["sh", "-c", look, name], timeout_s=60)
            assert done.stdout.decode() == f"{name}\n{name}'s\ndir\nkept\n{name}\n", done.stderr


async def test_an_open_network_on_a_root_of_others(boxes: Boxes, tiny: str) -> None:
    """A program of the image's own asks the box's DNS for a name, and gets out by that name."""
    asked: list[bytes] = []

    async def way_out(path: Path) -> Close:
        async def serve(connection: anyio.abc.SocketStream) -> None:
            async with connection:
                asked.append((await connection.receive()).partition(b"\r\n")[0])
                await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
                asked.append((await connection.receive()).partition(b"\r\n")[0])
                await connection.send(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")

        listener, over = await anyio.create_unix_listener(path), anyio.CancelScope()

        async def serving() -> None:
            with over:
                await listener.serve(serve)

        async def close() -> None:
            over.cancel()
            await listener.aclose()

        tasks.start_soon(serving)
        return close

    async with anyio.create_task_group() as tasks:
        policy = Policy(network="open")
        async with await boxes.open(
            memory_mb=256, rootfs=Rootfs(image=tiny), policy=policy, egress=way_out
        ) as box:
            found = await box.run(["nslookup", "example.org"], timeout_s=60)
            assert {b"127.0.0.1", b"198.18."} <= set(re.findall(rb"127\.0\.0\.1|198\.18\.", found.stdout)), found
            got = await box.run(["wget", "-q", "-Y", "off", "-O", "-", "http://example.org:8080/x"], timeout_s=60)
            assert got.stdout == b"hello\n", got
    assert asked == [b"CONNECT example.org:8080 HTTP/1.1", b"GET /x HTTP/1.1"]


async def test_what_cannot_be_put_together(boxes: Boxes, hub: Registry) -> None:
    """Packages are made against the default image; the sentence says so before anything is fetched."""
    with pytest.raises(UserError, match="Packages are layers for the image 'default'"):
        await boxes.open(rootfs=Rootfs(image=f"{hub.address}/none:1", packages=("deb:jq",)))
