"""The guest's half of the conformance suite: small services on vsock ports. Standard library only.

In a box: ``python3 guest_peer.py`` serves AF_VSOCK until killed and prints ``LISTENING`` when it does.
Without one: `fake_guest` runs the same service functions on sockets of its own.

A service gets a connected socket-like object with ``recv``, ``sendall``, ``shutdown`` and ``close``.
"""

import hashlib
import socket
import struct
import sys
import threading

ECHO, SINK, SOURCE, HALF, STALL, ABORT, DIAL, COUNT = range(7001, 7009)
NOBODY = 7099
"""A port nothing listens on."""

SIZE = struct.Struct("<Q")
BLOCK = 1 << 16


def pattern(total):
    """`total` bytes that look random, block by block; each block differs from the next."""
    base = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(BLOCK // 32))
    number = 0
    while total > 0:
        block = SIZE.pack(number) + base[SIZE.size :]
        yield block[:total]
        total -= BLOCK
        number += 1


def read_exactly(sock, size):
    """`size` bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def echo(sock):
    """Everything back, until the end; then the end back."""
    while True:
        data = sock.recv(65536)
        if not data:
            break
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def sink(sock):
    """Read to the end, then answer ``<count> <sha256>``: also shows that the host may half-close."""
    digest, count = hashlib.sha256(), 0
    while True:
        data = sock.recv(65536)
        if not data:
            break
        digest.update(data)
        count += len(data)
    sock.sendall(b"%d %s" % (count, digest.hexdigest().encode()))


def source(sock):
    """Asked for a size (8 bytes), send that much of `pattern`, then the end."""
    (total,) = SIZE.unpack(read_exactly(sock, SIZE.size))
    for block in pattern(total):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


_half_result = []


def half(sock):
    """Say ``hello``, half-close at once, then read to the end and leave the count for `count`."""
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    total = 0
    while True:
        data = sock.recv(65536)
        if not data:
            break
        total += len(data)
    _half_result.append(total)


def count(sock):
    """The count `half` left last."""
    sock.sendall(b"%d" % (_half_result.pop() if _half_result else -1))


_go = threading.Event()


def stall(sock):
    """Read nothing until another connection to this port says ``go``; then as `sink`."""
    first = sock.recv(2)
    if first == b"go":
        _go.set()
        sock.sendall(b"ok")
        return
    _go.clear()
    sock.sendall(b"st")
    _go.wait(60)
    sink(sock)


def abort(sock):
    """Close after one byte, with whatever else came left unread."""
    sock.recv(1)


def dial(sock, connect):
    """Given a host port (8 bytes) dial it, say ``from the guest``, then echo there until the end."""
    (port,) = SIZE.unpack(read_exactly(sock, SIZE.size))
    try:
        out = connect(port)
    except OSError:
        sock.sendall(b"refused")
        return
    sock.sendall(b"dialled")
    try:
        out.sendall(b"from the guest")
        echo(out)
    finally:
        out.close()


SERVICES = {ECHO: echo, SINK: sink, SOURCE: source, HALF: half, STALL: stall, ABORT: abort, COUNT: count}


def serve_one(sock, port, connect):
    """Run the service of `port` on `sock` and close it, whatever happens."""
    try:
        if port == DIAL:
            dial(sock, connect)
        else:
            SERVICES[port](sock)
    except (OSError, struct.error):
        pass
    finally:
        sock.close()


def _connect(port):
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.connect((socket.VMADDR_CID_HOST, port))
    return sock


def _listen(port):
    server = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    server.bind((socket.VMADDR_CID_ANY, port))
    server.listen(128)
    return server


def _accept(server, port):
    while True:
        sock, _ = server.accept()
        threading.Thread(target=serve_one, args=(sock, port, _connect), daemon=True).start()


def main():
    """Serve until killed."""
    threads = [threading.Thread(target=_accept, args=(_listen(port), port)) for port in (*SERVICES, DIAL)]
    for thread in threads:
        thread.start()
    print("LISTENING", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
