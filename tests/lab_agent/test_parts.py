"""lab-agent's parts on their own: tools and their bounds, skills, HTTP, retries."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.resources import data_dir
from voidbox_lab.spec import Skill


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, bool]]:
    """Call a tool by name, in a directory of its own."""
    from lab_agent.tools import builtin

    monkeypatch.chdir(tmp_path)
    toolbox = builtin({"PATH": os.environ["PATH"], "ANTHROPIC_API_KEY": "token"})
    return lambda name, **given: toolbox.call(name, given)


def test_bash_says_what_happened(call: Callable[..., Any]) -> None:
    """Output of both streams, exit code, signal, silence."""
    assert call("bash", command="echo a; echo b >&2") == ("a\nb", False)
    assert call("bash", command="exit 7") == ("[exit code 7]", True)
    assert call("bash", command="echo x; kill -9 $$") == ("x\n[killed by SIGKILL]", True)
    assert call("bash", command="true") == ("[no output]", False)
    assert call("bash", command="cat") == ("[no output]", False), "there is no input"
    assert call("bash", command="a\0b")[1]


def test_a_refusal_of_the_policy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What permissions allow and the kernel refused; and nothing is said of what they do not allow."""
    from lab_agent.tools import denied

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tool").write_text("x")
    said = "a\nbash: line 1: ./tool: Permission denied\n"
    assert denied.exec_note(said) == ""
    (tmp_path / "tool").chmod(0o755)
    assert "(rule 'commands') does not let ./tool run" in denied.exec_note(said)
    assert denied.exec_note(said + "later\n" * 5) == ""
    assert denied.exec_note("cat: ./none: Permission denied") == ""
    refused = PermissionError(13, "Permission denied", str(tmp_path / "tool"))
    assert "rule 'read'" in denied.file_note("read", refused)
    assert "rule 'write'" in denied.file_note("write", refused)
    assert "rule 'write'" in denied.file_note("edit", PermissionError(13, "", str(tmp_path / "new")))
    assert denied.file_note("write", PermissionError(13, "", "/no/such/file")) == ""
    assert denied.file_note("write", FileNotFoundError(2, "", str(tmp_path / "tool"))) == ""


def test_bash_is_bounded_in_time_and_leaves_nothing(call: Callable[..., Any]) -> None:
    """The whole process group goes."""
    begun = time.monotonic()
    text, is_error = call("bash", command="sleep 1000 & echo $!; sleep 1000", timeout_s=1)
    assert time.monotonic() - begun < 4.5
    assert is_error
    assert "longer than 1 s" in text
    child = int(text.split()[0])
    deadline = time.monotonic() + 2
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        status = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if status == "Z":
            break  # dead; whoever adopted it has yet to wait
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_bash_does_not_wait_for_what_it_left_in_the_background(call: Callable[..., Any]) -> None:
    """A server started by the agent may hold the pipe."""
    begun = time.monotonic()
    text, is_error = call("bash", command="sleep 5 & echo $!")
    assert time.monotonic() - begun < 4.5
    assert not is_error
    os.kill(int(text), 9)


def test_bash_is_bounded_in_output(call: Callable[..., Any]) -> None:
    """Beginning and end are kept, memory is not exhausted."""
    text, _ = call("bash", command="echo begin; head -c 5000000 /dev/zero | tr '\\0' x; echo; echo end")
    assert len(text) < 31_000
    assert text.startswith("begin\n")
    assert text.endswith("\nend")
    assert "left out" in text


def test_write_read_edit(call: Callable[..., Any], tmp_path: Path) -> None:
    """A file's life."""
    assert call("write", file_path="a/b.txt", content="one\ntwo\ntwo\n") == ("Wrote 12 bytes to a/b.txt.", False)
    assert call("read", file_path="a/b.txt") == ("     1\tone\n     2\ttwo\n     3\ttwo", False)
    assert call("read", file_path="a/b.txt", offset=2, limit=1)[0] == "     2\ttwo\n[more from line 3 on]"
    text, is_error = call("edit", file_path="a/b.txt", old_string="two", new_string="2")
    assert is_error
    assert "occurs 2 times" in text
    assert not call("edit", file_path="a/b.txt", old_string="two", new_string="2", replace_all=True)[1]
    assert not call("edit", file_path="a/b.txt", old_string="one\n", new_string="1\r\n")[1]
    assert (tmp_path / "a/b.txt").read_bytes() == b"1\r\n2\n2\n"
    assert call("edit", file_path="a/b.txt", old_string="nine", new_string="9")[1]


def test_the_file_tools_refuse_what_is_no_file(call: Callable[..., Any], tmp_path: Path) -> None:
    """Devices, pipes and directories would block or worse."""
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", "pipe", ".", "nonesuch"):
        assert call("read", file_path=path)[1], path
    assert call("write", file_path="pipe", content="x")[1]
    assert call("edit", file_path="/dev/zero", old_string="a", new_string="b")[1]


def test_reading_is_bounded(call: Callable[..., Any], tmp_path: Path) -> None:
    """Long lines, many lines, no text at all."""
    (tmp_path / "long").write_bytes(b"x" * 3_000_000)
    (tmp_path / "many").write_text("line\n" * 10_000)
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty").write_bytes(b"")
    assert len(call("read", file_path="long")[0]) < 31_000
    assert "more from line 2001" in call("read", file_path="many")[0]
    assert not call("read", file_path="binary")[1]
    assert call("read", file_path="empty")[0] == "[the file is empty]"
    assert "only 10000 lines" in call("read", file_path="many", offset=20_000)[0]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("nonesuch", {}, "no tool"),
        ("bash", {}, "needs command"),
        ("bash", {"command": 5}, "wrong type for command"),
        ("bash", {"command": "true", "timeout_s": "soon"}, "wrong type for timeout_s"),
        ("read", {"file_path": ["a"]}, "wrong type"),
    ],
)
def test_a_models_mistakes_are_told_to_it(call: Callable[..., Any], name: str, given: Any, said: str) -> None:
    """They never end the agent."""
    text, is_error = call(name, **given)
    assert is_error
    assert said in text


@pytest.mark.parametrize(
    "description",
    [
        "plain words",
        "with: colon and # hash",
        "both \"double\" and 'single'",
        "é, 中文 and 😀",
        "line one\nline two",
        "word " * 100 + "end",
        "- looks like a list",
        "ends with backslash \\",
        "\ttab",
        "",
    ],
)
def test_skill_heads_are_read_as_they_were_written(tmp_path: Path, description: str) -> None:
    """Whatever YAML makes of a description, the agent's small reader gets it back."""
    from lab_agent.skills import find

    skill = Skill(name="s", description=description, body="b\n")
    path = tmp_path / ".claude/skills/s/SKILL.md"
    path.parent.mkdir(parents=True)
    path.write_text(skill.to_markdown(), encoding="utf-8")
    [found] = find(str(tmp_path))
    assert found.name == "s"
    assert " ".join(found.description.split()) == " ".join(description.split())
    assert found.path == str(path)


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_json_values)
def test_json_is_that_of_the_json_module(value: object) -> None:
    """Written byte by byte as it writes, read as it reads, also with spaces around."""
    from lab_agent import jsons

    assert jsons.dumps(value) == json.dumps(value, separators=(",", ":")).encode()
    assert (
        jsons.loads(b" \r\n\t" + json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value
    )
    assert jsons.loads(json.dumps(value, indent=1)) == value


@pytest.mark.parametrize(
    "text",
    [b"", b" ", b"{", b"[1,]", b'{"a" 1}', b"nul", b"1 2", b'"\x00"', b"\xff", b"{'a': 1}", b'"\\u12"', b"-"],
)
def test_what_is_not_json_is_a_value_error(text: bytes) -> None:
    """Whatever is wrong with it, as with the json module."""
    from lab_agent import jsons

    for loads in (json.loads, jsons.loads):
        with pytest.raises(ValueError):  # noqa: PT011 - of which kind is all there is to know
            loads(text)


def test_what_it_imports_is_little() -> None:
    """Under an emulated CPU these cost more than all the rest; and none may be in a fork of the guest agent that
    keeps the state of a generator."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import lab_agent.main, lab_agent.http1\n"
        "try: lab_agent.http1.post('http://127.0.0.1:1', '/', {}, b'')\n"
        "except lab_agent.http1.HttpProblem: pass\n"
        "print(*sys.modules)"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(data_dir("guest"))]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    dear = {"json", "re", "enum", "signal", "socket", "encodings.idna", "random", "ssl", "hashlib", "typing"}
    assert "lab_agent.main" in loaded
    assert dear & set(loaded) == set()


def test_skills_that_are_none(tmp_path: Path) -> None:
    """No front matter: the directory's name; not readable: left out."""
    from lab_agent.skills import find, front_matter

    root = tmp_path / ".claude/skills"
    (root / "bare").mkdir(parents=True)
    (root / "bare/SKILL.md").write_text("# Just text")
    (root / "empty").mkdir()
    assert [s.name for s in find(str(tmp_path))] == ["bare"]
    assert find("/nonexistent") == []
    assert front_matter("---\nname: a\ntags:\n  - x\ndescription: >\n  two\n  lines\n---\n") == {
        "name": "a",
        "tags": "- x",
        "description": "two lines",
    }
    assert front_matter("---\nname: never ends\n") == {}


def _serve(answer: bytes, *, pieces: int = 1) -> str:
    """The URL of a server that says `answer` once, in `pieces`, whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        # The client may have heard enough before all is said.
        with (
            listener,
            listener.accept()[0] as connection,
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ):
            connection.recv(65536)
            size = max(1, len(answer) // pieces)
            for at in range(0, len(answer), size):
                connection.sendall(answer[at : at + size])
                time.sleep(0.001 if pieces > 1 else 0)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\none\r\ntwo\n\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\r\r\n7;x=y\r\n\ntwo\n\nx\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\none\r\ntwo\n\nx",
    ],
)
def test_http_bodies(answer: bytes, pieces: int) -> None:
    """By length, in chunks, until the end; however the bytes come."""
    from lab_agent.http1 import post

    response = post(_serve(answer, pieces=pieces), "/v1/messages", {}, b"{}")
    assert response.status == 200
    assert list(response.lines()) == [b"one", b"two", b"", b"x"]
    response.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 smtp\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nshort",
    ],
)
def test_http_that_is_none(answer: bytes) -> None:
    """Said so; nothing waits and nothing is taken for whole."""
    from lab_agent.http1 import HttpProblem, post

    with pytest.raises(HttpProblem):
        list(post(_serve(answer), "/", {}, b"", idle_s=5).lines())


def test_http_waits_are_bounded() -> None:
    """A server that accepts and says nothing."""
    from lab_agent.http1 import HttpProblem, post

    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(HttpProblem, match=r"within 0\.1 s"):
        post(f"http://127.0.0.1:{silent.getsockname()[1]}", "/", {}, b"", idle_s=0.1)


@pytest.mark.parametrize("url", ["", "https://a", "http://", "http://a:b", "http://a:0", "127.0.0.1:80"])
def test_urls_that_are_none(url: str) -> None:
    """Named in the message."""
    from lab_agent.http1 import HttpProblem, split_url

    with pytest.raises(HttpProblem):
        split_url(url)


def test_urls() -> None:
    """Host, port, path."""
    from lab_agent.http1 import split_url

    assert split_url("http://127.0.0.1:8129") == ("127.0.0.1", 8129, "")
    assert split_url("http://[::1]:8/x/") == ("::1", 8, "/x")
    assert split_url("HTTP://host") == ("host", 80, "")
    assert split_url("http://[::1]") == ("::1", 80, "")


def test_delays_grow_and_are_bounded() -> None:
    """What the server asks for counts, up to a bound."""
    from lab_agent.messages import MAX_DELAY_S, ApiProblem, Client

    plain = ApiProblem("x", again=True)
    delays = [Client._delay(n, plain) for n in range(1, 12)]
    assert 0.5 <= delays[0] <= 0.63
    assert delays[:5] == sorted(delays[:5])
    assert max(delays) == MAX_DELAY_S
    assert Client._delay(1, ApiProblem("x", again=True, retry_after_s=2)) == 2
    assert Client._delay(1, ApiProblem("x", again=True, retry_after_s=9999)) == MAX_DELAY_S


class _Retries:
    """Notes the retries that would be shown."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def retry(self, *, reason: str, **_: Any) -> None:
        self.reasons.append(reason)


def test_broken_connections_are_retried_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no HTTP, or half an answer: tried again, then given up with the reason."""
    from lab_agent.messages import ApiProblem, Client

    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    events = _Retries()
    with pytest.raises(ApiProblem, match="cannot be reached"):
        Client("http://127.0.0.1:9", "k", events, retries=2).ask({})  # type: ignore[arg-type]
    assert len(slept) == len(events.reasons) == 2
    half = b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {"type": "ping"}\n\n'
    with pytest.raises(ApiProblem, match="broke off"):
        Client(_serve(half), "k", events, retries=0).ask({})  # type: ignore[arg-type]
