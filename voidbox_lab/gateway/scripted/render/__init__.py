"""Writes a scripted reply in the words of each API, streamed or whole."""

from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.scripted.render.base import Renderer
from voidbox_lab.gateway.scripted.render.chat import ChatRenderer
from voidbox_lab.gateway.scripted.render.messages import MessagesRenderer
from voidbox_lab.gateway.scripted.render.ollama import OllamaRenderer
from voidbox_lab.gateway.scripted.render.responses import ResponsesRenderer

_RENDERERS: dict[Api, type[Renderer]] = {
    Api.MESSAGES: MessagesRenderer,
    Api.CHAT: ChatRenderer,
    Api.RESPONSES: ResponsesRenderer,
    Api.OLLAMA: OllamaRenderer,
}


def renderer(api: Api) -> type[Renderer]:
    """The renderer of `api`."""
    return _RENDERERS[api]
