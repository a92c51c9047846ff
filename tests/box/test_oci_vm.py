"""OCI images in real boxes: as a root that has neither Python nor a C library, and as a skill at a path."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.oci.maker import Layer, Registry, entry, folder, link, registry
from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import OciMount, Policy, Rootfs

pytestmark = [pytest.mark.anyio, pytest.mark.vm, pytest.mark.timeout(240)]
APPLETS = ("sh", "cat", "ls", "id", "env", "cp", "touch", "mkdir", "echo", "test")


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


async def test_a_root_and_a_skill(boxes: Boxes, hub: Registry, busybox: bytes, tmp_path: Path) -> None:
    """Its programs, environment and hidden files; our agent in it by its own interpreter; the policy; a skill."""
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
    hub.push(
        "words:1", [Layer([entry("list.txt", b"alpha\n"), entry("run", b"#!/bin/sh\necho ran\n", mode=0o755)])]
    )
    rootfs = Rootfs(
        image=f"{hub.address}/tiny:1", oci=(OciMount(image=f"{hub.address}/words:1", path="/skills/words"),)
    )
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


async def test_what_cannot_be_put_together(boxes: Boxes, hub: Registry) -> None:
    """Packages are made against the default image; the sentence says so before anything is fetched."""
    with pytest.raises(UserError, match="Packages are layers for the image 'default'"):
        await boxes.open(rootfs=Rootfs(image=f"{hub.address}/none:1", packages=("deb:jq",)))
