"""The real image: booted by bare QEMU, without libvirt and without our guest agent, and built a second time.

A layer of the test's own goes on top, with its own `/usr/lib/voidbox/init.py`: what is tested here is the
image and the initramfs, not the agent.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from voidbox_lab.errors import Unavailable
from voidbox_lab.images import TCG_CPU, Image, build, resolve, squashfs, verify
from voidbox_lab.settings import Settings

pytestmark = pytest.mark.vm
BOOT_TIMEOUT_S = 90.0

PROBE = r"""
import ctypes, json, os, socket, subprocess
def says(command):
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    return (done.stdout + done.stderr).strip()
owner = lambda p: [os.stat(p).st_uid, oct(os.stat(p).st_mode & 0o7777)]
open("/workspace/written", "w").write("x" * 100000)
socket.socket(socket.AF_VSOCK).close()
print("PROBE", json.dumps({
    "root": next(l for l in open("/proc/mounts") if l.split()[1] == "/").split()[2],
    "owners": {p: owner(p) for p in ("/", "/home/agent", "/workspace/output", "/tmp", "/root")},
    "mounts": sorted(l.split()[1] for l in open("/proc/mounts")),
    "set_id": says("find /usr -perm /6000 | head"),
    "tools": [says(c) for c in ("command -v jq curl node; echo none", "awk 'BEGIN{print 6*7}'",
                                "git --version | cut -c1-11", "printf b | sed s/b/c/ | gzip | gunzip",
                                "id -un 1000", "rg --version | cut -c1-7 | head -1",
                                "cat /workspace/written | wc -c", "lab-agent --version | cut -c1-9")],
    "certificates": __import__("ssl").create_default_context().cert_store_stats()["x509_ca"] > 50,
    "cached": json.__cached__ and os.path.exists(json.__cached__),
    "dangling": says("find /usr/bin /usr/lib/x86_64-linux-gnu -xtype l | head"),
    "fw_cfg": os.path.isdir("/sys/firmware/qemu_fw_cfg"),
}), flush=True)
ctypes.CDLL(None).reboot(0x4321FEDC)
"""


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The cache that the whole suite shares."""
    return Settings.from_env()


@pytest.fixture(scope="module")
def image(settings: Settings) -> Image:
    """The default image, built if need be."""
    if shutil.which("qemu-system-x86_64") is None:
        raise Unavailable("qemu-system-x86_64 is not installed; run `sudo apt-get install qemu-system-x86`.")
    try:
        return resolve(settings)
    except Unavailable:
        return build(settings)


def boot(image: Image, directory: Path, layers: Sequence[Path], cmdline: str) -> str:
    """All that the guest says on its console until it goes off."""
    scratch = directory / "scratch.img"
    subprocess.run(["cp", "--sparse=always", image.scratch, scratch], check=True)
    scratch.chmod(0o600)
    drives = [f"file={path},format=raw,if=none,read-only=on,file.locking=off" for path in layers]
    drives.append(f"file={scratch},format=raw,if=none")
    disks = [
        word
        for n, drive in enumerate(drives)
        for word in ("-drive", f"{drive},id=d{n}", "-device", f"virtio-blk-pci,drive=d{n}")
    ]
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-M", "q35,usb=off,hpet=off", "-accel", "tcg", "-cpu", TCG_CPU, "-m", "256",
        "-kernel", image.kernel, "-initrd", image.initrd, "-append", cmdline, *disks,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, timeout=BOOT_TIMEOUT_S, check=False
    )
    return done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")


def test_the_image_boots_to_pid_1(image: Image, tmp_path: Path) -> None:
    """Three layers joined, the topmost winning; a writable root; tools that run; nothing set-id."""
    code = tmp_path / "root" / "usr" / "lib" / "voidbox"
    code.mkdir(parents=True)
    (code / "init.py").write_text(PROBE)
    squashfs.make(tmp_path / "root", tmp_path / "top.squashfs", compression="none")
    layers = [*(layer.path for layer in image.layers), tmp_path / "top.squashfs"]
    cmdline = image.arguments("tcg").replace("voidbox.layers=2", "voidbox.layers=3")
    said = boot(image, tmp_path, layers, cmdline)
    line = next((line for line in said.splitlines() if line.startswith("PROBE ")), None)
    assert line, said
    facts = json.loads(line.removeprefix("PROBE "))
    assert facts["root"] == "overlay"
    assert facts["owners"] == {
        "/": [0, "0o755"],
        "/home/agent": [1000, "0o755"],
        "/workspace/output": [1000, "0o755"],
        "/tmp": [0, "0o1777"],
        "/root": [0, "0o700"],
    }
    assert facts["mounts"] == ["/", "/dev", "/proc", "/run", "/sys"]
    assert facts["tools"] == ["none", "42", "git version", "c", "agent", "ripgrep", "100000", "lab-agent"]
    assert (facts["set_id"], facts["dangling"]) == ("", "")
    assert facts["certificates"] is facts["cached"] is facts["fw_cfg"] is True
    assert "reboot: Power down" in said


@pytest.mark.parametrize(
    ("argument", "why"),
    [("voidbox.layers=5", "to mount the root file system"), ("voidbox.layers=x", "for want of voidbox.layers")],
)
def test_what_fails_is_said_in_one_line(image: Image, tmp_path: Path, argument: str, why: str) -> None:
    """And the machine goes off by itself instead of hanging."""
    cmdline = image.arguments("tcg").replace("voidbox.layers=2", argument)
    said = boot(image, tmp_path, [layer.path for layer in image.layers], cmdline)
    assert [line for line in said.splitlines() if line.startswith("voidbox-init: FAILED ") and why in line], said


def test_the_image_is_whole(settings: Settings, image: Image) -> None:
    """Every byte is what its digest says."""
    assert verify(settings, image) == []


def test_another_build_gives_the_same_image(settings: Settings, tmp_path: Path) -> None:
    """From the same packages in another cache, with another umask and hash seed: the same digest."""
    first = build(settings)
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("packages", "locks"):
        shutil.copytree(settings.cache / name, cache / name)
    code = (
        "import os, pathlib; os.umask(0o077)\n"
        "from voidbox_lab.images import build\nfrom voidbox_lab.settings import Settings\n"
        "print(build(Settings.from_env()).digest)"
    )
    env = os.environ | {"VOIDBOX_CACHE": str(cache), "PYTHONHASHSEED": "4242", "SOURCE_DATE_EPOCH": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == first.digest
