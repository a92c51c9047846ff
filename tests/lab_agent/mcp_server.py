"""An MCP server that behaves as its first argument says: a double for what real ones seldom do. Not a test.

    python3 mcp_server.py MODE

It has the tools `add`, `whoami`, `slow`, `picture`, `grow`, `die`, `flood` and `Odd Name!`, two a page.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

MODE = sys.argv[1] if len(sys.argv) > 1 else "good"
TOOLS = ["add", "whoami", "slow", "picture", "grow", "die", "flood", "Odd Name!"]


def write(message: dict[str, Any]) -> None:
    """One message."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def reply(ident: object, result: dict[str, Any]) -> None:
    """A result."""
    write({"id": ident, "result": result})


def text(value: str) -> dict[str, Any]:
    """A text result."""
    return {"content": [{"type": "text", "text": value}]}


def call(ident: object, name: str, given: dict[str, Any]) -> None:
    """What a tool does."""
    if name == "add":
        write({"method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}})
        write({"id": "mine", "method": "ping"})
        write({"id": "mine-2", "method": "roots/list"})
        print("this is no message", flush=True)
        reply("another", text("not for you"))
        try:
            reply(ident, text(str(given["a"] + given["b"])))
        except TypeError as e:
            write({"id": ident, "error": {"code": -32602, "message": str(e)}})
    elif name == "whoami":
        reply(ident, text(json.dumps({**os.environ, "pid": str(os.getpid())})))
    elif name == "slow":
        time.sleep(given["seconds"])
        reply(ident, text("at last"))
    elif name == "picture":
        content = [
            {"type": "image", "mimeType": "image/png", "data": "AAAA"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "words"}},
            {"type": "resource", "resource": {"uri": "file:///b", "blob": "AAAAAA=="}},
            {"type": "resource_link", "name": "c", "uri": "file:///c"},
            {"type": "hologram"},
        ]
        reply(ident, {"content": content, "isError": True})
    elif name == "grow":
        TOOLS.append("grown")
        write({"method": "notifications/tools/list_changed"})
        reply(ident, text("grown"))
    elif name == "die":
        sys.exit(3)
    elif name == "flood":
        while True:
            write({"method": "notifications/message", "params": {"level": "info", "data": "x"}})
    else:
        reply(ident, {"content": [], "structuredContent": {"name": name}})


def main() -> None:
    """Answer until standard input ends; some never do."""
    if MODE == "gone":
        sys.exit(7)
    if MODE == "child":
        subprocess.Popen(["sleep", "1000"])
    for line in sys.stdin:
        message = json.loads(line)
        ident, params = message.get("id"), message.get("params", {})
        match message.get("method"):
            case "initialize" if MODE == "huge":
                while True:
                    sys.stdout.write("x" * 65536)
            case "initialize" if MODE == "silent":
                time.sleep(1000)
            case "initialize":
                revision = "1999-01-01" if MODE == "old" else params["protocolVersion"]
                server = {"name": "double", "version": "1"}
                reply(ident, {"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": server})
            case "tools/list":
                at = int(params.get("cursor", 0))
                page = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS[at : at + 2]]
                more = at + 2 < len(TOOLS) or MODE == "endless"
                reply(ident, {"tools": page, **({"nextCursor": str(at + 2)} if more else {})})
            case "tools/call":
                call(ident, params["name"], params["arguments"])
    if MODE == "stubborn":
        time.sleep(1000)


main()
