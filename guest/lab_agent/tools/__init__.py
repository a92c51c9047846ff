"""The agent's tools, and how one is called.

A tool is a name, a description, a JSON schema and a function from its input to text. `Toolbox` collects
them; the tools of MCP servers are made of the same four things.
"""

from __future__ import annotations

from lab_agent.tools import denied, files, shell
from lab_agent.tools.tool import Tool, ToolProblem

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from lab_agent.mcp.servers import Servers

MAX_RESULT = 30_000
"""Longest result in characters; the middle of a longer one is left out, visibly."""


class Toolbox:
    """Tools by name."""

    def __init__(self, tools: list[Tool]) -> None:
        self._own = tools
        self._servers: Servers | None = None
        self._tools = {t.name: t for t in tools}

    @property
    def names(self) -> list[str]:
        """In the order they were given."""
        return list(self._tools)

    def join(self, servers: Servers) -> None:
        """Have their tools besides its own."""
        self._servers = servers
        self._tools = {t.name: t for t in self._own}
        for tool in servers.tools:
            self._tools.setdefault(tool.name, tool)

    def offered(self) -> list[dict]:
        """What the model is told about them, as of now."""
        if self._servers is not None and self._servers.refreshed():
            self.join(self._servers)
        return [
            {"name": t.name, "description": t.description, "input_schema": t.schema} for t in self._tools.values()
        ]

    def call(self, name: str, given: dict) -> tuple[str, bool]:
        """The tool's text, and whether it is an error. Whatever goes wrong is told to the model."""
        tool = self._tools.get(name)
        if tool is None:
            return f"There is no tool {name!r}; there are {', '.join(self._tools)}.", True
        if tool.checked and (problem := _misfit(tool, given)):
            return problem, True
        try:
            return shortened(tool.call(given)), False
        except ToolProblem as e:
            return shortened(str(e)), True
        except OSError as e:
            if note := denied.file_note(name, e):
                return note, True
            return f"{e.strerror or e}: {e.filename}" if e.filename else str(e), True


def shortened(text: str, limit: int = MAX_RESULT) -> str:
    """`text` with its middle left out if it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _misfit(tool: Tool, given: dict) -> str | None:
    missing = [k for k in tool.schema.get("required", []) if k not in given]
    if missing:
        return f"The tool {tool.name!r} needs {', '.join(missing)}."
    wrong = [k for k, v in given.items() if not _fits(v, tool.schema["properties"].get(k, {}).get("type"))]
    if wrong:
        return f"The tool {tool.name!r} got a value of the wrong type for {', '.join(wrong)}."
    return None


def _fits(value: object, kind: str | None) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return not (kind == "boolean" and not isinstance(value, bool))


def builtin(env: dict[str, str]) -> Toolbox:
    """bash, read, write and edit, for a session with the environment `env`."""
    return Toolbox([shell.tool(env), *files.tools()])
