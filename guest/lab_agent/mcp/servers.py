"""All servers of a session: started together, ended together."""

from __future__ import annotations

import time

from lab_agent.mcp import McpProblem
from lab_agent.mcp.process import ServerGone
from lab_agent.mcp.rpc import RpcProblem
from lab_agent.mcp.server import Server

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from lab_agent.mcp.config import ServerConfig
    from lab_agent.tools.tool import Tool

END_S = 1.0
"""What servers that are told to end get until they are told by SIGTERM, and again until they are killed."""


class Servers:
    """The servers of `configs`, starting. Whoever makes it ends or kills it.

    Args:
        configs: which.
        env: what their environments begin with.
        start_s: bound on the start of all of them together, in seconds.
        call_s: bound on one call of a tool, in seconds.

    Raises:
        McpProblem: a program cannot be started.
    """

    def __init__(self, configs: list[ServerConfig], env: dict[str, str], *, start_s: float, call_s: float) -> None:
        self._until, self._start_s = time.monotonic() + start_s, start_s
        self._servers: list[Server] = []
        try:
            for config in configs:
                self._servers.append(_started(config, env, call_s))
        except BaseException:
            self.kill()
            raise

    @property
    def names(self) -> list[str]:
        """In the order they were given."""
        return [s.name for s in self._servers]

    @property
    def tools(self) -> list[Tool]:
        """The tools of all of them."""
        return [t for s in self._servers for t in s.tools]

    def connect(self) -> None:
        """Wait until all have started. A session begins with all its tools or not at all: a model that lacks one
        does something else without a word.

        Raises:
            McpProblem: one has not.
        """
        for server in self._servers:
            try:
                server.connect(max(0.0, self._until - time.monotonic()))
            except RpcProblem as e:
                late = f" ({self._start_s:g} s for the start of all)" if time.monotonic() >= self._until else ""
                raise McpProblem(f"The MCP server {server.name!r} did not start: {e}{late}.") from e
            except ServerGone as e:
                raise McpProblem(
                    f"The MCP server {server.name!r} did not start: {e}; its messages are in the log."
                ) from e

    def refreshed(self) -> bool:
        """Read the tools of those again that said they changed; whether any had."""
        changed = [s.refreshed() for s in self._servers]
        return any(changed)

    def end(self) -> None:
        """End them as the protocol has it (Lifecycle, "Shutdown"); takes at most twice `END_S`."""
        try:
            for server in self._servers:
                server.hang_up()
            if not self._all_ended(END_S):
                for server in self._servers:
                    server.terminate()
                self._all_ended(END_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End them, and all they have started, at once."""
        for server in self._servers:
            server.kill()
        self._servers = []

    def _all_ended(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not all(s.ended() for s in self._servers):
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        return True


def _started(config: ServerConfig, env: dict[str, str], call_s: float) -> Server:
    try:
        return Server(config, env, call_s=call_s)
    except OSError as e:
        raise McpProblem(
            f"The MCP server {config.name!r} cannot be started: {config.argv[0]}: {e.strerror or e}."
        ) from e
    except ServerGone as e:
        raise McpProblem(f"The MCP server {config.name!r} did not start: {e}.") from e
