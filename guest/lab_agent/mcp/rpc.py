"""JSON-RPC 2.0 over a server's lines: requests with bounded waits; what else comes is sorted out here."""

from __future__ import annotations

import sys
import time

from lab_agent import jsons
from lab_agent.mcp.process import ServerGone, ServerProcess

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MESSAGES = 10_000
"""Most messages a server may send while one of its answers is awaited."""
_METHOD_NOT_FOUND = -32601
_SHOWN = 300


class RpcProblem(Exception):
    """The server answered with an error, or not in time; the message says what."""


class Peer:
    """Requests to one server, and its answers.

    Args:
        name: what the server is called in messages.
        process: the server.
        notified: told the method of each notification.
    """

    def __init__(self, name: str, process: ServerProcess, notified: Callable[[str], None]) -> None:
        self._name, self._process, self._notified = name, process, notified
        self._ids = 0

    def begin(self, method: str, params: dict) -> int:
        """Send a request; `finish` waits for its answer. Raises ServerGone."""
        self._ids += 1
        self._send({"id": self._ids, "method": method, "params": params})
        return self._ids

    def finish(self, ident: int, seconds: float) -> dict:
        """The result of request `ident`.

        Raises:
            RpcProblem: an error, or none within `seconds`; the request is cancelled then.
            ServerGone: it ended, or sent too much besides.
        """
        deadline = time.monotonic() + seconds
        for _ in range(MAX_MESSAGES):
            line = self._process.receive(deadline)
            if line is None:
                params = {"requestId": ident, "reason": f"no answer within {seconds:g} s"}
                self._send({"method": "notifications/cancelled", "params": params})
                raise RpcProblem(f"it did not answer within {seconds:g} s")
            for message in self._messages(line):
                if message.get("id") == ident and "method" not in message:
                    return _result(message)
                self._take(message)
        why = f"it sent {MAX_MESSAGES} messages instead of an answer and was stopped"
        self._process.end(why)
        raise ServerGone(why)

    def request(self, method: str, params: dict, seconds: float) -> dict:
        """`begin` and `finish`."""
        return self.finish(self.begin(method, params), seconds)

    def notify(self, method: str) -> None:
        """Send a notification. Raises ServerGone."""
        self._send({"method": method})

    def drain(self) -> None:
        """Take what has come unasked, without waiting. A server that has ended is noticed by the next request."""
        try:
            for _ in range(MAX_MESSAGES):
                line = self._process.receive(0)
                if line is None:
                    return
                for message in self._messages(line):
                    self._take(message)
        except ServerGone:
            return

    def _send(self, message: dict) -> None:
        self._process.send(jsons.dumps({"jsonrpc": "2.0", **message}))

    def _messages(self, line: bytes) -> list[dict]:
        """The messages in a line: one, several as a batch (revision 2025-03-26), or none that make sense."""
        if not line.strip():
            return []
        try:
            value = jsons.loads(line)
        except (ValueError, RecursionError):
            value = None
        values = value if isinstance(value, list) else [value]
        found = [v for v in values if isinstance(v, dict) and v.get("jsonrpc") == "2.0"]
        if len(found) < len(values):
            shown = line[:_SHOWN].decode(errors="replace")
            sys.stderr.write(f"lab-agent: the MCP server {self._name!r} wrote what is no message: {shown!r}\n")
        return found

    def _take(self, message: dict) -> None:
        """A notification, a request of the server's, or an answer nobody waits for any more."""
        method = message.get("method")
        if not isinstance(method, str):
            return
        if "id" not in message:
            self._notified(method)
        elif method == "ping":
            self._send({"id": message["id"], "result": {}})
        else:
            error = {"code": _METHOD_NOT_FOUND, "message": f"lab-agent has no {method[:100]}"}
            self._send({"id": message["id"], "error": error})


def _result(message: dict) -> dict:
    if "error" in message:
        error = message["error"] if isinstance(message["error"], dict) else {}
        raise RpcProblem(f"it answered with an error: {str(error.get('message', error.get('code')))[:2000]}")
    result = message.get("result")
    if not isinstance(result, dict):
        raise RpcProblem("its answer has no result")
    return result
