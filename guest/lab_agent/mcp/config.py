"""The servers a session is given: claude-code's ``mcpServers``, with the tools of each that are offered."""

from __future__ import annotations

from lab_agent import jsons
from lab_agent.mcp import McpProblem

MAX_CONFIG = 1 << 20
MAX_SERVERS = 64


class ServerConfig:
    """One server. `tools`: those of its tools that the model is offered; None: all."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], tools: frozenset[str] | None) -> None:
        self.name, self.argv, self.env, self.tools = name, argv, env, tools


def read(path: str) -> list[ServerConfig]:
    """The servers in the file at `path`: ``{"mcpServers": {NAME: {"command", "args", "env", "tools"}}}``.

    ``tools`` is this agent's own, a list of names as the server has them.

    Raises:
        McpProblem: the file cannot be read or is no such file.
    """
    try:
        with open(path, "rb") as f:
            data = jsons.loads(f.read(MAX_CONFIG + 1))
    except OSError as e:
        raise McpProblem(f"The MCP configuration {path} cannot be read: {e.strerror}.") from e
    except (ValueError, RecursionError) as e:
        raise McpProblem(f"The MCP configuration {path} is not JSON of at most {MAX_CONFIG >> 20} MiB.") from e
    servers = data.get("mcpServers") if isinstance(data, dict) else None
    if not isinstance(servers, dict) or len(servers) > MAX_SERVERS:
        raise McpProblem(f"The MCP configuration {path} has no 'mcpServers', or more than {MAX_SERVERS}.")
    return [_server(name, given) for name, given in servers.items()]


def _server(name: str, given: object) -> ServerConfig:
    if not isinstance(given, dict):
        raise McpProblem(f"The MCP server {name!r} is not an object.")
    if given.get("type", "stdio") != "stdio" or "url" in given:
        raise McpProblem(f"The MCP server {name!r} is not one over stdio, which alone is spoken here.")
    command, args, env, tools = (given.get(k) for k in ("command", "args", "env", "tools"))
    argv = [command, *(args if isinstance(args, list) else [])]
    if not command or not _strings(argv) or not isinstance(args, list | None):
        raise McpProblem(f"The MCP server {name!r} has no command with arguments, all of them strings.")
    if env is not None and not (isinstance(env, dict) and _strings(list(env.values()))):
        raise McpProblem(f"The environment of the MCP server {name!r} is not one of strings.")
    if tools is not None and not (isinstance(tools, list) and _strings(tools)):
        raise McpProblem(f"The tools of the MCP server {name!r} are not a list of names.")
    return ServerConfig(name, argv, env or {}, None if tools is None else frozenset(tools))


def _strings(values: list) -> bool:
    return all(isinstance(v, str) and "\0" not in v for v in values)
