"""What PID 1 does once, before it serves: mounts, boot data, identity, the call to the host.

Not used in tests on a host; everything after this works on any socket.
"""

from __future__ import annotations

import os
from _socket import AF_VSOCK, SOCK_CLOEXEC, SOCK_STREAM, sethostname
from _socket import socket as raw_socket
from time import CLOCK_REALTIME, clock_settime_ns, monotonic, sleep

from wire.frames import Decoder
from wire.handshake import SECRET_SIZE, GuestSide, HandshakeError
from wire.jsonlite import loads
from wire.protocol import BOOT_DATA, BOOT_DATA_SIZE, HANDSHAKE_S

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIAL_S = 30.0
HOST = 2
"""The host's CID (vsock(7))."""

_QUIET = kernel.MS_NOSUID | kernel.MS_NODEV
_MOUNTS = (
    ("proc", "/proc", "proc", _QUIET | kernel.MS_NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", _QUIET | kernel.MS_NOEXEC, ""),
    ("devtmpfs", "/dev", "devtmpfs", kernel.MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "tmpfs", _QUIET, "mode=1777,size=25%"),
    ("tmpfs", "/run", "tmpfs", _QUIET, "mode=0755,size=10%"),
    ("tmpfs", "/tmp", "tmpfs", _QUIET, "mode=1777,size=50%"),
)


def mount_all() -> None:
    """Mount what the initramfs has not. Raises OSError."""
    try:
        with open("/proc/self/mounts", "rb") as table:
            mounted = {line.split()[1] for line in table}
    except FileNotFoundError:
        mounted = set()
    for source, target, kind, flags, data in _MOUNTS:
        if target.encode() not in mounted:
            os.makedirs(target, exist_ok=True)
            kernel.mount(source, target, kind, flags, data)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        if not os.path.lexists("/dev/" + name):
            os.symlink(target, "/dev/" + name)


def own_descriptors() -> None:
    """Standard input from nowhere, output and errors to the kernel log.

    Not the console: a tty's back-pressure stalls whoever writes to it.
    """
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open("/dev/kmsg", os.O_WRONLY)
    for target, fd in ((0, null), (1, log), (2, log)):
        os.dup2(fd, target)
    for fd in (null, log):
        if fd > 2:
            os.close(fd)


def read_boot_data() -> tuple[dict[str, Any], bytearray]:
    """The box's boot data, which only root can read, and its secret apart.

    Raises OSError, ValueError or WireError.
    """
    fd = os.open(BOOT_DATA, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return parse_boot_data(pread_boot_data(fd))
    finally:
        os.close(fd)


def pread_boot_data(fd: int) -> bytearray:
    """What `fd`, of `BOOT_DATA`, says now. Raises OSError."""
    raw = bytearray(BOOT_DATA_SIZE)
    size = os.preadv(fd, [raw], 0)
    del raw[size:]
    return raw


def parse_boot_data(raw: bytearray) -> tuple[dict[str, Any], bytearray]:
    """Boot data and its secret apart, which is not in `raw` afterwards. Raises ValueError or WireError."""
    secret = take_secret(raw)
    data = loads(bytes(raw))
    if data.pop("secret") != "0" * (2 * SECRET_SIZE) or data.get("version") != 1:
        raise ValueError("the boot data has an unknown version or form")
    return data, secret


def take_secret(raw: bytearray) -> bytearray:
    """The secret in `raw`, the boot data's JSON, which has zeros in its place afterwards. Raises ValueError.

    An agent command may be a fork of this process and inherit its memory. Python cannot wipe a str or bytes, nor
    what a freed one leaves behind, so the secret never becomes one: it goes from one bytearray to another digit by
    digit, and `shake_hands` wipes that one.
    """
    key = b'"secret": "'
    start = raw.index(key) + len(key)
    secret = bytearray(SECRET_SIZE)
    digits = b"0123456789abcdef"
    for n in range(SECRET_SIZE):
        secret[n] = digits.index(raw[start + 2 * n]) << 4 | digits.index(raw[start + 2 * n + 1])
    raw[start : start + 2 * SECRET_SIZE] = b"0" * (2 * SECRET_SIZE)
    return secret


def identify(data: dict[str, Any]) -> None:
    """Take on `entropy` (hex), `time_ns`, `hostname` and `machine_id`, as far as given, in that order.

    Raises OSError or ValueError."""
    if data.get("entropy"):
        kernel.add_entropy(bytes.fromhex(data["entropy"]))
    if data.get("time_ns"):
        clock_settime_ns(CLOCK_REALTIME, int(data["time_ns"]))
    if data.get("hostname"):
        sethostname(str(data["hostname"])[:63])
    if data.get("machine_id"):
        write_machine_id(str(data["machine_id"]))


def write_machine_id(text: str) -> None:
    """machine-id(5): 32 hexadecimal digits and a newline, in place of the same number of bytes, if there were any.

    Not truncated before, so that a clone's costs no new block."""
    fd = os.open("/etc/machine-id", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444)
    try:
        os.write(fd, text[:32].encode().ljust(32, b"0") + b"\n")
    finally:
        os.close(fd)


def announce(line: str) -> None:
    """Write `line` to the console, if the kernel has one."""
    try:
        console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(console, line.encode() + b"\n")
    finally:
        os.close(console)


def dial(port: int) -> raw_socket:
    """A connection to the host's control port. Raises OSError after `DIAL_S`."""
    deadline = monotonic() + DIAL_S
    while True:
        sock = raw_socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            sock.settimeout(5.0)
            sock.connect((HOST, port))
        except OSError:
            sock.close()
            if monotonic() >= deadline:
                raise
            sleep(0.1)
        else:
            return sock


def shake_hands(sock: raw_socket, secret: bytearray) -> tuple[Decoder, list[Any]]:
    """Prove ourselves to the host and the host to us; returns what came after it. `secret` is wiped.

    Raises HandshakeError, WireError, or OSError (a time-out included).
    """
    try:
        return _shake_hands(sock, secret)
    finally:
        secret[:] = bytes(len(secret))


def _shake_hands(sock: raw_socket, secret: bytearray) -> tuple[Decoder, list[Any]]:
    sock.settimeout(HANDSHAKE_S)
    side, decoder = GuestSide(secret), Decoder()
    sock.sendall(side.hello())
    while True:
        data = sock.recv(4096)
        if not data:
            raise OSError("the host closed the connection during the handshake")
        frames = decoder.feed(data)
        while frames:
            try:
                answer = side.receive(frames.pop(0))
            except HandshakeError as error:
                if error.reject:
                    sock.sendall(error.reject)
                raise
            if side.done:
                return decoder, frames
            sock.sendall(answer)
