"""Agent CLIs as layers, with a stand-in for npm on PATH: what is checked, kept, and said."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import filelock
import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, UserError
from voidbox_lab.images import Image, add_agent, resolve, tarballs, tools
from voidbox_lab.images.store import Store
from voidbox_lab.settings import Settings

MakeImage = Callable[..., Image]


def integrity(data: bytes) -> str:
    """A subresource-integrity string."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def tarball(**members: bytes) -> bytes:
    """A package as npm packs it; underscores in names stand for dots."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in {"claude": b"binary", "LICENSE_md": b"licence", "evil": b"evil", **members}.items():
            info = tarfile.TarInfo("package/" + name.replace("_", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Installs a script as `npm` that packs `package` and names `promised` as its integrity; returns its log."""

    def install(package: bytes, promised: str | None = None, status: int = 0) -> Path:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        (tmp_path / "package.tgz").write_bytes(package)
        packed = json.dumps([{"filename": "package.tgz"}])
        script = directory / "npm"
        script.write_text(
            f'#!/bin/sh\necho "$1 $2" >> {tmp_path}/calls\n'
            f"[ {status} = 0 ] || {{ echo 'npm error 403 Forbidden' >&2; exit {status}; }}\n"
            f"case $1 in pack) cp {tmp_path}/package.tgz \"$PWD\"; echo '{packed}';;\n"
            f"view) echo '\"{promised or integrity(package)}\"';; esac\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return tmp_path / "calls"

    return install


def test_an_agent_is_a_layer_on_top(
    settings: Settings, make_image: MakeImage, fake_npm: Callable[..., Path]
) -> None:
    """Under a name of its own, fetched once, with only the members named; the licence is said first."""
    image, calls = make_image(settings), fake_npm(tarball())
    said: list[str] = []
    added = add_agent(settings, image, version="9.9.9", progress=lambda p: said.append(p.message))
    assert added.name == "default+claude-code"
    assert [layer.name for layer in added.layers] == ["distribution", "guest", "claude-code"]
    assert added.cmdline.endswith("voidbox.layers=3")
    assert resolve(settings, "default+claude-code") == added
    assert resolve(settings) == image
    assert "proprietary" in said[0]
    assert b"evil" not in added.layers[2].path.read_bytes()
    assert b"binary" in added.layers[2].path.read_bytes()
    # Again, and on top of itself: nothing is fetched, nothing is stacked twice.
    assert add_agent(settings, image, version="9.9.9") == added == add_agent(settings, added, version="9.9.9")
    assert calls.read_text().splitlines() == [
        "pack @anthropic-ai/claude-code-linux-x64@9.9.9",
        "view @anthropic-ai/claude-code-linux-x64@9.9.9",
    ]


def test_a_layer_that_is_there_waits_for_no_lock(
    settings: Settings, make_image: MakeImage, fake_npm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may be building for half an hour."""
    image, _ = make_image(settings), fake_npm(tarball())
    added = add_agent(settings, image, version="9.9.9")
    monkeypatch.setattr(Store, "lock", None)
    assert add_agent(settings, image, version="9.9.9") == added


def test_a_slow_tool_gets_all_its_input() -> None:
    """And one past its bound is ended."""
    data = bytes(300_000)
    assert tools.run(["/bin/sh", "-c", "sleep 0.5; cat"], timeout_s=20, stdin=data) == data
    with pytest.raises(LimitExceeded, match="did not end"):
        tools.run(["/bin/sh", "-c", "sleep 30 & wait"], timeout_s=0.3)


@pytest.mark.anyio
@pytest.mark.parametrize("held", [False, True])
async def test_cancelling_ends_the_fetch(
    settings: Settings, make_image: MakeImage, fake_npm: Callable[..., Path], tmp_path: Path, held: bool
) -> None:
    """npm with all it started, and the wait for the lock; nothing half-made stays."""
    image, calls = make_image(settings), fake_npm(tarball())
    (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\nsleep 30 & echo $! > {calls}\nwait\n")
    with filelock.FileLock(settings.cache / "build.lock") if held else contextlib.nullcontext():
        began = time.monotonic()
        with anyio.move_on_after(1):
            await anyio.to_thread.run_sync(add_agent, settings, image)
        assert time.monotonic() - began < 5
    assert not list(settings.cache.glob("building-*"))
    if not held:
        with anyio.fail_after(5):
            while (
                stat := Path(f"/proc/{calls.read_text().strip()}/stat")
            ).exists() and ") Z" not in stat.read_text():
                await anyio.sleep(0.02)


def test_the_tested_version_is_pinned(
    settings: Settings, make_image: MakeImage, fake_npm: Callable[..., Path]
) -> None:
    """Whatever the registry says of it, another file is refused and leaves nothing."""
    fake_npm(tarball())
    with pytest.raises(ProviderError, match="not the file that its integrity promises"):
        add_agent(settings, make_image(settings))
    assert not list(settings.cache.glob("building-*"))


def test_refusals_name_their_reason(
    settings: Settings, make_image: MakeImage, fake_npm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry's no, a missing npm, an unknown agent, a version that is none, a package without the binary."""
    image = make_image(settings)
    fake_npm(tarball(), status=1)
    with pytest.raises(Unavailable, match=r"403 Forbidden.*npm's registry"):
        add_agent(settings, image)
    with pytest.raises(UserError, match="known are claude-code"):
        add_agent(settings, image, "../default")
    for version in ("latest", "1.2.3; rm", "--help"):
        with pytest.raises(UserError, match="is not a version"):
            add_agent(settings, image, version=version)
    fake_npm(b"not a tarball")
    with pytest.raises(ProviderError, match="damaged"):
        add_agent(settings, image, version="1.0.0")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="not installed"):
        add_agent(settings, image, version="2.0.0")


@pytest.mark.parametrize("text", ["", "sha512-", "sha256-" + "A" * 44, "sha512-????", "sha512-QUJD"])
def test_a_malformed_integrity_never_passes(tmp_path: Path, text: str) -> None:
    """Least of all by comparing equal to nothing."""
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(ProviderError, match="not a sha512 integrity"):
        tarballs.check_integrity(tmp_path / "f", text)
    tarballs.check_integrity(tmp_path / "f", integrity(b""))
