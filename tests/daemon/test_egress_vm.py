"""A real box's way out: a stage with an allowlist, its refusals, and the record of both."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.daemon.live import LiveBackend, live_backend
from voidbox_lab.engine import StageJob
from voidbox_lab.engine.moves import Progress
from voidbox_lab.engine.stage import Host, run_stage
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Policy, Stage, VoidBoxSpec
from voidbox_lab.spec.events import Body, BoxBooted, Denied, Egress

pytestmark = [pytest.mark.anyio, pytest.mark.vm]

HERE = "127.0.0.2"
"""Not 127.0.0.1, which programs in the box do not look for beyond it (NO_PROXY)."""
BODY = b"x" * 1_000_000
SCRIPT = """
import http.client, json, os, socket, sys, urllib.error, urllib.request

port, other = sys.argv[1:]
said = {}

def get(name, url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            said[name] = [answer.status, len(answer.read())]
    except urllib.error.HTTPError as e:
        said[name] = [e.code, e.headers["X-Voidbox-Rule"]]
    except OSError as e:
        said[name] = [0, str(e)]

get("plain", f"http://127.0.0.2:{port}/plain")
tunnel = http.client.HTTPConnection("127.0.0.1", 8130, timeout=30)
tunnel.set_tunnel("127.0.0.2", int(port))
tunnel.request("GET", "/tunnel")
said["tunnel"] = [(answer := tunnel.getresponse()).status, len(answer.read())]
tunnel.close()
get("other port", f"http://127.0.0.2:{other}/")
get("other address", f"http://127.0.0.3:{port}/")
get("metadata", "http://169.254.169.254/latest/meta-data/")
get("name", "https://example.org/")
for name, where in {"direct": ("127.0.0.2", int(port)), "around": ("93.184.216.34", 443)}.items():
    try:
        socket.create_connection(where, timeout=5)
        said[name] = "connected"
    except OSError as e:
        said[name] = type(e).__name__
said["proxy"] = [os.environ.get(n) for n in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")]
said["cards"] = os.listdir("/sys/class/net")
print(json.dumps(said))
"""


@pytest.fixture
async def backend() -> AsyncIterator[LiveBackend]:
    """The backend of a daemon, with the image built."""
    settings = replace(Settings.from_env(), spares=0).prepare()
    await run_sync(images.build, settings)
    async with live_backend(settings) as made:
        yield made


@asynccontextmanager
async def answering(heard: list[bytes], where: str = HERE) -> AsyncIterator[int]:
    """An HTTP server at the address `where`; its port."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive()
            heard.append(head)
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))

    async with await anyio.create_tcp_listener(local_host=where) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def test_a_stage_gets_out_where_it_may_and_nowhere_else(backend: LiveBackend) -> None:
    """What it may fetch it gets, to the byte; all else is refused by the rule's name; everything is recorded."""
    heard: list[bytes] = []
    unheard: list[bytes] = []
    events: list[Body] = []
    moves: list[Progress] = []

    async def emit(body: Body) -> None:
        events.append(body)

    async def moved(state: Progress) -> None:
        moves.append(state)

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(answering(heard))
        other = await stack.enter_async_context(answering(unheard))
        box = VoidBoxSpec(
            name="fetch",
            command=("python3", "-c", SCRIPT, str(port), str(other)),
            policy=Policy(network="allowlist", egress=(f"{HERE}:{port}",)),
        )
        host = Host(boxes=backend, adapter=backend.adapter, session=backend.session)
        with anyio.fail_after(200):
            result = await run_stage(StageJob("run-1", Stage(box=box), {}, {}), host, emit, moved)
    said = json.loads(result.text)
    assert (said["plain"], said["tunnel"]) == ([200, len(BODY)], [200, len(BODY)])
    for name in ("other port", "other address", "metadata"):
        assert said[name] == [403, "private-address"], name
    assert "403 example.org:443 is not in this stage's egress allowlist" in said["name"][1]
    assert (said["direct"], said["around"]) == ("ConnectionRefusedError", "OSError")
    assert said["cards"] == ["lo"]
    assert said["proxy"] == [*["http://127.0.0.1:8130"] * 3, "127.0.0.1,localhost,::1"]

    head = len(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    connections = [e for e in events if isinstance(e, Egress)]
    assert [(e.host, e.port, e.verdict, e.rule) for e in connections] == [
        (HERE, port, "allowed", f"{HERE}:{port}"),
        (HERE, port, "allowed", f"{HERE}:{port}"),
        (HERE, other, "denied", "private-address"),
        ("127.0.0.3", port, "denied", "private-address"),
        ("169.254.169.254", 80, "denied", "private-address"),
        ("example.org", 443, "denied", "allowlist"),
    ]
    assert [(e.bytes_out, e.bytes_in) for e in connections[:2]] == [(len(h), head + len(BODY)) for h in heard]
    assert not unheard
    assert [d.subject for d in events if isinstance(d, Denied)][-1] == "example.org:443"
    facts = next(e.facts for e in events if isinstance(e, BoxBooted))
    assert not (Settings.from_env().runtime / "b" / facts.domain).exists()


async def test_a_box_that_goes_takes_its_connections_along(backend: LiveBackend) -> None:
    """What is open when a box is closed is recorded before that is done."""
    events: list[Body] = []

    async def record(body: Body) -> None:
        events.append(body)

    async def silent(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host=HERE) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, silent)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        policy = Policy(network="monitored", egress=(f"{HERE}:{port}",))
        spec = VoidBoxSpec(name="open", command=("true",))
        box = await backend.open(
            memory_mb=256, vcpus=1, rootfs=spec.rootfs(None), gateway_socket=None, policy=policy, egress=record
        )
        script = (
            "import http.client, time\nc = http.client.HTTPConnection('127.0.0.1', 8130)\n"
            f"c.set_tunnel('{HERE}', {port})\nc.connect()\nc.sock.sendall(b'12345')\n"
            "print('sent', flush=True)\ntime.sleep(1000)"
        )
        process = await box.start_exec(["python3", "-c", script])
        with anyio.fail_after(60):
            assert await process.stdout.receive() == b"sent\n"
            await anyio.sleep(0.3)
        await box.close()
        (event,) = [e for e in events if isinstance(e, Egress)]
        assert (event.verdict, event.rule, event.bytes_out) == ("allowed", f"{HERE}:{port}", 5)
        assert event.reason
        tasks.cancel_scope.cancel()


OPEN_SCRIPT = """
import json, os, socket, sys, urllib.request

name, port = sys.argv[1], int(sys.argv[2])
for variable in [v for v in os.environ if v.lower().endswith("_proxy")]:
    del os.environ[variable]
said = {"cards": os.listdir("/sys/class/net")}

def get(what, url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        said[what] = len(answer.read())

def reach(what, host, port):
    try:
        with socket.create_connection((host, port), timeout=60) as sock:
            said[what] = sock.recv(100).decode()
    except OSError as e:
        said[what] = type(e).__name__

get("name", f"http://{name}:{port}/")
said["stand-in"] = socket.gethostbyname(name)
reach("denied", "10.0.2.2", 22)
reach("metadata", "169.254.169.254", 80)
reach("no such port", name, port + 1)
reach("itself", "127.0.0.1", 8131)
reach("nothing stands for it", "198.19.0.1", 80)
query = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7example\\3org\\0\\0\\1\\0\\1"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(10)
    asking.connect(("8.8.8.8", 53))
    asking.send(query)
    said["server"] = asking.recv(512)[-4:].hex()
try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(10)
        asking.connect(("8.8.8.8", 123))
        asking.send(b"time?")
        said["datagram"] = asking.recv(512).hex()
except OSError as e:
    said["datagram"] = type(e).__name__
print(json.dumps(said))
"""


async def test_an_open_network_needs_no_proxy_and_no_card(backend: LiveBackend) -> None:
    """Programs that know of no proxy get where the policy lets them, by name and by address; each connection is
    judged and told on the host all the same."""
    heard: list[bytes] = []
    events: list[Body] = []
    name = socket.gethostname()
    address = socket.gethostbyname(name)

    async def emit(body: Body) -> None:
        events.append(body)

    async def moved(_: Progress) -> None:
        pass

    async with answering(heard, address) as port:
        box = VoidBoxSpec(
            name="open",
            command=("python3", "-c", OPEN_SCRIPT, name, str(port)),
            policy=Policy(network="open", egress=(f"{address}:{port}",)),
        )
        host = Host(boxes=backend, adapter=backend.adapter, session=backend.session)
        with anyio.fail_after(200):
            result = await run_stage(StageJob("run-1", Stage(box=box), {}, {}), host, emit, moved)
    said = json.loads(result.text)
    assert said["cards"] == ["lo"]
    assert said["name"] == len(BODY)
    assert heard[0].startswith(b"GET / HTTP/1.1\r\n")
    assert said["stand-in"].startswith("198.18.")
    assert said["server"].startswith("c612")
    for what in ("denied", "metadata", "no such port", "itself", "nothing stands for it"):
        assert said[what] == "ConnectionResetError", what
    assert said["datagram"] in {"ConnectionRefusedError", "TimeoutError"}
    connections = [(e.host, e.port, e.verdict, e.rule) for e in events if isinstance(e, Egress)]
    assert connections == [
        (name, port, "allowed", f"{address}:{port}"),
        ("10.0.2.2", 22, "denied", "private-address"),
        ("169.254.169.254", 80, "denied", "private-address"),
        (name, port + 1, "denied", "private-address"),
    ]
    assert next(d.subject for d in events if isinstance(d, Denied)) == "10.0.2.2:22"
