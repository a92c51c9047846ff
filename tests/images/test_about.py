"""What people see of images: listed, inspected, pruned by their last use; with small stand-ins for the files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from voidbox_lab.cli.app import run
from voidbox_lab.errors import UserError
from voidbox_lab.images import Image, describe, find, list_images, prune, read_manifest, resolve
from voidbox_lab.images.build import MAX_DISKS, publish
from voidbox_lab.images.store import Store
from voidbox_lab.settings import Settings

MakeImage = Callable[..., Image]
DAY_S = 86400.0


def on_top(settings: Settings, below: Image, name: str, *layers: dict[str, Any], **more: Any) -> Image:
    """`below` with `layers` on it, each of a few bytes, as agents and packages are put on."""
    store = Store(settings.cache)
    made = read_manifest(settings, below)
    for data in layers:
        blob = store.step(data, "layers", lambda target, text=data["name"]: target.write_text(text) and None)
        made["layers"].append({"kind": blob.kind, "digest": blob.digest, "size": blob.size} | data)
    return publish(store, name, made | {"from": {"name": below.name, "digest": below.digest}} | more)


def idle(settings: Settings, image: Image, days: float) -> None:
    """As if `image` had been wanted last so long ago."""
    then = time.time() - days * DAY_S
    os.utime(settings.cache / "images" / image.name / "current", (then, then))


AGENT = {"name": "agent-x", "version": "1.2.3", "licence": "All rights reserved."}
JQ = {
    "name": "deb:jq",
    "packages": [
        {"for": "deb:jq", "files": [{"name": "jq", "version": "1.6-2", "digest": "sha256:" + "a" * 64}]},
    ],
}


@pytest.fixture
def stack(settings: Settings, make_image: MakeImage) -> tuple[Image, Image, Image]:
    """A base, an agent on it, and a package on that."""
    base = make_image(settings)
    agent = on_top(settings, base, "default+agent-x", AGENT)
    return base, agent, on_top(settings, agent, "default+agent-x+0123456789ab", JQ, added=["deb:jq"])


def test_an_image_is_described(settings: Settings, stack: tuple[Image, Image, Image]) -> None:
    """Its parts in words; each layer with what it holds and under which licence."""
    base, agent, top = stack
    assert describe(settings, base)["what"] == "distribution packages"
    assert describe(settings, agent)["what"] == "agent agent-x 1.2.3"
    about = describe(settings, top)
    assert about["what"] == "agent agent-x 1.2.3, deb:jq"
    assert about["size"] == sum(layer.size for layer in top.layers)
    assert about["from"] == {"name": agent.name, "digest": agent.digest}
    assert [layer["name"] for layer in about["layers"]] == ["distribution", "guest", "agent-x", "deb:jq"]
    assert about["layers"][2]["licence"] == AGENT["licence"]
    assert about["layers"][3]["packages"] == JQ["packages"]
    assert [layer["digest"] for layer in about["layers"]] == [layer.digest for layer in top.layers]
    assert about["current"]
    assert abs(about["last_used"] - time.time()) < 60


def test_an_image_is_found_by_name_or_digest(settings: Settings, make_image: MakeImage) -> None:
    """The current one of a name; older ones by digest; what fits none or several is refused."""
    old, new = make_image(settings, "old"), make_image(settings, "new")
    assert find(settings, "default") == new
    assert find(settings, old.digest) == old
    assert find(settings, old.digest[7:19]) == old
    assert not describe(settings, old)["current"]
    for text in ("nope", "sha256:", old.digest[7:12], "../default", "f" * 64):
        with pytest.raises(UserError, match=r"is no image \(there are default\)"):
            find(settings, text)


def test_of_an_oci_image_it_says_which(
    settings: Settings, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference and the digest that it had, of the root and of what is mounted."""
    base = make_image(settings)
    origin = {"reference": "docker.io/library/x:1", "digest": "sha256:" + "b" * 64}
    disk = read_manifest(settings, base)["layers"][0]
    mount = {"name": "mount /skills/y", "path": "/skills/y", "reference": "docker.io/library/y:2"}
    image = on_top(
        settings, base, "oci-x", oci=origin, mounts=[disk | mount | {"digest_of": "sha256:" + "d" * 64}]
    )
    about = describe(settings, image)
    assert (about["kind"], about["oci"], about["packages"]) == ("oci", origin, [])
    assert about["mounts"][0]["path"] == "/skills/y"
    assert about["mounts"][0]["digest_of"] == "sha256:" + "d" * 64
    monkeypatch.setenv("VOIDBOX_CACHE", str(settings.cache))
    on_top(settings, image, "oci-x+agent-x", AGENT)
    for text in ("x:1", "docker.io/x:1", "docker.io/library/x:1"):
        assert find(settings, text) == image
    for text in ("x:2", "x@sha256:" + "b" * 64, "y:2"):
        with pytest.raises(UserError, match="is no image"):
            find(settings, text)
    assert run(["image", "inspect", "x:1"]) == 0
    shown = capsys.readouterr().out
    assert f"docker.io/library/x:1, {origin['digest']}\n" in shown
    assert "docker.io/library/y:2, sha256:dddd" in shown


def test_what_has_too_many_layers_hides_nothing(settings: Settings, make_image: MakeImage) -> None:
    """It is refused before anything of it is written; those that are there can still be listed."""
    base = make_image(settings)
    with pytest.raises(UserError, match="room for"):
        on_top(settings, base, "default+many", *({"name": f"x{n}"} for n in range(MAX_DISKS)))
    assert list_images(settings) == [base]
    assert [p.name for p in (settings.cache / "images").iterdir()] == ["default"]


def test_prune_by_last_use(settings: Settings, stack: tuple[Image, Image, Image]) -> None:
    """An image that is wanted keeps those below it, though nobody asks for them; the base stays anyway."""
    base, agent, top = stack
    other = on_top(settings, base, "default+ba9876543210", JQ, added=["deb:jq"])
    for image in (base, agent, other):
        idle(settings, image, 40)
    prune(settings, unused_for_s=50 * DAY_S)
    assert len(list_images(settings)) == 4
    prune(settings, unused_for_s=30 * DAY_S)
    assert {i.digest for i in list_images(settings)} == {base.digest, agent.digest, top.digest}
    assert resolve(settings, top.name) == top
    idle(settings, top, 31)
    assert prune(settings, unused_for_s=30 * DAY_S) > 0
    assert list_images(settings) == [base]


def test_prune_takes_what_stood_on_a_replaced_image(
    settings: Settings, make_image: MakeImage, stack: tuple[Image, Image, Image]
) -> None:
    """However lately it was wanted: it would be put together anew."""
    new = make_image(settings, "new")
    prune(settings)
    assert list_images(settings) == [new]


def test_the_commands_say_it(
    settings: Settings,
    stack: tuple[Image, Image, Image],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """List, inspect and prune, for people and as JSON."""
    monkeypatch.setenv("VOIDBOX_CACHE", str(settings.cache))
    monkeypatch.setenv("VOIDBOX_HOME", str(settings.data))
    top = stack[-1]

    def said(*argv: str) -> str:
        assert run(list(argv)) == 0
        return capsys.readouterr().out

    lines = said("image", "list").splitlines()
    assert len(lines) == 3
    assert lines[2].startswith(f"{top.name}  {top.digest[:19]}  4 layers, ")
    assert lines[2].endswith("ago  agent agent-x 1.2.3, deb:jq")
    listed = json.loads(said("image", "list", "--json"))
    assert [one["name"] for one in listed] == [image.name for image in stack]
    shown = said("image", "inspect", top.name)
    for word in (top.digest, "6.1.0-test", "deb:jq", "jq 1.6-2", AGENT["licence"]):
        assert word in shown
    assert json.loads(said("image", "inspect", top.digest[7:19], "--json")) == listed[2]
    idle(settings, top, 3)
    idle(settings, stack[1], 3)
    assert json.loads(said("image", "prune", "--unused-for", "2d", "--json"))["freed"] > 0
    assert [one["name"] for one in json.loads(said("image", "list", "--json"))] == ["default"]
    assert run(["image", "inspect", top.name]) == 2
    assert run(["image", "prune", "--unused-for", "soon"]) == 2
    assert "such as 30d" in capsys.readouterr().err
