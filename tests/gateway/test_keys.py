"""Keys and where they go, URLs, guards, sessions: without a server."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.errors import LimitExceeded, UserError
from voidbox_lab.gateway import Keys, StageSession
from voidbox_lab.gateway.api import Api
from voidbox_lab.gateway.guard import guarded
from voidbox_lab.gateway.redact import Redactor
from voidbox_lab.gateway.session import Sessions
from voidbox_lab.gateway.sse import Splitter
from voidbox_lab.gateway.upstream import endpoint
from voidbox_lab.spec import Model

ENV = {
    "ANTHROPIC_API_KEY": "sk-ant",
    "OPENAI_API_KEY": "sk-oai",
    "VOIDBOX_API_KEY_ROUTER_EXAMPLE": "sk-r",
    "PATH": "/x",
}


def test_keys_show_names_only() -> None:
    """Not in repr, not by pickle; other variables are not even taken in."""
    keys = Keys(ENV)
    assert keys.names == ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "VOIDBOX_API_KEY_ROUTER_EXAMPLE"]
    assert "sk-" not in repr(keys) + str(StageSession("r", "s", Model.parse("openai:m"), keys))
    with pytest.raises(TypeError):
        pickle.dumps(keys)
    with pytest.raises(TypeError):
        copy.copy(keys)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("anthropic:m", "sk-ant"),
        ("openai:m", "sk-oai"),
        ("ollama:m", None),
        ("scripted:echo", None),
        ("anthropic:m@https://api.anthropic.com/", "sk-ant"),
        ("anthropic:m@https://api.anthropic.com.evil.example/", None),
        ("anthropic:m@http://api.anthropic.com/", None),
        ("anthropic:m@https://api.anthropic.com:444/", None),
        ("openai:m@http://127.0.0.1:8080/v1", None),
        ("openai:m@https://router.example/v1", "sk-r"),
        ("ollama:m@https://router.example", "sk-r"),
    ],
)
def test_a_key_goes_to_its_own_server_only(model: str, key: str | None) -> None:
    """A notebook's base URL cannot draw a provider's key to itself."""
    assert Keys(ENV).key(Model.parse(model)) == key


def test_a_users_own_base_url() -> None:
    """Set in the environment beside the key, it is where the key belongs; then a key may also be absent."""
    keys = Keys({"OPENAI_API_KEY": "sk", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1/"})
    assert keys.base_url(Model.parse("openai:m")) == "http://127.0.0.1:1/v1"
    assert keys.key(Model.parse("openai:m@http://127.0.0.1:1/v1")) == "sk"
    assert keys.key(Model.parse("openai:m@https://api.openai.com/v1")) is None
    assert Keys({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}).key(Model.parse("openai:m")) is None


@pytest.mark.parametrize("model", ["anthropic:m", "openai:m"])
def test_a_missing_key_is_named(model: str) -> None:
    """With what to do about it. An empty one is missing."""
    with pytest.raises(UserError, match=f"No {model.split(':')[0].upper()}_API_KEY"):
        Keys({"ANTHROPIC_API_KEY": " ", "OPENAI_API_KEY": ""}).key(Model.parse(model))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("box:1234", "http://box:1234"),
        ("https://ollama.example:443", "https://ollama.example:443"),
        ("[::1]:5", "http://[::1]:5"),
    ],
)
def test_ollama_host(host: str, url: str) -> None:
    """As Ollama itself reads it."""
    assert Keys({"OLLAMA_HOST": host}).base_url(Model.parse("ollama:m")) == url


@pytest.mark.parametrize(
    ("base", "provider", "api", "url"),
    [
        ("https://api.anthropic.com", "anthropic", Api.MESSAGES, "https://api.anthropic.com/v1/messages"),
        ("https://a/v1/", "anthropic", Api.MESSAGES, "https://a/v1/messages"),
        ("https://a/claude", "anthropic", Api.MESSAGES, "https://a/claude/v1/messages"),
        ("https://api.openai.com/v1", "openai", Api.CHAT, "https://api.openai.com/v1/chat/completions"),
        ("http://h:1", "openai", Api.RESPONSES, "http://h:1/v1/responses"),
        ("https://h/api/openai", "openai", Api.CHAT, "https://h/api/openai/chat/completions"),
        ("http://h:1", "ollama", Api.OLLAMA, "http://h:1/api/chat"),
        ("http://h:1/v1", "ollama", Api.OLLAMA, "http://h:1/api/chat"),
        ("http://h:1", "ollama", Api.CHAT, "http://h:1/v1/chat/completions"),
    ],
)
def test_endpoints(base: str, provider: str, api: Api, url: str) -> None:
    """With or without the version, as users write base URLs."""
    assert endpoint(base, provider, api) == url


def test_tokens() -> None:
    """Long, random, found only whole, gone when revoked."""
    sessions = Sessions()
    session = StageSession("r", "s", Model.parse("scripted:echo"))
    one, two = sessions.add(session), sessions.add(session)
    assert one != two
    assert len(one) >= 43
    assert sessions.find(one) is not sessions.find(two)
    for wrong in ("", one[:-1], one + "x", one.swapcase(), "é", "\udcff"):
        assert sessions.find(wrong) is None
    assert one not in repr(vars(sessions))
    sessions.remove(one)
    sessions.remove(one)
    assert sessions.find(one) is None
    assert sessions.find(two) is not None


@pytest.mark.parametrize(
    ("api", "tool", "kept"),
    [
        (Api.MESSAGES, {"name": "bash", "input_schema": {}}, True),
        (Api.MESSAGES, {"type": "custom", "name": "x"}, True),
        (Api.MESSAGES, {"type": "bash_20250124", "name": "bash"}, True),
        (Api.MESSAGES, {"type": "web_fetch_20250910", "name": "web_fetch"}, False),
        (Api.MESSAGES, {"type": "something_new", "name": "x"}, False),
        (Api.MESSAGES, {"type": 5}, False),
        (Api.RESPONSES, {"type": "function", "name": "x"}, True),
        (Api.RESPONSES, {"type": "namespace", "name": "x"}, True),
        (Api.RESPONSES, {"type": "web_search"}, False),
        (Api.RESPONSES, {"type": "mcp", "server_url": "https://evil.example"}, False),
        (Api.CHAT, {"type": "function", "function": {}}, True),
    ],
)
def test_only_tools_that_run_in_the_box_are_offered(api: Api, tool: dict[str, Any], kept: bool) -> None:
    """An unknown kind is taken for hosted: the safe side."""
    assert ("tools" in guarded(api, {"tools": [tool], "tool_choice": "auto"})) is kept


@pytest.mark.parametrize(
    ("api", "part"),
    [
        (Api.MESSAGES, {"type": "document", "source": {"type": "url", "url": "https://x"}}),
        (Api.MESSAGES, {"type": "tool_result", "content": [{"type": "image", "source": {"url": "http://x"}}]}),
        (Api.CHAT, {"type": "image_url", "image_url": {"url": "https://x"}}),
        (Api.RESPONSES, {"type": "input_image", "image_url": "https://x"}),
        (Api.RESPONSES, {"type": "input_file", "file_url": "https://x"}),
    ],
)
def test_content_by_url_is_refused(api: Api, part: dict[str, Any]) -> None:
    """In every shape; the same data inline is not."""
    name = "input" if api is Api.RESPONSES else "messages"
    with pytest.raises(UserError, match="by URL"):
        guarded(api, {name: [{"role": "user", "content": [part]}]})
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}
    written = {"type": "tool_use", "id": "t", "name": "fetch", "input": {"type": "image_url", "url": "https://x"}}
    guarded(api, {name: [{"role": "user", "content": [inline, written, "https://x"]}]})


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"SECRET", b"-KEY-", b"SECRET-KEY-1"]), max_size=12))
def test_a_redacted_stream_never_holds_the_secret(pieces: list[bytes]) -> None:
    """However it is cut; and nothing else is lost."""
    redactor = Redactor("SECRET-KEY-1")
    out = b"".join(redactor.feed(p) for p in pieces) + redactor.end()
    whole = b"".join(pieces)
    assert b"SECRET-KEY-1" not in out
    assert out == whole.replace(b"SECRET-KEY-1", b"[redacted]")


def test_an_event_without_an_end_is_bounded() -> None:
    """An upstream cannot make the gateway hoard."""
    splitter = Splitter(limit=1000)
    for _ in range(10):
        assert splitter.feed(b"x" * 100) == []
    with pytest.raises(LimitExceeded, match="1000 bytes"):
        splitter.feed(b"x")
