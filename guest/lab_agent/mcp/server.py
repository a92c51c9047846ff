"""One server: its start, its tools, its calls."""

from __future__ import annotations

import binascii
import time

from lab_agent import VERSION, jsons
from lab_agent.mcp.content import as_text
from lab_agent.mcp.process import ServerGone, ServerProcess
from lab_agent.mcp.rpc import Peer, RpcProblem
from lab_agent.tools.tool import Tool, ToolProblem

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from lab_agent.mcp.config import ServerConfig

REVISION = "2025-06-18"
"""The revision that is asked for."""
REVISIONS = frozenset({"2024-11-05", "2025-03-26", REVISION, "2025-11-25"})
"""Those whose tools are listed and called alike; a server chooses one of them."""
MAX_TOOLS = 256
MAX_DEFINITIONS = 1 << 20
"""Most bytes of JSON that the tools of one server may be described with."""
MAX_PAGES = 64
MAX_NAME = 64
"""Longest name of a tool that all model APIs take."""


class Server:
    """A server that is starting; `connect` waits until it has started.

    Raises:
        OSError: its program cannot be started.
    """

    def __init__(self, config: ServerConfig, env: dict[str, str], *, call_s: float) -> None:
        self.name = config.name
        self._offered, self._call_s = config.tools, call_s
        self._process = ServerProcess(config.argv, {**env, **config.env})
        self._peer = Peer(config.name, self._process, self._notified)
        self._changed = False
        self.tools: list[Tool] = []
        self._hello = self._peer.begin(
            "initialize",
            {
                "protocolVersion": REVISION,
                "capabilities": {},
                "clientInfo": {"name": "lab-agent", "version": VERSION},
            },
        )

    def connect(self, seconds: float) -> None:
        """Wait for it, at most `seconds`, and learn its tools.

        Raises:
            RpcProblem: it is too slow, or is no server of this protocol.
            ServerGone: it has ended.
        """
        until = time.monotonic() + seconds
        hello = self._peer.finish(self._hello, seconds)
        revision = hello.get("protocolVersion")
        if revision not in REVISIONS:
            raise RpcProblem(f"it speaks revision {str(revision)[:40]!r} of the protocol, which is not known here")
        self._peer.notify("notifications/initialized")
        has_tools = isinstance(hello.get("capabilities"), dict) and "tools" in hello["capabilities"]
        self.tools = self._list(until) if has_tools else []

    def refreshed(self) -> bool:
        """Read its tools again if it has said that they changed; whether it had."""
        self._peer.drain()
        if not self._changed:
            return False
        self._changed = False
        try:
            self.tools = self._list(time.monotonic() + self._call_s)
        except (RpcProblem, ServerGone):
            return False  # what it had is still offered; a call says what is wrong
        return True

    def hang_up(self) -> None:
        """Tell it to end."""
        self._process.hang_up()

    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.ended()

    def terminate(self) -> None:
        """Tell it again, by SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """End it, and all it has started, at once."""
        self._process.end("the session is over")

    def _notified(self, method: str) -> None:
        # Progress, log messages and whatever else there is are passed over.
        self._changed = self._changed or method == "notifications/tools/list_changed"

    def _list(self, until: float) -> list[Tool]:
        found: dict[str, Tool] = {}
        size = 0
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            params = {} if cursor is None else {"cursor": cursor}
            page = self._peer.request("tools/list", params, max(0.0, until - time.monotonic()))
            tools = page.get("tools")
            for entry in tools if isinstance(tools, list) else []:
                size += len(jsons.dumps(entry))
                if len(found) >= MAX_TOOLS or size > MAX_DEFINITIONS:
                    raise RpcProblem(f"it has more than {MAX_TOOLS} tools, or describes them at too great length")
                tool = self._tool(entry)
                if tool is not None:
                    found.setdefault(tool.name, tool)
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor:
                return list(found.values())
        raise RpcProblem(f"its list of tools has more than {MAX_PAGES} pages")

    def _tool(self, entry: object) -> Tool | None:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(name, str) or not name:
            return None
        if self._offered is not None and name not in self._offered:
            return None
        schema = entry.get("inputSchema")
        schema = {**schema, "type": "object"} if isinstance(schema, dict) else {"type": "object"}
        described = entry.get("description")
        described = described if isinstance(described, str) else ""
        return Tool(qualified(self.name, name), described, schema, lambda given: self._call(name, given), False)

    def _call(self, name: str, given: dict) -> str:
        try:
            result = self._peer.request("tools/call", {"name": name, "arguments": given}, self._call_s)
        except RpcProblem as e:
            raise ToolProblem(f"The MCP server {self.name!r} was asked for {name!r}: {e}.") from e
        except ServerGone as e:
            raise ToolProblem(f"The MCP server {self.name!r} is gone: {e}; do without its tools.") from e
        text = as_text(result)
        if result.get("isError") is True:
            raise ToolProblem(text)
        return text


def qualified(server: str, tool: str) -> str:
    """What the model knows a tool as: ``mcp__SERVER__TOOL``, of letters, digits, ``_`` and ``-``."""
    name = f"mcp__{_plain(server)}__{_plain(tool)}"
    if len(name) <= MAX_NAME:
        return name
    # Two long names with the same beginning stay two.
    return f"{name[: MAX_NAME - 9]}_{binascii.crc32(name.encode()):08x}"


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
