"""Provider keys and the servers they belong to. A key never leaves for another server than its own.

The daemon builds one `Keys` from its environment. A stage that names its own base URL gets the
provider's key only if that URL has the same origin as the provider's; otherwise a key made for the
host (``VOIDBOX_API_KEY_OPENROUTER_AI`` for openrouter.ai), or none. So a notebook from elsewhere
cannot send a user's key to a server of its author's choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Model

_NAMES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_BASES = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com/v1"}
_BASE_NAMES = {"anthropic": "ANTHROPIC_BASE_URL", "openai": "OPENAI_BASE_URL"}
_PER_HOST = "VOIDBOX_API_KEY_"


class Keys:
    """Keys and base URLs by the names of their environment variables; shows names, never values."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        wanted = {*_NAMES.values(), *_BASE_NAMES.values(), "OLLAMA_HOST"}
        self._values = {
            k: v.strip()
            for k, v in (values or {}).items()
            if (k in wanted or k.startswith(_PER_HOST)) and v.strip()
        }

    def __repr__(self) -> str:
        return f"Keys({', '.join(self.names) or 'none'})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("Keys are not pickled: they hold credentials.")

    @property
    def names(self) -> list[str]:
        """The names of the keys that are set, sorted."""
        return sorted(k for k in self._values if k.endswith("_API_KEY") or k.startswith(_PER_HOST))

    def base_url(self, model: Model) -> str:
        """The upstream's base URL, without a slash at its end."""
        if model.base_url is not None:
            return str(model.base_url).rstrip("/")
        if model.provider == "ollama":
            return _ollama(self._values.get("OLLAMA_HOST", ""))
        if model.provider == "scripted":
            return ""
        return self._values.get(_BASE_NAMES[model.provider], _BASES[model.provider]).rstrip("/")

    def key(self, model: Model) -> str | None:
        """The key for `model`'s server; None where none is needed or none is known.

        Raises:
            UserError: the provider's own server needs a key, and it is not set.
        """
        if model.provider not in _NAMES:
            return self._values.get(_host_name(self.base_url(model))) if model.base_url else None
        own = model.base_url is None or _origin(str(model.base_url)) == _origin(
            self.base_url(model.model_copy(update={"base_url": None}))
        )
        if not own:
            return self._values.get(_host_name(str(model.base_url)))
        name = _NAMES[model.provider]
        key = self._values.get(name)
        if key is None and _BASE_NAMES[model.provider] not in self._values:
            raise UserError(
                f"No {name} is set on the host, and the model {model} needs it; set it before the daemon starts, "
                "or use scripted:quickstart for a demonstration without a key.",
                cause="no-key",
            )
        return key


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _host_name(url: str) -> str:
    return _PER_HOST + re.sub(r"[^A-Z0-9]+", "_", (urlsplit(url).hostname or "").upper()).strip("_")


def _ollama(host: str) -> str:
    """`OLLAMA_HOST` as Ollama reads it: host, host:port or a URL; 0.0.0.0 means this machine."""
    parts = urlsplit(host if "//" in host else f"//{host}")
    name = parts.hostname or "127.0.0.1"
    name = "127.0.0.1" if name in {"0.0.0.0", "::"} else name  # noqa: S104 - compared, not bound
    name = f"[{name}]" if ":" in name else name
    return f"{parts.scheme or 'http'}://{name}:{parts.port or 11434}"
