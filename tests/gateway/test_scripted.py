"""Scripted models: the same script in every API, failures, the library, and what is not hard-coded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.gateway.upstream_server import Bench, bench
from voidbox_lab.errors import UserError
from voidbox_lab.gateway import Keys, Library
from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.scripted.conversation import understand
from voidbox_lab.gateway.scripted.library import PACKAGED
from voidbox_lab.gateway.scripted.player import play
from voidbox_lab.gateway.scripted.script import Script
from voidbox_lab.gateway.scripted.upstream import words
from voidbox_lab.spec import Model

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
FUNCTION = {"name": "bash", "parameters": SCHEMA}


def _messages(turns: list[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "run"}]
    for result in turns:
        messages.append(
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "bash", "input": {}}]}
        )
        messages.append(
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": result}]}
        )
    return {"messages": messages, "tools": [{"name": "bash", "input_schema": SCHEMA}], "max_tokens": 10}


def _chat(turns: list[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "run"}]}]
    for result in turns:
        messages.append({"role": "assistant", "content": None, "tool_calls": []})
        messages.append({"role": "tool", "tool_call_id": "t", "content": result})
    return {"messages": messages, "tools": [{"type": "function", "function": FUNCTION}]}


def _responses(turns: list[str]) -> dict[str, Any]:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "run"}]}
    ]
    for result in turns:
        # One turn of the model, in three items.
        items.append({"type": "reasoning", "summary": []})
        items.append({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]})
        items.append({"type": "function_call", "call_id": "t", "name": "bash", "arguments": "{}"})
        items.append({"type": "function_call_output", "call_id": "t", "output": result})
    return {"input": items, "tools": [{"type": "function", **FUNCTION}]}


REQUESTS = {Api.MESSAGES: _messages, Api.CHAT: _chat, Api.OLLAMA: _chat, Api.RESPONSES: _responses}
PATHS = {
    Api.MESSAGES: "/v1/messages",
    Api.CHAT: "/v1/chat/completions",
    Api.RESPONSES: "/v1/responses",
    Api.OLLAMA: "/api/chat",
}


@pytest.mark.parametrize("api", list(Api))
def test_every_api_is_understood_alike(api: Api) -> None:
    """Turns, prompt, results and tools are the same whatever API told them."""
    for turns in ([], ["one"], ["one", "two"]):
        c = understand(api, REQUESTS[api](turns))
        assert (c.turn, c.prompt, c.results) == (len(turns), "run", tuple(turns))
        assert [(t.name, t.schema) for t in c.tools] == [("bash", SCHEMA)]


def _said(api: Api, body: bytes, *, stream: bool) -> tuple[str, list[dict[str, Any]]]:
    """Text and tool inputs in an answer, read as a client of `api` does."""
    text, calls, partial = "", [], ""
    if not stream:
        data = json.loads(body)
        match api:
            case Api.MESSAGES:
                text = "".join(b["text"] for b in data["content"] if b["type"] == "text")
                calls = [b["input"] for b in data["content"] if b["type"] == "tool_use"]
            case Api.CHAT:
                message = data["choices"][0]["message"]
                text = message["content"]
                calls = [json.loads(c["function"]["arguments"]) for c in message.get("tool_calls", [])]
            case Api.RESPONSES:
                text = "".join(i["content"][0]["text"] for i in data["output"] if i["type"] == "message")
                calls = [json.loads(i["arguments"]) for i in data["output"] if i["type"] == "function_call"]
            case Api.OLLAMA:
                text = data["message"]["content"]
                calls = [c["function"]["arguments"] for c in data["message"].get("tool_calls", [])]
        return text, calls
    for line in body.decode().splitlines():
        if line == "data: [DONE]" or not line.startswith(("data: ", "{")):
            continue
        event = json.loads(line.removeprefix("data: "))
        match api:
            case Api.MESSAGES if event["type"] == "content_block_delta":
                text += event["delta"].get("text", "")
                partial += event["delta"].get("partial_json", "")
            case Api.CHAT if event["choices"]:
                delta = event["choices"][0]["delta"]
                text += delta.get("content") or ""
                calls += [json.loads(c["function"]["arguments"]) for c in delta.get("tool_calls", [])]
            case Api.RESPONSES:
                text += event["delta"] if event["type"] == "response.output_text.delta" else ""
                item = event.get("item", {})
                if event["type"] == "response.output_item.done" and item["type"] == "function_call":
                    calls.append(json.loads(item["arguments"]))
            case Api.OLLAMA:
                text += event["message"]["content"]
                calls += [c["function"]["arguments"] for c in event["message"].get("tool_calls", [])]
    return text, calls + ([json.loads(partial)] if partial else [])


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", list(Api))
async def test_a_script_in_every_api(lab: Bench, api: Api, stream: bool) -> None:
    """A call by the client's own tool, then an answer with what the tool said; labelled and metered."""
    token = lab.register("scripted:shell")
    async with lab.client(token) as client:
        first = await client.post(PATHS[api], json={**REQUESTS[api]([]), "stream": stream})
        second = await client.post(PATHS[api], json={**REQUESTS[api](["hi there"]), "stream": stream})
    assert _said(api, first.content, stream=stream) == ("I run the command.", [{"command": "echo hi"}])
    assert _said(api, second.content, stream=stream) == ("The command printed:\nhi there", [])
    await lab.reported(2)
    for _, call in lab.calls:
        assert (call.source, call.cost_usd, call.status) == ("scripted", 0.0, 200)
        assert call.tokens.input > 0
        assert call.tokens.output > 0


@pytest.mark.anyio
async def test_failures_are_as_real_as_answers(lab: Bench) -> None:
    """flaky: overloaded twice, per stage; cut: breaks off; an unknown one: a clear 404."""
    async with lab.client(lab.register("scripted:flaky")) as client:
        statuses = [(await client.post("/v1/messages", json=_messages([]))).status_code for _ in range(3)]
    assert statuses == [529, 529, 200]
    async with lab.client(lab.register("scripted:flaky", stage="other")) as client:
        assert (await client.post("/v1/messages", json=_messages([]))).status_code == 529
    async with lab.client(lab.register("scripted:cut")) as client:
        cut = await client.post("/v1/messages", json={**_messages([]), "stream": True})
    assert "This answer ends before" in _said(Api.MESSAGES, cut.content.split(b"event: error")[0], stream=True)[0]
    assert "message_stop" not in cut.text
    token = lab.register("scripted:nonesuch")
    async with lab.client(token) as client:
        unknown = await client.post("/v1/messages", json=_messages([]))
    assert unknown.status_code == 404
    assert "quickstart" in unknown.json()["error"]["message"]


@pytest.mark.anyio
async def test_slow_streams_and_hang_hangs(lab: Bench) -> None:
    """Both end as soon as the client is gone."""
    async with lab.client(lab.register("scripted:slow")) as client:
        times = []
        async with client.stream("POST", "/v1/messages", json={**_messages([]), "stream": True}) as r:
            async for piece in r.aiter_raw():
                if b"text_delta" in piece:
                    times.append(time.monotonic())
                if len(times) == 4:
                    break
    assert times[3] - times[0] > 0.25
    await lab.reported(1)
    token = lab.register("scripted:hang")
    live = lab.gateway._sessions.find(token)
    assert live is not None
    async with lab.client(token) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.post("/v1/messages", json=_messages([])))
        with anyio.fail_after(30):
            while not live.in_flight:
                await anyio.sleep(0.01)
        await anyio.sleep(0.1)
        assert len(lab.calls) == 1, "it answered"
        tasks.cancel_scope.cancel()
    assert (await lab.reported(2)).status == 0


def test_packaged_scripts_are_valid() -> None:
    """Every one loads and says what it is for."""
    library = Library(PACKAGED)
    assert {"quickstart", "echo", "slow", "flaky", "hang", "shell"} <= set(library.names)
    for name in library.names:
        assert library.load(name).description


def test_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's directory comes first, changes are seen, what is wrong is one sentence."""
    monkeypatch.setenv("VOIDBOX_SCRIPTS", str(tmp_path))
    library = Library.default()
    (tmp_path / "echo.yaml").write_text("turns: [{say: mine}]")
    assert library.load("echo").turns[0].say == "mine"
    assert "quickstart" in library.names
    (tmp_path / "bad.yaml").write_text("turns: []")
    (tmp_path / "worse.yaml").write_text("turns: [")
    (tmp_path / "tool.yaml").write_text("turns: [{use: [{}]}]")
    (tmp_path / "regex.yaml").write_text("captures: {x: {regex: '('}}\nturns: [{say: a}]")
    for name, said in {"bad": "turns", "worse": "cannot be read", "tool": "shell", "regex": "regular"}.items():
        with pytest.raises(UserError, match=said) as caught:
            library.load(name)
        assert "\n" not in caught.value.message
    for name in ("../bad", "/etc/passwd", "nonesuch", ""):
        with pytest.raises(UserError, match="known are"):
            library.load(name)


@pytest.mark.anyio
async def test_check_finds_an_unknown_script_before_anything_boots(lab: Bench) -> None:
    """With the names that are known."""
    with pytest.raises(UserError, match=r"no scripted model 'quickstrat'; known are .*quickstart"):
        lab.gateway.check(Model.parse("scripted:quickstrat"), Keys())
    lab.gateway.check(Model.parse("scripted:quickstart"), Keys())


def _quickstart(results: list[str], **tools: Any) -> Any:
    script = Library(PACKAGED).load("quickstart")
    body = _messages(results)
    body["messages"][0]["content"] = "Which stock? Use /data/input/stocks.csv."
    body["tools"] += [{"name": n, "input_schema": s} for n, s in tools.items()]
    return play(script, "quickstart", understand(Api.MESSAGES, body))


def test_the_quickstarts_numbers_come_from_the_box() -> None:
    """Other numbers printed there, other numbers in the answer; none printed, no ranking claimed."""
    row = {"symbol": "ZZZ", "months": 3, "mean_monthly_return": 0.5, "monthly_volatility": 0.25}
    row |= {"sharpe": 6.93, "total_return": 2.0}
    final = _quickstart(["", "", json.dumps(row)])
    assert final.calls == ()
    assert "**ZZZ**" in final.text
    assert "6.93" in final.text
    failed = _quickstart(["", "", "python3: not found"])
    assert "could not finish" in failed.text
    assert "python3: not found" in failed.text
    assert "GOOG" not in failed.text


def test_files_are_written_by_the_clients_tool_or_by_the_shell() -> None:
    """A client without a tool for it gets a here-document."""
    by_shell = _quickstart(["csv"]).calls[0]
    assert by_shell.tool.name == "bash"
    assert by_shell.input["command"].startswith("mkdir -p /data && cat > /data/analysis.py <<'END_")
    schema = {"properties": {"path": {}, "content": {}, "why": {"type": "string"}}, "required": ["path", "why"]}
    by_tool = _quickstart(["csv"], write_file=schema).calls[0]
    assert by_tool.tool.name == "write_file"
    assert by_tool.input["path"] == "/data/analysis.py"
    assert "statistics.stdev" in by_tool.input["content"]
    assert by_tool.input["why"]


@pytest.mark.parametrize(
    ("api", "tools", "called"),
    [
        (Api.MESSAGES, [{"name": "mcp__time__now", "input_schema": {}}], ("mcp__time__now", None)),
        (Api.MESSAGES, [{"name": "Bash", "input_schema": {}}], ("mcp__time__now", None)),
        (
            Api.RESPONSES,
            [{"type": "namespace", "name": "mcp__time", "tools": [{"type": "function", "name": "now"}]}],
            ("now", "mcp__time"),
        ),
    ],
)
def test_tools_are_called_by_their_names(api: Api, tools: list[Any], called: tuple[str, str | None]) -> None:
    """However a client has them; also one that it does not offer, which it says something about."""
    prompt = 'First:\n{"call": 1, "tool": "mcp__time__now", "input": {"zone": "{{ 7 * 7 }}"}}'
    script = Library(PACKAGED).load("tools")
    key = "messages" if api is Api.MESSAGES else "input"
    body = {key: [{"role": "user", "type": "message", "content": [{"type": "text", "text": prompt}]}]}
    [call] = play(script, "tools", understand(api, {**body, "tools": tools})).calls
    assert ((call.tool.name, call.tool.namespace), call.input) == (called, {"zone": "{{ 7 * 7 }}"})
    assert play(script, "tools", understand(api, body)).calls == (), "a request without tools"
    assert "no call" in play(script, "tools", understand(api, {key: [], "tools": tools})).text


def test_what_a_box_prints_is_never_a_template() -> None:
    """Neither in a capture nor in a result."""
    script = Script.model_validate(
        {"captures": {"x": {"regex": "x=(.*)"}}, "turns": [{"say": "a"}, {"say": "{{ x }} {{ result }}"}]}
    )
    reply = play(script, "s", understand(Api.MESSAGES, _messages(["x={{ 6 * 7 }}"])))
    assert reply.text == "{{ 6 * 7 }} x={{ 6 * 7 }}"


def test_a_template_that_asks_for_what_is_not_there() -> None:
    """Said, with the script's name; attributes of Python objects are not there."""
    for say in ("{{ nonesuch }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"):
        script = Script.model_validate({"turns": [{"say": say}]})
        with pytest.raises(UserError, match="script 's' cannot fill in turn 0"):
            play(script, "s", understand(Api.MESSAGES, _messages([])))


@pytest.mark.parametrize("text", ["", " ", "a", "a b\n\nc  ", "\n| x |\n"])
def test_words_join_to_the_text(text: str) -> None:
    """Nothing is lost in streaming."""
    assert "".join(words(text)) == text


@pytest.mark.anyio
async def test_a_users_own_script_over_http(tmp_path: Path) -> None:
    """The library a gateway is given is the one it asks."""
    (tmp_path / "own.yaml").write_text("turns: [{say: 'turn {{ turn }}'}]")
    async with bench(library=Library(tmp_path)) as lab, lab.client(lab.register("scripted:own")) as client:
        r = await client.post("/v1/messages", json=_messages(["x", "y"]))
    assert r.json()["content"][0]["text"] == "turn 2"
