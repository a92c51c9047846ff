"""A box has exactly the programs that its skills name: real packages of each kind, from their real registries."""

from __future__ import annotations

import json

import pytest
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box import Boxes
from voidbox_lab.settings import Settings
from voidbox_lab.spec import CliSkill, McpSkill, Model, VoidBoxSpec

pytestmark = [pytest.mark.anyio, pytest.mark.vm, pytest.mark.timeout(900)]

# One that is C, one that is nothing but Python, one with a compiled wheel and a program, one of npm.
TOOLS = CliSkill(
    name="tools", packages=("deb:jq", "deb:netcat-openbsd", "npm:semver"), commands=("jq", "nc", "semver")
)
SERVER = McpSkill(
    name="time", command=("mcp-server-time",), packages=("pypi:mcp-server-time", "pypi:charset-normalizer")
)
PROGRAMS = ("jq", "nc", "node", "semver", "mcp-server-time", "normalizer")
SPEC = VoidBoxSpec(
    name="s", prompt="p", model=Model(provider="scripted", name="quickstart"), skills=(TOOLS, SERVER)
)

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
LOOK = f"""
for program in {" ".join(PROGRAMS)} curl pip npm; do command -v $program || echo no $program; done
python3 -c 'import mcp' 2>&1 | tail -n 1
"""
USE = r"""
echo '{"a": [1, 2]}' | jq -c '.a | add'
semver -r '>=1.2' 1.1.9 1.3.0
node -p 'process.versions.node.split(".")[0] + [1, [2]].flat(9).length + crypto.randomUUID().length'
printf 'h\303\251llo' > /tmp/text && normalizer --minimal /tmp/text
nc -h 2>&1 | head -n 1 | cut -c1-7
cd /usr/lib/voidbox-skills/pypi/mcp-server-time
bin/python3 -c 'import mcp, pydantic_core, sys; print(sys.prefix, mcp.__cached__)'
find /usr/lib/voidbox-skills /usr/local/bin -xtype l
"""


async def test_a_box_has_what_its_skills_name(boxes: Boxes) -> None:
    """Programs of all kinds run; the libraries of one skill are not on another's path."""
    async with await boxes.open(memory_mb=512, rootfs=SPEC.rootfs(None), policy=SPEC.effective_policy) as box:
        found = (await box.run(["sh", "-c", LOOK], timeout_s=120)).stdout.decode().splitlines()
        assert found == [
            *(f"/usr/{place}/{name}" for place, name in zip(
                ("bin", "bin", "local/bin", "local/bin", "local/bin", "local/bin"), PROGRAMS, strict=True)),
            "no curl", "no pip", "no npm",
            "ModuleNotFoundError: No module named 'mcp'",
        ]  # fmt: skip
        used = await box.run(["sh", "-c", USE], timeout_s=240)
        prefix = "/usr/lib/voidbox-skills/pypi/mcp-server-time"
        assert used.stdout.decode().splitlines() == [
            "3",
            "1.3.0",
            "24236",
            "utf_8",
            "OpenBSD",
            f"{prefix} {prefix}/lib/python3.11/site-packages/mcp/__pycache__/__init__.cpython-311.pyc",
        ], used.stderr.decode()[-2000:]
        # A server over stdio, as an agent would start it; it ends with its input.
        answer = await box.run(
            ["mcp-server-time", "--local-timezone", "UTC"], stdin=json.dumps(HELLO).encode() + b"\n", timeout_s=240
        )
        assert json.loads(answer.stdout.splitlines()[0])["result"]["serverInfo"]["name"] == "mcp-time", answer
        # Not a thing of it can be changed.
        denied = await box.run(["sh", "-c", f"touch {prefix}/x /usr/bin/jq; echo $?"])
        assert denied.stdout == b"1\n"


async def test_a_box_without_has_none(boxes: Boxes) -> None:
    """Nothing that no skill names, whatever layers are in the cache."""
    async with await boxes.open(memory_mb=256) as box:
        found = (await box.run(["sh", "-c", LOOK], timeout_s=120)).stdout.decode().splitlines()
        names = [*PROGRAMS, "curl", "pip", "npm"]
        assert found == [*(f"no {name}" for name in names), "ModuleNotFoundError: No module named 'mcp'"]


async def test_the_same_layers_again_need_no_network(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache's pins and files alone, to the same digest."""
    settings = Settings.from_env()
    first = await run_sync(images.compose, settings, SPEC.rootfs(None))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    again = {x.digest for x in first.layers if x.name in {"deb:jq", "npm:semver", "pypi:charset-normalizer"}}
    records = [p for p in (settings.cache / "steps").glob("*.json") if any(d in p.read_text() for d in again)]
    assert len(again) == 3 <= len(records)
    for record in records:
        record.unlink()
    assert await run_sync(images.compose, settings, SPEC.rootfs(None)) == first
