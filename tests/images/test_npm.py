"""Packages of npm, by the real npm from a registry on loopback: what they may make it fetch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.images.layers import npm
from voidbox_lab.images.layers.base import Work
from voidbox_lab.images.layers.reference import parse
from voidbox_lab.images.model import silent
from voidbox_lab.images.store import Store
from voidbox_lab.images.unpack import Tree
from voidbox_lab.settings import Settings


class Registry:
    """Packages of one version each, and files; it remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                found = registry.files.get(self.path.replace("%2f", "/"))
                self.send_response(404 if found is None else 200)
                self.end_headers()
                self.wfile.write(found or b"{}")

            def log_message(self, *_: object) -> None:
                """Not into the test's output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Registry:
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)

    def integrity(self, name: str) -> str:
        """What the registry says of a package's tarball."""
        return str(json.loads(self.files[f"/{name}"])["versions"]["1.0.0"]["dist"]["integrity"])

    def put(self, name: str, *, other_files: dict[str, str] | None = None, **fields: Any) -> str:
        """A package, with `fields` in its package.json; returns its tarball's path."""
        package = {"name": name, "version": "1.0.0", **fields}
        files = {"package.json": json.dumps(package), "index.js": "", **(other_files or {})}
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for path, text in files.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
        path = f"/{name}/-/{name}-1.0.0.tgz"
        self.files[path] = out.getvalue()
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(out.getvalue()).digest()).decode()
        dist = {"tarball": self.url + path, "integrity": integrity}
        document = package | {"dist": dist, "_hasShrinkwrap": "npm-shrinkwrap.json" in files}
        self.files[f"/{name}"] = json.dumps(
            {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": document}}
        ).encode()
        return path


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """The one that npm asks."""
    assert shutil.which("npm"), "npm is not installed; run scripts/setup --dev"
    with Registry() as made:
        monkeypatch.setenv("npm_config_registry", made.url)
        monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
        yield made


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that is there once anything has run ``git``."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "git"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    return tmp_path / "ran"


@pytest.fixture
def work(settings: Settings, tmp_path: Path) -> Work:
    """What plans and fills a layer; of the image below npm's packages need to know nothing."""
    (tmp_path / "work").mkdir()
    return Work(Store(settings.cache), cast("Any", None), tmp_path / "work", silent)


def test_a_package_and_what_it_depends_on(registry: Registry, work: Work, tmp_path: Path) -> None:
    """From the registry, into a layer with its program."""
    registry.put("below")
    registry.put("tool", dependencies={"below": "^1.0.0"}, bin={"tool": "index.js"})
    lock = npm.plan(work, parse("npm:tool"))
    assert [(f["name"], f["version"]) for f in npm.files(lock)] == [("below", "1.0.0"), ("tool", "1.0.0")]
    npm.fill(work, lock, Tree(tmp_path / "root"))
    modules = tmp_path / "root/usr/lib/voidbox-skills/npm/tool/node_modules"
    assert sorted(p.name for p in modules.iterdir() if not p.name.startswith(".")) == ["below", "tool"]
    assert (tmp_path / "root/usr/local/bin/tool").is_symlink()


OUTSIDE: dict[str, Callable[[Registry, Path], str]] = {
    "address": lambda registry, _: f"{registry.url}/inner/secret.tgz",
    "git": lambda _, path: f"git+file://{path}/repository",
    "github": lambda *_: "github:owner/repository",
    "file": lambda _, path: f"file:{path}/secret.tgz",
    "directory": lambda _, path: f"file:{path}/secret",
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_a_package_points_at_is_not_fetched(
    registry: Registry, git: Path, work: Work, tmp_path: Path, kind: str
) -> None:
    """No address, repository, file or directory that only its author chose."""
    data = registry.files[registry.put("secret")]
    registry.files["/inner/secret.tgz"] = data
    (tmp_path / "secret.tgz").write_bytes(data)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/package.json").write_text('{"name": "secret", "version": "1.0.0"}')
    registry.put("tool", dependencies={"secret": OUTSIDE[kind](registry, tmp_path)})
    with pytest.raises(UserError, match="npm:tool, since it depends on what comes from outside the registry"):
        npm.plan(work, parse("npm:tool"))
    assert not [path for path in registry.asked if "secret" in path]
    assert not git.exists()


def test_an_older_npm_runs_no_git(
    registry: Registry, git: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows nothing of ``--allow-git``."""
    kept = tuple(option for option in npm._REGISTRY_ONLY if not option.startswith("--allow-"))
    monkeypatch.setattr(npm, "_REGISTRY_ONLY", (*kept, "--allow-git=all"))
    registry.put("tool", dependencies={"secret": OUTSIDE["git"](registry, tmp_path)})
    with pytest.raises(Exception, match="npm:tool"):
        npm.plan(work, parse("npm:tool"))
    assert not git.exists()


def wrapped(resolved: str, integrity: str) -> dict[str, str]:
    """The lock file of a package's own that says where ``below`` is."""
    package = {"name": "tool", "version": "1.0.0"}
    below = {"version": "1.0.0", "resolved": resolved, "integrity": integrity}
    packages = {"": package | {"dependencies": {"below": "^1.0.0"}}, "node_modules/below": below}
    lock = package | {"lockfileVersion": 3, "requires": True, "packages": packages}
    return {"npm-shrinkwrap.json": json.dumps(lock)}


def test_a_package_with_a_lock_file_of_its_own(registry: Registry, work: Work, tmp_path: Path) -> None:
    """As many tools have it; what that names is in the registry."""
    own = wrapped(registry.url + registry.put("below"), registry.integrity("below"))
    registry.put("tool", dependencies={"below": "^1.0.0"}, other_files=own)
    npm.fill(work, npm.plan(work, parse("npm:tool")), Tree(tmp_path / "root"))
    assert list((tmp_path / "root").rglob("below/package.json"))


def test_a_lock_file_of_its_own_leads_nowhere_else(registry: Registry, work: Work) -> None:
    """By which something that is in the registry would be fetched from somewhere else."""
    with Registry() as inner:
        path = inner.put("below")
        registry.put("below")
        own = wrapped(inner.url + path, inner.integrity("below"))
        registry.put("tool", dependencies={"below": "^1.0.0"}, other_files=own)
        with pytest.raises(UserError, match="outside the registry"):
            npm.plan(work, parse("npm:tool"))
        assert inner.asked == []


def test_what_was_pinned_from_outside_is_not_fetched(registry: Registry, work: Work, tmp_path: Path) -> None:
    """By an older version of this program, which did not ask."""
    with Registry() as inner:
        path = inner.put("below")
        registry.put("below")
        registry.put("tool", dependencies={"below": "^1.0.0"})
        lock = npm.plan(work, parse("npm:tool"))
        lock["lock"]["packages"]["node_modules/below"]["resolved"] = inner.url + path
        with pytest.raises(UserError, match="outside the registry"):
            npm.fill(work, lock, Tree(tmp_path / "root"))
        assert inner.asked == []
