"""Publishing, finding, verifying and pruning images, with small stand-ins for the files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from voidbox_lab.errors import Unavailable, UserError
from voidbox_lab.images import Image, list_images, prune, read_manifest, resolve, verify
from voidbox_lab.settings import Settings

MakeImage = Callable[..., Image]


def test_what_was_published_is_found(settings: Settings, make_image: MakeImage) -> None:
    """With its layers in order, and the number of them on the command line."""
    image = make_image(settings)
    assert resolve(settings) == image
    assert [layer.name for layer in image.layers] == ["distribution", "guest"]
    assert image.layers[1].path.read_text() == "guest one"
    assert image.cmdline == "console=ttyS0 quiet voidbox.layers=2"
    assert "mitigations=off" in image.arguments("tcg")
    assert "mitigations" not in image.arguments("kvm")
    assert read_manifest(settings, image)["kernel_release"] == "6.1.0-test"
    assert verify(settings, image) == []


def test_same_content_same_digest(settings: Settings, make_image: MakeImage, tmp_path: Path) -> None:
    """In any cache."""
    other = dataclasses.replace(settings, cache=tmp_path / "elsewhere")
    assert make_image(settings).digest == make_image(other).digest != make_image(settings, "two").digest


def test_no_image_says_what_to_run(settings: Settings, make_image: MakeImage) -> None:
    """One sentence with the command."""
    with pytest.raises(Unavailable, match="run `voidbox image build`"):
        resolve(settings)


@pytest.mark.parametrize("name", ["../x", "", "A", "a/b", "a\0"])
def test_a_name_is_never_a_path(settings: Settings, name: str) -> None:
    """Whatever the notebook says."""
    with pytest.raises(UserError):
        resolve(settings, name)


def test_damage(settings: Settings, make_image: MakeImage) -> None:
    """Cut short: refused by resolve. Changed in place: named by verify. A changed manifest: refused."""
    image = make_image(settings)
    layer = image.layers[1].path
    layer.chmod(0o644)
    layer.write_text("GUEST ONE")
    assert resolve(settings) == image
    assert verify(settings, image) == ["layer guest"]
    layer.write_text("gue")
    with pytest.raises(Unavailable, match=r"layer guest .*cut short.*voidbox image build"):
        resolve(settings)
    assert list_images(settings) == []
    manifest = next((settings.cache / "images").rglob("manifest.json"))
    manifest.write_bytes(manifest.read_bytes().replace(b"quiet", b"debug"))
    with pytest.raises(Unavailable, match="damaged"):
        resolve(settings)


@pytest.mark.parametrize("text", ["", "x", "../../..", "0" * 64])
def test_a_damaged_pointer(settings: Settings, make_image: MakeImage, text: str) -> None:
    """Says to build, and leads nowhere."""
    make_image(settings)
    (settings.cache / "images" / "default" / "current").write_text(text)
    with pytest.raises(Unavailable, match="voidbox image build"):
        resolve(settings)


def test_prune_keeps_what_is_current(settings: Settings, make_image: MakeImage) -> None:
    """Older images go, and the files only they used; shared ones and other images stay."""
    old, new, other = (
        make_image(settings, "old"),
        make_image(settings, "new"),
        make_image(settings, "other", name="default+agent"),
    )
    (settings.cache / "building-left").mkdir()
    assert len(list_images(settings)) == 3
    assert prune(settings) > 0
    assert {i.digest for i in list_images(settings)} == {new.digest, other.digest}
    assert resolve(settings) == new
    assert verify(settings, new) == []
    assert not old.kernel.exists()
    assert not (settings.cache / "building-left").exists()
    assert prune(settings) == 0
    # What is built again after a prune is made again, not found in a record of what is gone.
    assert make_image(settings, "old").kernel.exists()


def test_prune_everything(settings: Settings, make_image: MakeImage) -> None:
    """Nothing of any image is left."""
    make_image(settings)
    packages = settings.cache / "packages"
    packages.mkdir()
    (packages / "x.deb").write_bytes(b"deb")
    prune(settings, everything=True)
    with contextlib.suppress(FileNotFoundError):
        (settings.cache / "build.lock").unlink()
    assert [p for p in settings.cache.rglob("*") if p.is_file()] == []
