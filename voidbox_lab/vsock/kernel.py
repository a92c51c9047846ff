"""vsock carried by the host's kernel: AF_VSOCK over ``/dev/vhost-vsock``, libvirt's ``<vsock>``.

Not for hosts without that device: see `user`. Sources: vsock(7), linux/vm_sockets.h, drivers/vhost/vsock.c.

The hypervisor assigns the CID when the domain starts; tell it by `KernelTransport.assigned`. Host
ports are shared by all boxes of a host, so listeners take connections from their own CID only.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Literal

import anyio

from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, UserError
from voidbox_lab.vsock.stream import Listener, Stream
from voidbox_lab.vsock.table import MAX_DIALLED
from voidbox_lab.vsock.transport import ANY_PORT, PORT_MAX, VsockDevice

DEVICE = Path("/dev/vhost-vsock")
BACKLOG = 128
_SO_CONNECT_TIMEOUT = 6
"""SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD with a struct timeval of longs; 2 s by default (vm_sockets.h)."""
_VHOST_GET_FEATURES = 0x8008AF00
"""_IOR(VHOST_VIRTIO, 0x00, __u64), linux/vhost.h: answers without side effects."""
_RETRY_S = 0.05


def kernel_available() -> str | None:
    """None where this process can use the kernel's vsock as a host, else the reason in one sentence."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{DEVICE} does not exist; load it with `modprobe vhost_vsock` where that is allowed."
    except PermissionError:
        return f"{DEVICE} may not be opened by this user; join the group that owns it (often kvm)."
    except OSError as error:
        return f"{DEVICE} cannot be opened: {error.strerror}."
    try:
        # The node may be there without its driver's answer, as in some containers.
        fcntl.ioctl(fd, _VHOST_GET_FEATURES, bytes(8))
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        return f"{DEVICE} opens but the kernel's vsock does not work: {error.strerror}."
    finally:
        os.close(fd)
    return None


class KernelTransport:
    """See `Transport`. Made by `open_kernel`."""

    kind: Literal["kernel", "user"] = "kernel"

    def __init__(self, box_dir: Path) -> None:
        self.box_dir = box_dir
        self.cid: int | None = None
        self._known = anyio.Event()
        self._listeners: list[Listener] = []
        self._relays: list[asyncio.Task[None]] = []

    def assigned(self, cid: int) -> None:
        """The domain runs and has `cid`; read it from the live XML, again after a restore.

        Raises:
            UserError: not a guest's CID.
        """
        if not 2 < cid < 0xFFFFFFFF:
            raise UserError(f"{cid} is not a guest's CID; they lie between 3 and 4294967294.")
        self.cid = cid
        self._known.set()

    async def ready(self) -> None:
        """See `Transport.ready`: the kernel's device always is."""

    def listen(self, port: int = ANY_PORT) -> Listener:
        """See `Transport.listen`. Accepting waits until `assigned` was told whose calls to take."""
        if not 0 <= port <= PORT_MAX:
            raise UserError(f"{port} is not a vsock port; use one from 1 to {PORT_MAX}, or 0 for a free one.")
        try:
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise ProviderError(f"This host has no AF_VSOCK: {error}.", cause="no-vsock") from error
        try:
            sock.bind((socket.VMADDR_CID_ANY, port or socket.VMADDR_PORT_ANY))
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"Host vsock port {port} is taken; use another, or 0 for a free one.") from None
            raise ProviderError(f"Host vsock port {port} cannot listen: {error}.") from error
        listener = Listener(sock, port, admit=self._mine, ready=self._known)
        self._listeners.append(listener)
        return listener

    def _mine(self, peer: object) -> bool:
        return isinstance(peer, tuple) and peer[0] == self.cid

    def forward(self, port: int, path: Path) -> int:
        """See `Transport.forward`. Call it within a running event loop, which carries the bytes."""
        listener = self.listen(port)
        self._relays.append(asyncio.get_running_loop().create_task(_serve(listener, path)))
        return listener.port

    async def connect(self, port: int, timeout_s: float) -> Stream:
        """See `Transport.connect`. Before `assigned` it waits for the CID, within the same bound."""
        try:
            with anyio.fail_after(timeout_s):
                await self._known.wait()
                return await self._connect(port, timeout_s)
        except TimeoutError:
            raise LimitExceeded(
                f"The box did not answer on vsock port {port} within {timeout_s:g} s; look at its console log.",
                limit="time",
                value=timeout_s,
                unit="s",
                cause="connect-timeout",
            ) from None

    async def _connect(self, port: int, timeout_s: float) -> Stream:
        while True:
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                # The kernel's own bound of 2 s would answer first; ours is the one in the error.
                _bound_connect(sock, int(timeout_s) + 1)
                code = sock.connect_ex((self.cid, port))
                if code == errno.EINPROGRESS:
                    await anyio.wait_writable(sock)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            except BaseException:
                sock.close()
                raise
            if code == 0:
                return Stream(sock)
            sock.close()
            if code == errno.ECONNRESET:
                raise ProviderError(f"The box refused vsock port {port}; nothing listens there.", cause="refused")
            # No such CID yet (ENODEV, EHOSTUNREACH) while the machine is being created, or timed out.
            if code not in (errno.ENODEV, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ENETUNREACH):
                raise ProviderError(f"vsock port {port} of CID {self.cid}: {os.strerror(code)}.", cause="connect")
            await anyio.sleep(_RETRY_S)

    def domain(self) -> VsockDevice:
        """See `Transport.domain`."""
        return VsockDevice(kind="kernel", socket=None, cid=self.cid)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        for task in self._relays:
            task.cancel()
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*self._relays, return_exceptions=True)
        self._relays.clear()


def _bound_connect(sock: socket.socket, seconds: int) -> None:
    """How long the kernel itself lets a connect take."""
    # On an AF_VSOCK socket CPython sets 64-bit numbers only (socketmodule.c, sock_setsockopt) and this option is a
    # structure; what family a socket object believes it has is Python's own matter.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(sock.fileno())) as view:
        view.setsockopt(socket.AF_VSOCK, _SO_CONNECT_TIMEOUT, struct.pack("@ll", seconds, 0))


async def open_kernel(box_dir: Path) -> KernelTransport:
    """A transport over the host's kernel; nothing is started.

    Raises:
        Unavailable: `kernel_available` says why not.
    """
    reason = await anyio.to_thread.run_sync(kernel_available)
    if reason is not None:
        raise Unavailable(reason, cause="no-vhost-vsock")
    return KernelTransport(box_dir)


async def _serve(listener: Listener, path: Path) -> None:
    carried = 0

    async def carry(stream: Stream) -> None:
        nonlocal carried
        try:
            await _splice(stream, path)
        finally:
            carried -= 1

    async with anyio.create_task_group() as tasks:
        while True:
            try:
                stream = await listener.accept(None)
            except anyio.ClosedResourceError:
                return
            if carried >= MAX_DIALLED:
                stream.close()
                continue
            carried += 1
            tasks.start_soon(carry, stream)


async def _splice(guest: Stream, path: Path) -> None:
    """Both directions between `guest` and the UNIX socket `path`, with their half-closes."""
    async with guest:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # out of descriptors
            return
        async with Stream(sock) as host:
            try:
                sock.connect(str(path))
            except OSError:  # nothing there, or its backlog is full: the guest sees a closed connection
                return
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_copy, guest, host)
                tasks.start_soon(_copy, host, guest)


async def _copy(source: Stream, target: Stream) -> None:
    try:
        while data := await source.receive():
            await target.send(data)
        await target.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, ProviderError):
        # A ProviderError too: what is wrong with one connection must not end the others.
        source.close()
        target.close()
