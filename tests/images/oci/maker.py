"""OCI images made in a test, and registries to put them in: Debian's docker-registry, with and without sign-in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.ports import free_port

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
USER, PASSWORD = "reader", "a-test-password"
_HTPASSWD = "reader:$2y$05$uHQ9rtK4q9WT7kpkrUKguO/0jmo10zBDAzFqSfOlH8k8HYpjJhIfC\n"
"""`USER` and `PASSWORD` as ``htpasswd -B`` writes them; the registry takes bcrypt alone."""
START_S = 20.0


def digest(data: bytes) -> str:
    """``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime = 0o644, len(data), 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A directory."""
    return entry(name, **{"type": tarfile.DIRTYPE, "mode": 0o755, **fields})


def link(name: str, to: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic or hard link."""
    return entry(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=to)


def tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    """`data`, compressed by zstd(1)."""
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


@dataclass
class Layer:
    """One layer: what is in it, and how it is sent."""

    entries: Sequence[tuple[tarfile.TarInfo, bytes]]
    kind: str = OCI + "layer.v1.tar+gzip"
    pack: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0)
    raw: bytes = field(init=False)
    blob: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Pack it."""
        self.raw = tar(self.entries)
        self.blob = self.pack(self.raw)


def config(layers: Sequence[Layer], *, architecture: str = "amd64", **run: Any) -> dict[str, Any]:
    """The configuration of an image of `layers`; `run` is its ``config``."""
    return {
        "architecture": architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(x.raw) for x in layers]},
        "config": run,
    }


@dataclass
class Registry:
    """A registry that runs."""

    address: str
    """``127.0.0.1:PORT``."""
    auth: tuple[str, str] | None = None

    def push(
        self,
        name: str,
        layers: Sequence[Layer],
        *,
        docker: bool = False,
        described: Mapping[str, Any] | None = None,
        changed: Mapping[str, Any] | None = None,
        **run: Any,
    ) -> str:
        """Put an image there as `name`, ``REPOSITORY:TAG``; returns the digest of its manifest.

        `described` is its configuration, if not the true one; `changed` are fields of the manifest.
        """
        said = json.dumps(described or config(layers, **run)).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER + "distribution.manifest.v2+json" if docker else OCI + "manifest.v1+json",
            "config": {
                "mediaType": DOCKER + "container.image.v1+json" if docker else OCI + "config.v1+json",
                "digest": self.blob(name, said),
                "size": len(said),
            },
            "layers": [
                {"mediaType": x.kind, "digest": self.blob(name, x.blob), "size": len(x.blob)} for x in layers
            ],
        }
        return self.manifest(name, manifest | dict(changed or {}))

    def index(self, name: str, platforms: Mapping[str, str]) -> str:
        """Put an index there: architecture to digest of a manifest that is there; returns its digest."""
        with self._client() as client:
            found = []
            for architecture, of in platforms.items():
                accepted = {"Accept": OCI + "manifest.v1+json"}
                data = client.get(f"{name.partition(':')[0]}/manifests/{of}", headers=accepted).content
                found.append({
                    "mediaType": OCI + "manifest.v1+json", "digest": of, "size": len(data),
                    "platform": {"os": "linux", "architecture": architecture},
                })  # fmt: skip
        return self.manifest(name, {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": found})

    def manifest(self, name: str, document: Mapping[str, Any]) -> str:
        """Put a manifest there."""
        repository, _, tag = name.partition(":")
        data = json.dumps(document).encode()
        with self._client() as client:
            answer = client.put(
                f"{repository}/manifests/{tag}", content=data, headers={"Content-Type": document["mediaType"]}
            )
        assert answer.status_code == 201, answer.text
        return digest(data)

    def blob(self, name: str, data: bytes) -> str:
        """Put a blob there; returns its digest."""
        with self._client() as client:
            begun = client.post(f"{name.partition(':')[0]}/blobs/uploads/")
            where = begun.headers["Location"]
            done = client.put(f"{where}&digest={quote(digest(data))}", content=data)
        assert done.status_code == 201, done.text
        return digest(data)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.address}/v2/", auth=self.auth, timeout=20)


@contextmanager
def registry(directory: Path, *, password: bool = False) -> Iterator[Registry]:
    """Debian's docker-registry on a loopback port, with its data in `directory`."""
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not installed; run scripts/setup --dev"
    address = f"127.0.0.1:{free_port()}"
    directory.mkdir(parents=True)
    settings: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": address, "secret": secrets.token_hex(8)},
        # For the layers that lie elsewhere.
        "validation": {"manifests": {"urls": {"allow": ["^https://"]}}},
    }
    if password:
        (directory / "htpasswd").write_text(_HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    file = directory / "config.yml"
    file.write_text(json.dumps(settings))
    with (directory / "log").open("wb") as log:
        # It takes REGISTRY_… for its own configuration, and REGISTRY_AUTH_FILE is skopeo's.
        env = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
        process = subprocess.Popen(
            [program, "serve", str(file)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
        )
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                httpx.get(f"http://{address}/v2/", timeout=2)
                break
            except httpx.TransportError:
                assert process.poll() is None, (directory / "log").read_text()[-2000:]
                assert time.monotonic() < end, "docker-registry did not start"
                time.sleep(0.05)
        yield Registry(address, (USER, PASSWORD) if password else None)
    finally:
        process.terminate()
        process.wait(10)


class _Front(BaseHTTPRequestHandler):
    """What stands in front of another registry."""

    behind: Registry
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        """Answer as that one does."""
        accept = {"Accept": self.headers.get("Accept", "*/*")}
        found = httpx.get(f"http://{self.behind.address}{self.path}", headers=accept, timeout=20)
        kept = ("Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version")
        self.answer(found.status_code, {k: found.headers[k] for k in kept if k in found.headers}, found.content)

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer with that."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


@contextmanager
def _served(handler: type[_Front]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def token_registry(behind: Registry) -> Iterator[tuple[str, list[str]]]:
    """A registry that wants a bearer token (distribution's token specification), in front of another one.

    Yields its address, and the list of what happened: ``refused``, ``token``, ``served``.
    """
    token = secrets.token_hex(16)
    happened: list[str] = []

    class Handler(_Front):
        def do_GET(self) -> None:
            where = f"http://{self.headers['Host']}/token"
            said = self.headers.get("Authorization", "")
            if self.path.startswith("/token"):
                if said == httpx.BasicAuth(USER, PASSWORD)._auth_header:
                    happened.append("token")
                    self.answer(200, {"Content-Type": "application/json"}, json.dumps({"token": token}).encode())
                else:
                    self.answer(401, {}, b"{}")
            elif said != f"Bearer {token}":
                happened.append("refused")
                self.answer(401, {"WWW-Authenticate": f'Bearer realm="{where}",service="tests"'}, b"{}")
            else:
                happened.append("served")
                self.forward()

        do_HEAD = do_GET  # noqa: N815 - as http.server has it

    Handler.behind = behind
    with _served(Handler) as address:
        yield address, happened


@contextmanager
def flooding_registry(behind: Registry, blob: str, most: int) -> Iterator[tuple[str, list[int]]]:
    """A registry that sends `most` zeros for the blob with that digest, in front of another one.

    Yields its address, and the list of how many bytes of them were taken.
    """
    taken = [0]

    class Handler(_Front):
        def do_GET(self) -> None:
            if blob not in self.path or self.command == "HEAD":
                self.forward()
                return
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with suppress(ConnectionError):
                while taken[0] < most:
                    self.wfile.write(bytes(1 << 16))
                    taken[0] += 1 << 16
                    time.sleep(0.001)  # loopback is faster than anybody looks

        do_HEAD = do_GET  # noqa: N815 - as http.server has it

    Handler.behind = behind
    with _served(Handler) as address:
        yield address, taken
