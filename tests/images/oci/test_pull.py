"""Images from real registries: with and without sign-in, by tag and digest, for a platform, without a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.oci.maker import (
    DOCKER,
    OCI,
    PASSWORD,
    USER,
    Layer,
    Registry,
    digest,
    entry,
    flooding_registry,
    registry,
    token_registry,
    zstd,
)
from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, UserError
from voidbox_lab.images import oci
from voidbox_lab.images.build import read_manifest, resolve
from voidbox_lab.images.oci import cache
from voidbox_lab.settings import Settings
from voidbox_lab.spec import OciMount

Record = Callable[[Settings], dict[str, dict[str, str]]]


def layer(name: str = "bin/tool", data: bytes = b"tool", **how: object) -> Layer:
    """A layer with one file."""
    return Layer([entry(name, data, mode=0o755)], **how)  # type: ignore[arg-type]


def credentials(path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``skopeo login`` leaves."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    path.write_text(json.dumps({"auths": {address: {"auth": auth}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))


def test_a_tag_is_what_it_was_when_it_was_pulled(hub: Registry, based: Settings) -> None:
    """Each media type; no network afterwards; another content only when asked for."""
    layers = [
        layer("a"),
        layer("b", kind=OCI + "layer.v1.tar", pack=lambda data: data),
        layer("c", kind=OCI + "layer.v1.tar+zstd", pack=zstd),
        layer("e", kind=DOCKER + "image.rootfs.diff.tar.gzip"),
    ]
    hub.push("kinds:1", layers, Env=["PATH=/opt/bin:/bin", "MODE=x"], WorkingDir="/srv")
    first = oci.as_root(based, f"{hub.address}/kinds:1")
    assert [x.name for x in first.layers][:5] == ["oci-0", "oci-1", "oci-2", "oci-3", "runtime"]
    facts = read_manifest(based, first)["oci"]
    assert facts["env"] == {"PATH": "/opt/bin:/bin", "MODE": "x"}
    assert facts["working_dir"] == "/srv"

    hub.push("kinds:1", [layer("d", kind=DOCKER + "image.rootfs.diff.tar.gzip")], docker=True)
    assert oci.as_root(based, f"{hub.address}/kinds:1").digest == first.digest
    renewed = oci.pull(based, f"{hub.address}/kinds:1")
    assert renewed.digest != first.digest
    assert oci.as_root(based, f"{hub.address}/kinds:1").digest == renewed.digest
    assert resolve(based, renewed.name).digest == renewed.digest


def test_without_its_registry(tmp_path: Path, based: Settings) -> None:
    """What was pulled is there; what was not is said in one sentence."""
    with registry(tmp_path / "r") as short:
        short.push("a:1", [layer()])
        first = oci.as_root(based, f"{short.address}/a:1")
    assert oci.as_root(based, f"{short.address}/a:1").digest == first.digest
    with pytest.raises(Unavailable, match=short.address):
        oci.pull(based, f"{short.address}/a:1")
    with pytest.raises(Unavailable, match=short.address):
        oci.as_root(based, f"{short.address}/b:1")


def test_by_digest(hub: Registry, based: Settings) -> None:
    """The digest decides, whatever the tag is by now; one that is not there is the user's error."""
    old = hub.push("pin:1", [layer("old")])
    hub.push("pin:1", [layer("new")])
    image = oci.as_root(based, f"{hub.address}/pin@{old}")
    assert read_manifest(based, image)["oci"]["manifest"] == old
    with pytest.raises(UserError, match="no image"):
        oci.as_root(based, f"{hub.address}/pin@sha256:{'0' * 64}")
    with pytest.raises(UserError, match="no image"):
        oci.as_root(based, f"{hub.address}/nothing:1")


def test_for_this_platform(hub: Registry, based: Settings) -> None:
    """Of an index the one that fits; where none does, the sentence says which there are."""
    ours, theirs = hub.push("many:x", [layer("ours")]), hub.push("many:a", [layer("theirs")], architecture="arm64")
    hub.index("many:1", {"arm64": theirs, "amd64": ours})
    assert read_manifest(based, oci.as_root(based, f"{hub.address}/many:1"))["oci"]["manifest"] == ours
    hub.index("many:arm", {"arm64": theirs})
    with pytest.raises(UserError, match="arm64"):
        oci.as_root(based, f"{hub.address}/many:arm")


def test_with_a_password(tmp_path: Path, based: Settings, monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    """Basic and token sign-in are skopeo's; what it knows gets nowhere."""
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
    with registry(tmp_path / "r", password=True) as closed:
        closed.push("secret:1", [layer()])
        with pytest.raises(Unavailable, match="skopeo login"):
            oci.as_root(based, f"{closed.address}/secret:1")
        credentials(tmp_path / "auth.json", closed.address, monkeypatch)
        oci.as_root(based, f"{closed.address}/secret:1")
    assert len(record(based)) == 1
    for path in based.cache.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert PASSWORD.encode() not in data
            assert base64.b64encode(f"{USER}:{PASSWORD}".encode()) not in data


def test_with_a_token(tmp_path: Path, hub: Registry, based: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the registries of most do it: a refusal that names who gives tokens, a token, the content."""
    hub.push("token:1", [layer("t")])
    with token_registry(hub) as (address, happened):
        credentials(tmp_path / "auth.json", address, monkeypatch)
        oci.as_root(based, f"{address}/token:1")
    assert happened.index("refused") < happened.index("token") < happened.index("served")


def test_many_layers(hub: Registry, based: Settings) -> None:
    """More than there are disks for: the lower ones become one, with what is hidden hidden."""
    layers = [layer(f"f{n}", b"x") for n in range(30)]
    layers[3] = Layer([entry(".wh.f1")])
    hub.push("tall:1", layers)
    image = oci.as_root(based, f"{hub.address}/tall:1")
    assert len(image.layers) == 12 + 2


def test_what_a_registry_may_not_say(hub: Registry, based: Settings) -> None:
    """A layer that is not what the configuration promised; a layer that lies elsewhere; one that leads out."""
    good = layer("x")
    hub.push("liar:1", [good], described={
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
    })  # fmt: skip
    with pytest.raises(ProviderError):
        oci.as_root(based, f"{hub.address}/liar:1")
    hub.push("out:1", [Layer([entry("../../etc/passwd", b"x")])])
    with pytest.raises(ProviderError):
        oci.as_root(based, f"{hub.address}/out:1")


def test_no_more_is_fetched_than_was_announced(
    hub: Registry, based: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too large by its manifest not at all; what is larger than that until it is noticed."""
    monkeypatch.setattr(cache, "SLACK", 1 << 20)
    one = layer("x")
    hub.push("flood:1", [one])
    with flooding_registry(hub, digest(one.blob), most=512 << 20) as (address, taken):
        with pytest.raises(LimitExceeded, match=f"sends more than the {len(one.blob)} bytes"):
            oci.as_root(based, f"{address}/flood:1")
        assert taken[0] < 256 << 20
    assert sum(p.stat().st_size for p in based.cache.rglob("*") if p.is_file()) < 1 << 20

    hub.push("huge:1", [one], changed={"layers": [
        {"mediaType": one.kind, "digest": digest(one.blob), "size": 20 << 30} for _ in range(2)
    ]})  # fmt: skip
    with pytest.raises(LimitExceeded, match="more than 32 GiB"):
        oci.as_root(based, f"{hub.address}/huge:1")


def test_a_manifest_that_is_wrong_about_sizes(hub: Registry, based: Settings) -> None:
    """A blob may be what its digest says, and not what the manifest says; others keep it."""
    one = layer("x")
    hub.push("right:1", [one])
    oci.as_root(based, f"{hub.address}/right:1")
    other = layer("y")
    hub.push("wrong:1", [one, other], changed={"layers": [
        {"mediaType": x.kind, "digest": digest(x.blob), "size": size} for x, size in ((one, 1), (other, 9999))
    ]})  # fmt: skip
    with pytest.raises(ProviderError, match="wrong about its size"):
        oci.as_root(based, f"{hub.address}/wrong:1")
    assert (based.cache / "oci/blobs/sha256" / digest(one.blob)[7:]).read_bytes() == one.blob


def test_as_skills(hub: Registry, based: Settings) -> None:
    """Each a disk of its own beside the root's, known by what it is and where."""
    hub.push("data:1", [layer("a", b"1"), layer("b", b"2")])
    image = oci.with_mounts(based, resolve(based), [OciMount(image=f"{hub.address}/data:1", path="/skills/data")])
    (mount,) = read_manifest(based, image)["mounts"]
    assert (mount["path"], mount["reference"]) == ("/skills/data", f"{hub.address}/data:1")
    assert "voidbox.mounts=1" in image.cmdline
