"""As much of HTTP/1.1 (RFC 9112) as it takes to POST to a server on this machine and read a stream.

Plain http, one request a connection. Instead of http.client and socket, whose imports (email, ssl, enum) take
longer than the first answer under an emulated CPU.
"""

from __future__ import annotations

import io
from _socket import IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY, getaddrinfo
from _socket import socket as raw_socket

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_HEAD = 64 * 1024
MAX_LINE = 16 * 1024 * 1024


class HttpProblem(Exception):
    """The server cannot be reached, or does not speak HTTP as expected."""


def split_url(url: str) -> tuple[str, int, str]:
    """Host, port and path (no slash at its end) of an http URL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() != "http":
        raise HttpProblem(f"{url!r} is not an http:// URL; lab-agent speaks plain http to its gateway only")
    place, _, path = rest.partition("/")
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, "80"
    if not port.isdecimal() or not host or not 0 < int(port) < 65536:
        raise HttpProblem(f"{url!r} has no usable host and port")
    path = "/" + path.strip("/") if path.strip("/") else ""
    return host.strip("[]"), int(port), path


class _Incoming(io.RawIOBase):
    """What comes from a socket, for a BufferedReader."""

    def __init__(self, sock: raw_socket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        return self._sock.recv_into(buffer)


class Response:
    """Status, headers (names in lower case) and a body to be read line by line or whole."""

    def __init__(self, sock: raw_socket, idle_s: float) -> None:
        self._sock = sock
        self._idle_s = idle_s
        self._file = io.BufferedReader(_Incoming(sock))
        status_line = self._head_line()
        while True:
            parts = status_line.split(None, 2)
            if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
                raise HttpProblem("the server's answer is not HTTP")
            self.status = int(parts[1])
            self.headers = self._headers()
            if self.status >= 200:
                break
            status_line = self._head_line()  # 1xx: the real answer follows (RFC 9110, 15.2)
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        self._left = int(length) if length.isdecimal() and not self._chunked else -1
        self._chunk_left = 0
        self._ended = False

    def lines(self) -> Iterator[bytes]:
        """The body's lines, without their ends."""
        buffer = b""
        while piece := self._piece():
            buffer += piece
            if b"\n" in buffer:
                *whole, buffer = buffer.split(b"\n")
                for line in whole:
                    yield line.removesuffix(b"\r")
            if len(buffer) > MAX_LINE:
                raise HttpProblem(f"a line of the answer is longer than {MAX_LINE} bytes")
        if buffer:
            yield buffer

    def body(self, limit: int = 1 << 20) -> bytes:
        """The whole body, at most `limit` bytes of it."""
        out = b""
        while len(out) < limit and (piece := self._piece()):
            out += piece
        return out[:limit]

    def close(self) -> None:
        """Hang up. What was not read is given up, and the server notices."""
        self._file.close()
        self._sock.close()

    def _head_line(self) -> bytes:
        try:
            line = self._file.readline(MAX_HEAD)
        except TimeoutError as e:
            raise HttpProblem(f"the server did not begin to answer within {self._idle_s:g} s") from e
        except OSError as e:
            raise HttpProblem(f"the connection broke ({e.strerror or e})") from e
        if not line.endswith(b"\n"):
            raise HttpProblem("the server hung up, or its header is too long")
        return line.strip()

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(200):
            line = self._head_line()
            if not line:
                return headers
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        raise HttpProblem("the server's answer has too many headers")

    def _piece(self) -> bytes:
        """Some of the body as soon as it is there; b"" at its end."""
        if self._ended:
            return b""
        try:
            piece = self._next_chunk() if self._chunked else self._next_plain()
        except TimeoutError as e:
            raise HttpProblem(f"the server sent nothing for {self._idle_s:g} s") from e
        except OSError as e:
            raise HttpProblem(f"the connection broke ({e.strerror or e})") from e
        self._ended = not piece
        return piece

    def _next_plain(self) -> bytes:
        if self._left == 0:
            return b""
        piece = self._file.read1(65536 if self._left < 0 else min(65536, self._left))
        if self._left > 0:
            if not piece:
                raise HttpProblem("the answer ended early")
            self._left -= len(piece)
        return piece

    def _next_chunk(self) -> bytes:
        if self._chunk_left == 0:
            size = self._file.readline(256).split(b";")[0].strip()
            try:
                self._chunk_left = int(size, 16)
            except ValueError:
                raise HttpProblem("the answer ended early") from None
            if self._chunk_left == 0:
                return b""
        piece = self._file.read1(min(65536, self._chunk_left))
        if not piece:
            raise HttpProblem("the answer ended early")
        self._chunk_left -= len(piece)
        if self._chunk_left == 0:
            self._file.readline(3)
        return piece


def post(
    url: str, path: str, headers: dict[str, str], body: bytes, *, connect_s: float = 10.0, idle_s: float = 600.0
) -> Response:
    """POST `body` to `url` + `path`; returns once the head of the answer is there.

    Raises:
        HttpProblem: no connection within `connect_s` seconds, nothing for `idle_s` seconds, not HTTP.
    """
    host, port, base = split_url(url)
    try:
        sock = _connect(host, port, connect_s)
    except OSError as e:
        raise HttpProblem(f"{host}:{port} cannot be reached ({e.strerror or e})") from e
    try:
        sock.settimeout(idle_s)
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        name = f"[{host}]" if ":" in host else host
        head = [f"POST {base}{path} HTTP/1.1", f"host: {name}:{port}", "connection: close"]
        head += [f"{k}: {v}" for k, v in headers.items()]
        head += [f"content-length: {len(body)}", "", ""]
        try:
            sock.sendall("\r\n".join(head).encode("latin-1") + body)
        except (OSError, UnicodeEncodeError) as e:
            raise HttpProblem(f"the request could not be sent ({e})") from e
        return Response(sock, idle_s)
    except BaseException:
        sock.close()
        raise


def _connect(host: str, port: int, seconds: float) -> raw_socket:
    """A connection to the first address of `host` that answers, each within `seconds`. Raises OSError."""
    problem = OSError("it has no address")
    # As bytes where it can be: a str goes through the idna codec, which loads longer than the whole request takes.
    name = host.encode() if host.isascii() else host
    for family, kind, protocol, _, address in getaddrinfo(name, port, 0, SOCK_STREAM):
        sock = raw_socket(family, kind, protocol)
        try:
            sock.settimeout(seconds)
            sock.connect(address)
        except OSError as e:
            sock.close()
            problem = e
        else:
            return sock
    raise problem
