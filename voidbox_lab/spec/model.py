"""Which model a stage talks to, in one field: ``provider:name``."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, HttpUrl

from voidbox_lab.errors import UserError
from voidbox_lab.spec.base import Spec
from voidbox_lab.spec.validate import validated

Provider = Literal["anthropic", "openai", "ollama", "scripted"]
ModelSource = Literal["live", "replay", "scripted"]
"""Where a stage's answers came from; every result carries it."""


class Model(Spec):
    """A model behind the gateway.

    `provider` says which API the upstream speaks (``scripted``: none, answers come from a script);
    `base_url` points at any compatible server instead of the provider's own.
    """

    provider: Provider
    name: str = Field(min_length=1, max_length=200, pattern=r"^[\w.:/@+-]+$")
    base_url: HttpUrl | None = None

    @classmethod
    def parse(cls, text: str) -> Model:
        """``anthropic:claude-…``, ``ollama:qwen3``, ``scripted:quickstart``, or with a base URL:
        ``openai:NAME@http://127.0.0.1:8080/v1``.

        Raises:
            UserError: no provider, or one that is not known.
        """
        provider, colon, rest = text.partition(":")
        if not colon or provider not in get_args(Provider):
            raise UserError(
                f"The model {text!r} names no known provider; write PROVIDER:NAME with one of "
                f"{', '.join(get_args(Provider))}."
            )
        name, _, url = rest.partition("@http")
        return validated(cls, provider=provider, name=name, base_url=f"http{url}" if url else None)

    def __str__(self) -> str:
        return f"{self.provider}:{self.name}" + (f"@{self.base_url}" if self.base_url else "")
