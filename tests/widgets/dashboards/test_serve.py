"""The served dashboard: who gets in, what it loads, how it ends."""

from __future__ import annotations

import re
import socket
import stat
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.cli.conftest import Place
from tests.widgets.dashboards.conftest import ended, url_of

ROOT = Path(__file__).parents[3]
SECRET = re.compile(r"/[A-Za-z0-9_-]{43}/")


def test_the_url_is_loopback_with_a_token(served: str) -> None:
    url = urlsplit(served)
    assert url.hostname == "127.0.0.1"
    assert SECRET.fullmatch(url.path), "256 bits"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ws",
        "/static/js/bokeh.min.js",
        "/favicon.ico",
        "/metadata",
        "/autoload.js",
        f"/{'x' * 43}/",
        "//",
        "/%2e/",
    ],
)
def test_nothing_is_served_without_the_token(served: str, path: str) -> None:
    url = urlsplit(served)
    answer = httpx.get(f"http://{url.netloc}{path}", trust_env=False, timeout=60)
    assert answer.status_code in {403, 404}
    assert len(answer.content) < 500


def test_a_websocket_needs_the_token_and_the_pages_own_origin(served: str) -> None:
    """A page of another site that learned the token could not use it either."""
    url = urlsplit(served)
    page = httpx.get(served, trust_env=False, timeout=60).text
    session = re.search(r'"token":"([^"]+)"', page)
    assert session is not None
    own = f"http://{url.netloc}"

    def attempt(path: str, origin: str) -> None:
        where = f"ws://{url.netloc}{path}ws"
        with connect(where, origin=origin, subprotocols=["bokeh", session[1]], open_timeout=60) as ws:  # type: ignore[arg-type, list-item]
            ws.recv(timeout=60)

    attempt(url.path, own)
    for path, origin in [
        ("/", own),
        (url.path, "http://evil.example"),
        (url.path, f"http://localhost:{url.port}"),
        (url.path, f"http://127.0.0.1:{(url.port or 0) + 1}"),
    ]:
        with pytest.raises(InvalidStatus) as refused:
            attempt(path, origin)
        assert refused.value.response.status_code in {403, 404}


def test_the_page_names_no_other_server(served: str) -> None:
    """Nor lets the browser tell others its address."""
    page = httpx.get(served, trust_env=False, timeout=60)
    assert page.status_code == 200
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    assert "cdn." not in page.text
    assert '<meta name="referrer" content="no-referrer">' in page.text


def test_the_token_of_a_session_carries_no_cookie(served: str) -> None:
    """Cookies of 127.0.0.1 are of all servers there."""
    page = httpx.get(served, headers={"Cookie": "jupyter=secret-of-another"}, trust_env=False, timeout=60)
    session = re.search(r'"token":"([^".]+)', page.text)
    assert session is not None
    from bokeh.util.token import get_token_payload

    payload = get_token_payload(session[1])
    assert payload["cookies"] == {}
    assert set(payload["headers"]) <= {"Host"}


def test_the_environment_cannot_have_scripts_loaded_from_elsewhere(stored: Place) -> None:
    """BOKEH_RESOURCES is for other programs of Bokeh's."""
    env = stored.env | {"BOKEH_RESOURCES": "cdn"}
    process = subprocess.Popen(
        [sys.executable, "-m", "voidbox_lab.cli", "dashboard", "--no-browser", "--json"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    page = httpx.get(url_of(process), trust_env=False, timeout=60)
    assert ended(process)[0] == 0
    assert "cdn." not in page.text
    assert "static/js/bokeh.min.js" in page.text


def test_it_ends_with_ctrl_c(stored: Place) -> None:
    """Exit code 0, nothing said, the token in no file that is left."""
    process = stored.start("dashboard", "--no-browser")
    assert process.stdout is not None
    assert SECRET.search(process.stdout.readline())
    arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
    assert not SECRET.search(arguments)
    code, err = ended(process)
    assert (code, err.strip()) == (0, "Ctrl-C ends it.")


def test_the_browser_is_given_a_private_file(stored: Place, tmp_path: Path) -> None:
    """The URL is in no argument, which every user can see; the file goes at the end."""
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$@" > {seen}.part\nmv {seen}.part {seen}\n')
    browser.chmod(0o755)
    env = stored.env | {"BROWSER": str(browser)}
    process = subprocess.Popen(
        [sys.executable, "-m", "voidbox_lab.cli", "dashboard", "--json"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    url = url_of(process)
    from tests.daemon.test_life import until

    until(seen.exists, 20)
    page = Path(seen.read_text().strip().removeprefix("file://"))
    assert page.parent == stored.settings.runtime
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert url in page.read_text()
    assert ended(process)[0] == 0
    assert not page.exists()


def test_a_port_that_is_taken_is_the_users_to_change(stored: Place) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        done = stored.voidbox("dashboard", "--no-browser", "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert done.stdout == ""


def test_behind_a_proxy_it_listens_on_a_socket_of_the_user(stored: Place, tmp_path: Path) -> None:
    """As jupyter-server-proxy starts it: no port, no token; who may connect is for the proxy to say."""
    from voidbox_lab.widgets.dashboards.proxied import setup

    assert {"panel", "bokeh", "jupyter_server_proxy"} & imported("voidbox_lab.widgets.dashboards.proxied") == set()
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, name = entry["jupyter_serverproxy_servers"]["voidbox-dashboard"].split(":")
    assert getattr(import_module(module), name) is setup
    described = setup()
    assert Path(described["launcher_entry"]["icon_path"]).is_file()
    where = tmp_path / "socket"
    command = [part.format(unix_socket=where) for part in described["command"]]
    process = subprocess.Popen(
        [*command, "--json"], env=stored.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert url_of(process) == str(where)
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(where)), timeout=60) as http:
        assert "voidbox dashboard" in http.get("http://proxy/").text
    assert ended(process)[0] == 0


def imported(what: str) -> set[str]:
    """Top-level packages that importing `what` brings."""
    code = f"import sys, {what}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("what", ["voidbox_lab", "voidbox_lab.cli.app", "voidbox_lab.magics", "voidbox_lab.api"])
def test_panel_is_imported_only_when_asked_for(what: str) -> None:
    assert {"panel", "bokeh", "tornado"} & imported(f"voidbox_lab; voidbox_lab.dashboard; import {what}") <= (
        {"tornado"} if what == "voidbox_lab.magics" else set()
    )


def test_in_a_notebook_it_is_a_frame_of_this_kernels_server(stored: Place) -> None:
    """One server, however often it is asked for; on a hub, what the proxy has."""
    code = """
import os, voidbox_lab
one, two = voidbox_lab.dashboard(), voidbox_lab.dashboard(theme="dark", height=400)
import httpx
print(one.url)
print(two.url)
print(httpx.get(one.url, trust_env=False, timeout=60).status_code)
print(two._repr_html_())
os.environ["JUPYTERHUB_SERVICE_PREFIX"] = "/user/ada/"
print(voidbox_lab.dashboard().url)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=stored.env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two, status, html, hub = done.stdout.splitlines()
    assert SECRET.fullmatch(urlsplit(one).path)
    assert two == f"{one}?theme=dark"
    assert status == "200"
    assert f'src="{two}"' in html
    assert 'height="400"' in html
    assert hub == "/user/ada/voidbox-dashboard/"
