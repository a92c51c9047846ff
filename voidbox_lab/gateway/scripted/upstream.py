"""A scripted model as an `Upstream`: paced, failing, hanging or cut as its script says."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from voidbox_lab.gateway.api import error_body
from voidbox_lab.gateway.scripted.conversation import understand
from voidbox_lab.gateway.scripted.library import Library
from voidbox_lab.gateway.scripted.player import Reply, play
from voidbox_lab.gateway.scripted.render import renderer
from voidbox_lab.gateway.scripted.render.base import Renderer
from voidbox_lab.gateway.upstream import Answer, Ask, UpstreamBroke


class ScriptedUpstream:
    """The script `name`, asked for the `call`-th time by a stage (the first is 0)."""

    def __init__(self, library: Library, name: str, *, call: int) -> None:
        self._library, self._name, self._call = library, name, call

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncGenerator[Answer]:
        """See `Upstream.open`; `UserError` for an unknown script or one that cannot answer."""
        script = self._library.load(self._name)
        failure = script.fail
        if failure is not None and self._call < failure.calls:
            headers = {"content-type": "application/json"}
            if failure.retry_after_s is not None:
                headers["retry-after"] = f"{failure.retry_after_s:g}"
            yield Answer(failure.status, headers, _once(error_body(ask.api, failure.status, failure.message)))
            return
        reply = play(script, self._name, understand(ask.api, ask.body))
        if reply.turn.hang:
            await anyio.sleep_forever()
        if reply.turn.delay_s:
            await anyio.sleep(reply.turn.delay_s)
        render = renderer(ask.api)(reply, str(ask.body.get("model")))
        if ask.stream:
            yield Answer(200, {"content-type": render.stream_type}, _paced(render, reply))
        else:
            yield Answer(200, {"content-type": "application/json"}, _once(render.whole()))


async def _paced(render: Renderer, reply: Reply) -> AsyncGenerator[bytes]:
    yield render.head()
    for count, word in enumerate(words(reply.text)):
        if count == reply.turn.cut_after:
            raise UpstreamBroke("The scripted model broke off its answer.", cause="broke-off")
        if reply.turn.pace_s and count:
            await anyio.sleep(reply.turn.pace_s)
        yield render.word(word)
    yield render.tail()


def words(text: str) -> list[str]:
    """`text` in pieces of a word with the space after it; joined they are `text` again."""
    return re.findall(r"\s*\S+\s*", text) or ([text] if text else [])


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data
