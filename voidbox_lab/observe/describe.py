"""Attributes of spans, from specs and events, by the `conventions`. Contents of messages only where asked for."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from voidbox_lab.observe import conventions as c
from voidbox_lab.observe.span import Usage, Value, printable
from voidbox_lab.spec import BoxFacts, Model, RunSpec, Stage, Tokens, Trouble
from voidbox_lab.spec.events import Egress, ModelCall

MAX_CONTENT = 16 * 1024
"""Characters of a message that are kept, where any are."""
Attributes = dict[str, Value]


def of_run(run: str, spec: RunSpec) -> Attributes:
    """Of a run."""
    found: Attributes = {c.OPERATION: c.WORKFLOW, c.RUN_ID: run}
    return found | ({c.WORKFLOW_NAME: spec.name} if spec.name else {})


def of_stage(run: str, stage: Stage, attempt: int) -> Attributes:
    """Of an attempt at a stage, and of what is within it."""
    found: Attributes = {c.RUN_ID: run, c.STAGE: stage.box.name, c.ATTEMPT: attempt}
    return found | ({c.STAGE_NEEDS: stage.needs} if stage.needs else {})


def of_work(stage: Stage, *, contents: bool) -> Attributes:
    """Of an agent or a command."""
    box = stage.box
    if box.command is not None:
        found: Attributes = {c.EXECUTABLE: PurePosixPath(box.command[0]).name}
        return found | ({c.COMMAND_ARGS: tuple(printable(a, 1000) for a in box.command[:100])} if contents else {})
    found = {c.OPERATION: c.AGENT, c.AGENT_NAME: box.name, c.AGENT_CLI: box.agent} | of_model(box.model)
    return found | ({c.INPUT_MESSAGES: _messages("user", box.prompt)} if contents else {})


def of_model(model: Model | None) -> Attributes:
    """Of whatever asks `model`."""
    if model is None:
        return {}
    found: Attributes = {c.PROVIDER: model.provider, c.REQUEST_MODEL: model.name}
    if model.base_url is not None and model.base_url.host:
        found[c.SERVER_ADDRESS] = model.base_url.host
        if model.base_url.port:
            found[c.SERVER_PORT] = model.base_url.port
    return found


def of_call(call: ModelCall, model: Model | None) -> Attributes:
    """Of a model call; its tokens are of its usage."""
    found: Attributes = {c.OPERATION: c.CHAT, **of_model(model), c.REQUEST_MODEL: call.model}
    found |= {c.MODEL_SOURCE: call.source, c.REQUEST_ID: printable(call.request)}
    if call.status:
        found[c.STATUS_CODE] = call.status
    if call.first_byte_s is not None:
        found[c.FIRST_CHUNK] = call.first_byte_s
    return found


def call_error(call: ModelCall) -> str:
    """``error.type`` of a model call; "" for one that succeeded."""
    if 200 <= call.status < 300:
        return ""
    return str(call.status) if call.status else "connection"


def of_usage(usage: Usage) -> Attributes:
    """What was used, by the conventions' way of counting; a cost only where all of it is known."""
    tokens: Tokens = usage.tokens
    found: Attributes = {
        c.INPUT_TOKENS: tokens.input + tokens.cache_read + tokens.cache_write,
        c.OUTPUT_TOKENS: tokens.output,
    }
    if tokens.cache_read:
        found[c.CACHE_READ_TOKENS] = tokens.cache_read
    if tokens.cache_write:
        found[c.CACHE_WRITE_TOKENS] = tokens.cache_write
    return found | ({} if usage.cost_usd is None else {c.COST: usage.cost_usd})


def of_box(facts: BoxFacts) -> Attributes:
    """Of what a stage ran on."""
    found: Attributes = {
        c.ISOLATION: facts.isolation,
        c.BOX_START: facts.start,
        c.DOMAIN: facts.domain,
        c.IMAGE: facts.image,
        c.MEMORY_MB: facts.memory_mb,
        c.VCPUS: facts.vcpus,
    }
    return found | ({c.BOX_HOST: facts.host} if facts.host else {})


def of_egress(body: Egress) -> Attributes:
    """Of a connection."""
    found: Attributes = {
        c.SERVER_ADDRESS: printable(body.host),
        c.SERVER_PORT: body.port,
        c.VERDICT: body.verdict,
        c.RULE: printable(body.rule, 320),
        c.BYTES_OUT: body.bytes_out,
        c.BYTES_IN: body.bytes_in,
    }
    return found | ({c.PEER_ADDRESS: body.address} if body.address else {})


def of_trouble(trouble: Trouble) -> Attributes:
    """``error.type``, of few values, and the exit code."""
    found: Attributes = {c.ERROR_TYPE: printable(trouble.cause or trouble.limit or trouble.kind)}
    return found | ({} if trouble.exit_code is None else {c.EXIT_CODE: trouble.exit_code})


def sentence(trouble: Trouble, *, contents: bool) -> str:
    """Why something did not succeed. What an agent said about its failure is contents: only its kind is told."""
    if trouble.kind == "command" and not contents:
        code = "" if trouble.exit_code is None else f" with exit code {trouble.exit_code}"
        return f"the command failed{code}"
    return printable(trouble.message, 1000)


def content(value: Any) -> str:
    """A message's content as text, cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_CONTENT else f"{text[:MAX_CONTENT]}… ({len(text):,} characters)"


def answered(text: str) -> Attributes:
    """The answer of an agent, as contents."""
    return {c.OUTPUT_MESSAGES: _messages("assistant", text)}


def _messages(role: str, text: str) -> str:
    message: dict[str, Any] = {"role": role, "parts": [{"type": "text", "content": content(text)}]}
    if role == "assistant":
        message["finish_reason"] = "stop"
    return json.dumps([message], ensure_ascii=False)
