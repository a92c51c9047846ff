"""The dashboard in a real browser: alone, in a notebook's frame, and behind jupyter-server-proxy.

Every test fails on a request that leaves loopback, and on an error in the page.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.conftest import ROOT, await_server
from tests.cli.conftest import Place, home, spec  # noqa: F401 - home is a fixture
from tests.ports import free_port
from tests.widgets.dashboards.conftest import RUNS, served, stored  # noqa: F401 - fixtures
from voidbox_lab.spec.events import RunChanged, StageChanged
from voidbox_lab.spec.run import Trouble

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
INLINE = "import voidbox_lab\nvoidbox_lab.dashboard(height=900)"


@pytest.fixture
def watched(page: Any) -> Iterator[Any]:
    """A page whose requests and errors are looked at."""
    left: list[str] = []
    errors: list[str] = []

    def asked(request: Any) -> None:
        url = urlsplit(request.url)
        if url.scheme not in {"data", "blob"} and url.hostname != "127.0.0.1":
            left.append(request.url)

    page.on("request", asked)
    page.on("websocket", lambda ws: left.append(ws.url) if urlsplit(ws.url).hostname != "127.0.0.1" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    yield page
    assert left == [], "requests left this machine"
    assert errors == []


def tab(page: Any, name: str) -> None:
    """Show a tab."""
    page.get_by_role("button", name=name, exact=True).click()


def test_cost_runs_and_telemetry(served: str, watched: Any, shots: Any) -> None:  # noqa: F811
    """Each tab shows what is stored; filters narrow it; two runs stand side by side."""
    watched.goto(served)
    watched.get_by_text("Median time").wait_for()
    watched.locator(".bk-Figure canvas").first.wait_for()
    assert watched.locator("dl.tile", has_text="Runs").locator("dd").inner_text().startswith(f"{RUNS} ")
    table = watched.locator("table", has_text="anthropic:claude-sonnet-4-5")
    table.get_by_text("openai:gpt-5-mini").wait_for()
    shots(watched, "dashboard-cost")
    watched.get_by_role("button", name="Skill", exact=True).click()
    watched.get_by_text("divided among them in equal parts").wait_for()
    watched.get_by_role("button", name="Failed", exact=True).click()
    failed = sum(number % 9 == 4 for number in range(RUNS))
    watched.locator("dl.tile", has_text="Runs").get_by_text(str(failed), exact=False).first.wait_for()
    watched.get_by_role("button", name="All states", exact=True).click()

    tab(watched, "Runs")
    boxes = watched.locator(".tabulator-row input[type=checkbox]")
    boxes.nth(0).click()
    watched.get_by_text("Choose one more run.").wait_for()
    boxes.nth(2).click()
    watched.get_by_text("Differences of spec").wait_for()
    watched.locator("table.compare").get_by_text("data.model.name").wait_for()
    shots(watched, "dashboard-runs")

    tab(watched, "Telemetry")
    watched.get_by_text("Model calls").wait_for()
    watched.locator(".bk-Figure canvas").nth(3).wait_for()
    stages = watched.locator("select").nth(1)
    assert stages.locator("option").all_inner_texts() == ["data", "quant", "strategist"]
    stages.select_option("quant")
    shots(watched, "dashboard-telemetry")


def test_dark_and_light(served: str, browser: Any, shots: Any) -> None:  # noqa: F811
    """As the browser is set, or as its address says, or the button; canvases follow."""

    def background(page: Any) -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page = context.new_page()
    page.goto(served)
    page.get_by_text("Median time").wait_for()
    assert background(page) == "rgb(13, 17, 23)"
    shots(page, "dashboard-dark")
    page.get_by_role("button", name="Theme").click()
    assert background(page) == "rgb(255, 255, 255)"
    page.goto(f"{served}?theme=dark")
    page.get_by_text("Median time").wait_for()
    assert background(page) == "rgb(13, 17, 23)"
    context.close()


def test_a_run_appears_by_itself_and_goes_when_it_is_deleted(
    stored: Place,  # noqa: F811
    served: str,  # noqa: F811
    watched: Any,
    shots: Any,
) -> None:
    """While the page is open, in every state that it is in."""
    watched.goto(served)
    watched.get_by_text("nothing runs").wait_for()
    with stored.client() as client:
        run = client.submit(spec("slow"))
        watched.get_by_text("1 running").wait_for(timeout=40_000)
        tab(watched, "Runs")
        watched.locator(".tabulator-row", has_text=run.id).get_by_text("running").wait_for()
        client.cancel(run.id)
        watched.locator(".tabulator-row", has_text=run.id).get_by_text("cancelled").wait_for()
        shots(watched, "dashboard-live")
        client.forget(run.id)
        watched.locator(".tabulator-row", has_text=run.id).wait_for(state="detached", timeout=40_000)


def test_what_guests_said_is_text(home: Place, watched: Any) -> None:  # noqa: F811
    """Drawn by the page's own templates, in a page of its own."""
    from tests.widgets.dashboards.samples import spec as made
    from voidbox_lab.spec.events import Event
    from voidbox_lab.store.fold import rebuild
    from voidbox_lab.widgets.dashboards.comparison import compared

    trouble = Trouble(kind="command", message=HOSTILE)
    bodies = [
        ("data", StageChanged(state="failed", trouble=trouble)),
        (None, RunChanged(state="failed", trouble=trouble)),
    ]
    events = [Event(seq=n, run="run-1", at=1.0, stage=s, body=b) for n, (s, b) in enumerate(bodies, 1)]
    record = rebuild("run-1", made(0), events, at=0.0)
    watched.set_content(compared([record, record]))
    watched.get_by_text("<script>").first.wait_for()
    assert watched.locator("script, img").count() == 0
    assert "owned" not in watched.title()


@pytest.fixture(scope="module")
def lab_env(stored: Place) -> dict[str, str]:  # noqa: F811
    """JupyterLab's kernels use the home whose daemon runs."""
    return {"VOIDBOX_HOME": str(stored.settings.data.parent)}


def test_in_a_notebook(lab: Any, watched: Any, open_and_run: Any, shots: Any) -> None:
    """In a frame that works after a reload of the page; the file keeps a line of it."""
    url = lab.write("dashboard.ipynb", [INLINE])
    open_and_run(watched, url)
    frame = watched.frame_locator("iframe[title='voidbox dashboard']")
    frame.get_by_text("Median time").wait_for(timeout=60_000)
    shots(watched, "dashboard-inline")
    watched.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    deadline = time.monotonic() + 20
    while "iframe" not in json.dumps(lab.saved("dashboard.ipynb")):
        assert time.monotonic() < deadline, "the notebook was not saved within 20 s"
        time.sleep(0.2)
    assert (lab.directory / "dashboard.ipynb").stat().st_size < 4000
    watched.goto(url)
    frame.get_by_text("Median time").wait_for()


@pytest.fixture(scope="module")
def proxied_lab(stored: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """A Jupyter server that has the dashboard behind its login; its address, which lacks the token."""
    pytest.importorskip("jupyter_server_proxy", reason="jupyter-server-proxy is not installed (extra `proxy`)")
    base = tmp_path_factory.mktemp("proxied")
    (base / "config").mkdir()
    (base / "config" / "jupyter_server_config.py").write_text(
        "from voidbox_lab.widgets.dashboards.proxied import setup\n"
        "c.ServerProxy.servers = {'voidbox-dashboard': setup()}  # as the entry point, whether installed or not\n"
        "c.ServerApp.jpserver_extensions = {'jupyter_server_proxy': True}\n"
    )
    port, token = free_port(), secrets.token_hex(16)
    env = stored.env | {
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "JUPYTER_TOKEN": token,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
               f"--ServerApp.root_dir={base}", "--ServerApp.port_retries=0", "--allow-root"]  # fmt: skip
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=base)
        try:
            url = f"http://127.0.0.1:{port}"
            await_server(url, token, process, base / "server.log")
            yield f"{url}/voidbox-dashboard/?token={token}"
        finally:
            process.terminate()
            process.wait(20)
            shutil.rmtree(base, ignore_errors=True)


def test_behind_jupyters_login(proxied_lab: str, browser: Any, watched: Any, shots: Any) -> None:
    """Who has not logged in sees nothing of it; who has gets the live page, WebSocket included."""
    watched.goto(proxied_lab, timeout=60_000)
    watched.get_by_text("Median time").wait_for(timeout=60_000)
    tab(watched, "Telemetry")
    watched.get_by_text("Model calls").wait_for()
    shots(watched, "dashboard-proxied")
    stranger = browser.new_context().new_page()
    stranger.goto(proxied_lab.partition("?")[0])
    assert "/login" in stranger.url
    stranger.context.close()
