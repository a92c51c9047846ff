"""Lets an agent that speaks Anthropic Messages use a server that speaks OpenAI Chat Completions.

`request` turns the question, `response` the whole answer, `stream` the streamed one; `upstream` joins
them. Not carried over, because there is no counterpart: prompt caching marks, thinking blocks, citations.
"""

from voidbox_lab.gateway.translate.upstream import TranslatedUpstream

__all__ = ["TranslatedUpstream"]
