"""Real servers on loopback: git's own smart HTTP backend and its daemon, and one of files for archives."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tests.ports import free_port

GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "PATH": os.environ["PATH"],
}


def git(repository: Path, *words: str) -> str:
    """Run git there; what it says."""
    done = subprocess.run(
        ["git", *words], cwd=repository, env=GIT, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def committed(repository: Path, files: Mapping[str, str | bytes], message: str = "more") -> str:
    """Put `files` into the (new) repository; the commit's id."""
    repository.mkdir(parents=True, exist_ok=True)
    if not (repository / ".git").exists():
        git(repository, "init", "-q", "-b", "main")
    for name, content in files.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if path.suffix == ".sh":
            path.chmod(0o755)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", message)
    return git(repository, "rev-parse", "HEAD")


class _Backend(BaseHTTPRequestHandler):
    """git-http-backend(1) as CGI (RFC 3875), as a web server runs it."""

    root: ClassVar[Path]
    requests: ClassVar[list[str]]
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.requests.append(self.path)
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        env = GIT | {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(
            ["git", "http-backend"], env=env, input=body, capture_output=True, timeout=60, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: Any) -> None:
        pass


class _Files(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, bytes | str]]
    requests: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        answer = self.answers.get(self.path)
        if isinstance(answer, str):
            self.send_response(302)
            self.send_header("Location", answer)
            self.end_headers()
            return
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        if answer:
            self.wfile.write(answer)

    def log_message(self, *_args: Any) -> None:
        pass


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def git_over_http(root: Path) -> Iterator[tuple[str, list[str]]]:
    """All repositories below `root`: their base URL, and the requests so far."""
    requests: list[str] = []
    with _served(type("Backend", (_Backend,), {"root": root, "requests": requests})) as url:
        yield url, requests


@contextmanager
def files_over_http(answers: dict[str, bytes | str]) -> Iterator[tuple[str, list[str]]]:
    """Path to bytes, or to where it redirects: the base URL, and the requests so far."""
    requests: list[str] = []
    with _served(type("Files", (_Files,), {"answers": answers, "requests": requests})) as url:
        yield url, requests


@contextmanager
def dripping(beginning: bytes, every_s: float = 0.1) -> Iterator[str]:
    """A server that answers with `beginning`, and from then on with a byte now and then: its base URL."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(beginning)
            while not over.wait(every_s):
                connection.sendall(b"a")

    def serve() -> None:
        with suppress(OSError):
            while not over.is_set():
                threads.append(threading.Thread(target=answer, args=(listening.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)


@contextmanager
def git_daemon(root: Path) -> Iterator[str]:
    """git-daemon(1) for all below `root`: its base URL."""
    port = free_port()
    words = ["git", "daemon", f"--port={port}", "--listen=127.0.0.1", "--reuseaddr", "--export-all"]
    process = subprocess.Popen(
        [*words, f"--base-path={root}", str(root)], env=GIT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(10)
