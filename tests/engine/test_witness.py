"""Which tool call a connection belongs to."""

from __future__ import annotations

import pytest

from voidbox_lab.engine.witness import MAX_CALLS, Witness
from voidbox_lab.spec.events import Body, Denied, Egress, ToolCall, ToolResult

pytestmark = pytest.mark.anyio


class Clocked:
    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[Body] = []
        self.witness = Witness(self.take, lambda: self.now)

    async def take(self, body: Body) -> None:
        self.events.append(body)

    async def call(self, name: str) -> None:
        await self.witness.emit(ToolCall(id=name, name="bash"))

    async def result(self, name: str) -> None:
        await self.witness.emit(ToolResult(id=name, content=""))

    async def connection(self, seconds: float) -> str | None:
        """What a connection that ended now, after `seconds`, is said to be of."""
        await self.witness.egress(Egress(host="x", port=1, verdict="allowed", duration_s=seconds))
        last = self.events[-1]
        assert isinstance(last, Egress)
        return last.tool_call


async def test_the_only_open_call_is_it() -> None:
    """Also when its result came first; not one that was over before, nor one of two."""
    at = Clocked()
    assert await at.connection(0.1) is None
    at.now = 10
    await at.call("a")
    at.now = 11
    assert await at.connection(0.5) == "a"
    at.now = 12
    await at.result("a")
    at.now = 12.01
    assert await at.connection(0.5) == "a"
    at.now = 20
    assert await at.connection(0.5) is None
    await at.call("b")
    assert await at.connection(0.5) == "b"
    await at.call("c")
    assert await at.connection(0.5) is None
    assert await at.connection(15) is None
    await at.result("b")
    at.now = 21
    assert await at.connection(0.5) == "c"


async def test_everything_passes_and_memory_is_bounded() -> None:
    """Whatever an agent claims to call, and results of nothing."""
    at = Clocked()
    for n in range(3 * MAX_CALLS):
        await at.call(str(n))
    await at.result("never called")
    await at.witness.egress(Denied(rule="egress", subject="x:1", message="No."))
    assert len(at.events) == 3 * MAX_CALLS + 2
    assert await at.connection(1) is None
    assert len(at.witness._calls) == MAX_CALLS
