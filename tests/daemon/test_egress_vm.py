"""A real box's way out: a stage with an allowlist, its refusals, and the record of both."""

from __future__ import annotations

import json
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
async def answering(heard: list[bytes]) -> AsyncIterator[int]:
    """An HTTP server at `HERE`; its port."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive()
            heard.append(head)
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))

    async with await anyio.create_tcp_listener(local_host=HERE) as listener, anyio.create_task_group() as tasks:
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
