"""The panel, the run tab, the status bar and the renderer of saved runs in a real JupyterLab, before a real daemon
whose boxes are doubles."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.panel_daemon import DECEIVING
from voidbox_lab.client import Client
from voidbox_lab.client.launch import probe
from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Model, RunRecord, RunSpec, Stage, VoidBoxSpec
from voidbox_lab.widgets.display import RUN_MIME

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
CENT = "$0.0123"
TURNS = re.compile("[\x7f\u202a-\u202e\u2066-\u2069]")
"""What makes text read other than it is."""


@pytest.fixture(scope="module")
def lab_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"VOIDBOX_HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture
def daemon(lab_env: dict[str, str]) -> Iterator[Client]:
    """A client of a daemon with an empty store."""
    settings = Settings.from_env(os.environ | lab_env).prepare()
    for file in settings.data.glob("runs.sqlite*"):
        file.unlink()
    with serving(lab_env), Client(settings, start=False, env={}) as client:
        yield client


@contextmanager
def serving(lab_env: dict[str, str]) -> Iterator[None]:
    """A daemon over the store that there is."""
    settings = Settings.from_env(os.environ | lab_env)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.browser.panel_daemon"],
        env=os.environ | lab_env | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 60
        while probe(settings) is None:
            assert process.poll() is None, "the daemon ended at once"
            assert time.monotonic() < deadline, "the daemon did not answer within 60 s"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def pipeline(*names: str, name: str | None = None) -> RunSpec:
    boxes = [VoidBoxSpec(name=n, prompt="p", model=Model.parse("scripted:m")) for n in names]
    stages = tuple(Stage(box=b, needs=(names[i - 1],) if i else ()) for i, b in enumerate(boxes))
    return RunSpec(name=name, stages=stages, fresh=True)


def until_over(client: Client, run: str) -> RunRecord:
    deadline = time.monotonic() + 30
    while (record := client.run(run)).finished_at is None:
        assert time.monotonic() < deadline, "the run did not end within 30 s"
        time.sleep(0.1)
    return record


def in_lab(page: Any, lab: Any, *, panel: bool = True) -> Any:
    """JupyterLab open on the launcher, the panel in front; the panel."""
    page.goto(f"{lab.url}/lab?reset&token={lab.token}")
    page.locator(".jp-Launcher").wait_for()
    shown = page.locator(".vbl-panel")
    if panel and not shown.is_visible():
        page.get_by_role("tab", name="voidbox: runs, boxes, cost").click()
        shown.wait_for()
    return shown


def dark(page: Any) -> None:
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")


def looked(page: Any, times: int = 3) -> None:
    """Wait until JupyterLab has asked for the overview so often again."""
    for _ in range(times):
        page.wait_for_event("response", lambda response: "/voidbox/api/overview" in response.url)


def test_a_run_appears_and_is_cancelled(lab: Any, daemon: Client, page: Any, shots: Any) -> None:
    """Its state, its box with curves and its cost show without a reload; one click ends it."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    ended = [daemon.submit(pipeline("one")).id, daemon.submit(pipeline("broken", name="failing")).id]
    for run in ended:
        until_over(daemon, run)
    panel = in_lab(page, lab)
    panel.get_by_text("Nothing runs.").wait_for()
    page.locator(".vbl-status").get_by_text("$0.0246 today").wait_for()
    assert panel.locator(".vbl-run").count() == 2
    panel.locator(".vbl-run[data-state=failed]").get_by_text("exit").first.wait_for()

    live = daemon.submit(pipeline("one", "slow-quant", "last", name="pipeline")).id
    row = panel.locator(f".vbl-run[data-run={live}][data-state=running]")
    row.get_by_text("slow-quant").wait_for()
    row.get_by_role("progressbar").and_(page.locator("[aria-valuetext='1 of 3 stages over']")).wait_for()
    row.locator(".vbl-spark", has_text="CPU").wait_for()
    box = panel.locator(".vbl-box[data-stage=slow-quant]")
    box.locator(".vbl-badge[data-kind=tcg]").wait_for()
    page.locator(".vbl-status").get_by_text("1 run ·").wait_for()
    page.locator(".vbl-status").get_by_text("$0.0492 today").wait_for()
    page.wait_for_timeout(4000)
    shots(page, "panel")
    dark(page)
    page.wait_for_timeout(500)
    shots(page, "panel-dark")

    row.get_by_role("button", name="Cancel pipeline").click()
    panel.locator(f".vbl-run[data-run={live}][data-state=cancelled]").wait_for()
    panel.get_by_role("status").get_by_text("Run pipeline cancelled.").wait_for(state="attached")
    assert until_over(daemon, live).state == "cancelled"
    panel.get_by_text("Nothing runs.").wait_for()
    elsewhere = [url for url in asked if not url.startswith((lab.url, "data:", "blob:"))]
    assert not elsewhere, "JupyterLab asked somebody else"


def test_a_run_is_paused_and_resumed_by_keyboard(lab: Any, daemon: Client, page: Any) -> None:
    run = daemon.submit(pipeline("slow", name="careful")).id
    panel = in_lab(page, lab)
    panel.get_by_role("button", name="Pause careful").focus()
    page.keyboard.press("Enter")
    panel.locator(".vbl-run[data-state=paused]").wait_for()
    panel.get_by_role("button", name="Resume careful").focus()
    page.keyboard.press("Enter")
    panel.locator(".vbl-run[data-state=running]").wait_for()
    daemon.cancel(run)
    panel.locator(".vbl-run[data-state=cancelled]").wait_for()


def test_a_run_in_a_tab(lab: Any, daemon: Client, page: Any, shots: Any) -> None:
    """Stages and what they do, live; what a guest says is text."""
    run = daemon.submit(pipeline("hostile", "slow-quant", "last", name="pipeline")).id
    panel = in_lab(page, lab)
    panel.locator(f".vbl-run[data-run={run}]").get_by_role("button", name="Open pipeline").last.click()
    tab = page.locator(".vbl-tab")
    tab.locator(".vbl-stage[data-stage=hostile][data-state=succeeded]").get_by_text("<script>").wait_for()
    tab.get_by_role("log").get_by_text("<img src=x").first.wait_for()
    tab.locator(".vbl-stage[data-stage=slow-quant][data-state=running]").wait_for()
    tab.get_by_role("log").get_by_text("begun").wait_for()
    tab.locator(".vbl-stage[data-stage=slow-quant] .vbl-spark").first.wait_for()
    assert tab.locator("img, script").count() == 0
    assert "owned" not in page.title()
    hostile = daemon.run(run).stages["hostile"]
    assert DECEIVING in (hostile.output or "")
    assert DECEIVING in hostile.files
    tab.get_by_text("output files: cod.exe").wait_for()
    assert not TURNS.search(tab.text_content())
    page.wait_for_timeout(3000)
    shots(page, "run-tab")
    # The tab is there again after a reload of the page, and goes on.
    page.goto(f"{lab.url}/lab?token={lab.token}")
    tab.locator(".vbl-stage[data-stage=slow-quant][data-state=running]").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    tab.locator(".vbl-run-header[data-state=cancelled]").wait_for()
    assert tab.get_by_role("button", name="Cancel").count() == 0
    dark(page)
    shots(page, "run-tab-over-dark")


def test_a_run_whose_daemon_died_rests_until_it_is_resumed(
    lab: Any, lab_env: dict[str, str], daemon: Client, page: Any, shots: Any
) -> None:
    """It is not in progress, its tab asks for nothing that would keep a daemon, and is live again with the run."""
    run = daemon.submit(pipeline("one", "slow", name="orphan")).id
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    panel = in_lab(page, lab)
    row = panel.locator(f".vbl-run[data-run={run}]")
    row.and_(page.locator("[data-state=running]")).get_by_text("slow").wait_for()
    page.locator(".vbl-status").get_by_text("1 run ·").wait_for()
    row.get_by_role("button", name="Open orphan").last.click()
    tab = page.locator(".vbl-tab")
    begun = tab.get_by_role("log").get_by_text("begun")
    begun.wait_for()
    os.kill(daemon.health().pid, signal.SIGKILL)
    with serving(lab_env):
        row.and_(page.locator("[data-state=interrupted]")).wait_for()
        panel.get_by_text("Nothing runs.").wait_for()
        assert row.locator(".vbl-time").inner_text() == ""
        tab.locator(".vbl-run-header[data-state=interrupted]").wait_for()
        looked(page)
        assert "run" not in page.locator(".vbl-status").inner_text()
        before = [url for url in asked if run in url]
        shots(page, "interrupted")
        looked(page)
        assert [url for url in asked if run in url] == before, "a run at rest is asked for"

        tab.get_by_role("button", name="Resume").click()
        tab.locator(".vbl-run-header[data-state=running]").wait_for()
        begun.nth(1).wait_for()
        # In a tab that has the interruption from the run's history as well.
        page.goto(f"{lab.url}/lab?token={lab.token}")
        begun.nth(1).wait_for()
        daemon.cancel(run)
        tab.get_by_role("log").get_by_text("cancelled").first.wait_for()
        row.and_(page.locator("[data-state=cancelled]")).wait_for()

        daemon.forget(run)
        row.wait_for(state="detached")
        tab.get_by_text("There is no run").wait_for()
        looked(page)
        before = [url for url in asked if run in url]
        looked(page)
        assert [url for url in asked if run in url] == before, "a run that is gone is asked for"


def test_a_run_is_shown_in_the_notebook_in_front(
    lab: Any, daemon: Client, page: Any, open_and_run: Any, shots: Any
) -> None:
    """The button puts ``%voidbox attach`` into a new cell and runs it."""
    open_and_run(page, lab.write("attach.ipynb", ["1 + 1"]))
    run = daemon.submit(pipeline("slow", name="followed")).id
    page.get_by_role("tab", name="voidbox: runs, boxes, cost").click()
    page.locator(".vbl-panel").get_by_role("button", name="Show followed").click()
    page.locator(".vbx[data-vbx=running]").get_by_text("begun").wait_for()
    assert f"%voidbox attach {run}" in page.locator(".jp-Cell").nth(1).inner_text()
    daemon.cancel(run)
    page.locator(".vbx[data-vbx=cancelled]").wait_for()
    # And again, as a new run.
    page.locator(".vbl-panel").get_by_role("button", name="Retry followed").click()
    page.locator(".vbx[data-vbx=running]").get_by_text("begun").wait_for()
    [again] = [each.id for each in daemon.runs() if each.id != run and each.state == "running"]
    assert f"%voidbox retry {run}" in page.locator(".jp-Cell").nth(2).inner_text()
    daemon.cancel(again)
    page.locator(f".vbl-run[data-run={again}][data-state=cancelled]").wait_for()


def test_without_a_daemon_the_panel_says_what_to_do(lab: Any, lab_env: Any, page: Any, shots: Any) -> None:
    panel = in_lab(page, lab)
    panel.get_by_role("status").get_by_text("voidbox daemon start").wait_for()
    shots(page, "panel-no-daemon")
    assert not Settings.from_env(os.environ | lab_env).socket.exists(), "looking started one"


def test_a_notebook_to_begin_with(lab: Any, page: Any, shots: Any) -> None:
    """From the launcher; nothing of it is run."""
    in_lab(page, lab)
    shots(page, "launcher")
    page.locator(".jp-LauncherCard", has_text="Agent in a box").click()
    page.locator(".jp-Notebook .jp-Cell", has_text="%%voidbox stage visitor").wait_for()
    page.locator(".jp-Notebook .jp-RenderedMarkdown h1").wait_for()
    # Of the model: cells out of sight need not be in the page.
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.content.model.cells.length === 5")
    assert page.locator(".jp-OutputArea-output").count() == 0
    shots(page, "starter")


def saved(lab: Any, name: str, data: dict[str, Any]) -> str:
    """A notebook that nobody here has run, with one output; its page."""
    cell = nbformat.v4.new_code_cell("run = %voidbox run analyst")
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {"name": "gone", "display_name": "Gone", "language": "python"}
    nbformat.write(notebook, lab.directory / name)
    return str(lab.page(name))


def without_kernel(page: Any, url: str) -> None:
    page.goto(url)
    dialog = page.locator("dialog.jp-Dialog")
    dialog.get_by_role("button", name="No Kernel").click()
    dialog.wait_for(state="detached")


def test_somebody_elses_notebook_shows_its_runs_without_a_kernel(lab: Any, page: Any, shots: Any) -> None:
    """It is not trusted: the facts are shown as text, whatever they say; its HTML is not."""
    stage = {
        "state": "succeeded", "isolation": "kvm", "model_source": "live", "model": "anthropic:claude-sonnet-4-5",
        "tokens": 18_204, "cost_usd": 0.0712, "duration_s": 48.2, "denied": 1,
        "output": f"AMZN did best.\n<img src=x onerror=\"document.title='owned'\">{DECEIVING}",
    }  # fmt: skip
    trouble = {"message": f"<b>It broke.</b>{DECEIVING}"}
    bad = {"state": "failed", "isolation": ["x"], "tokens": "many", "trouble": trouble}
    facts = {
        "version": 1, "run": "run-0123456789ab", "state": "failed",
        "stages": {"analyst": stage, f"<i>odd</i>{DECEIVING}": bad, "list": [], "none": None},
    }  # fmt: skip
    html = "<div class='vbx'>frozen<script>document.title='owned'</script></div>"
    url = saved(lab, "theirs.ipynb", {RUN_MIME: facts, "text/html": html, "text/plain": "run"})
    without_kernel(page, url)
    card = page.locator(".vbl-card")
    card.locator("[data-stage=analyst]").get_by_text("AMZN did best.").wait_for()
    card.get_by_text("18,204 tokens").wait_for()
    card.get_by_text("<b>It broke.</b>").wait_for()
    assert card.locator(".vbl-stage").count() == 4
    assert card.get_by_text("cod.exe").count() == 3
    assert not TURNS.search(card.text_content())
    assert page.locator(".vbl-output img, .vbl-output b, .vbl-output .vbx").count() == 0
    assert "owned" not in page.title()
    shots(page, "saved-untrusted")
    for number, nonsense in enumerate((None, 7, "run", [], {}, {"stages": 3, "state": {}, "run": []})):
        saved(lab, f"odd-{number}.ipynb", {RUN_MIME: nonsense, "text/plain": "run"})
        without_kernel(page, lab.page(f"odd-{number}.ipynb"))
        page.locator(".vbl-card").get_by_text("unknown").wait_for()


def test_ones_own_notebook_shows_its_runs_without_a_kernel(
    lab: Any, daemon: Client, page: Any, open_and_run: Any, shots: Any
) -> None:
    """As they were when it was saved, transcript and all, with a way to the run itself."""
    run = daemon.submit(pipeline("one", "two", name="finished")).id
    until_over(daemon, run)
    url = lab.write("own.ipynb", ["%load_ext voidbox_lab", f"run = %voidbox attach {run}"])
    open_and_run(page, url)
    page.locator(".vbl-output .vbx[data-vbx=succeeded]").wait_for()
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 30
    while RUN_MIME not in str(lab.saved("own.ipynb")):
        assert time.monotonic() < deadline, "the notebook was not saved within 30 s"
        time.sleep(0.2)
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    notebook = nbformat.read(lab.directory / "own.ipynb", as_version=4)
    notebook.metadata["kernelspec"]["name"] = "gone"
    del notebook.metadata["language_info"]  # another kernel of the same language would be taken
    nbformat.write(notebook, lab.directory / "own.ipynb")
    trust = [sys.executable, "-m", "jupyter", "trust", "own.ipynb"]
    subprocess.run(trust, cwd=lab.directory, env=lab.env, check=True, timeout=60)
    without_kernel(page, url)
    page.locator(".vbl-output .vbx[data-vbx=succeeded]").wait_for()
    shots(page, "saved-trusted")
    page.get_by_role("button", name="Open the run").click()
    page.locator(".vbl-tab .vbl-run-header[data-state=succeeded]").wait_for()


def test_settings_are_applied_at_once(lab: Any, daemon: Client, page: Any) -> None:
    in_lab(page, lab)
    page.locator(".vbl-status").get_by_text("today").wait_for()
    settings = "window.jupyterapp.serviceManager.settings"
    change = f"value => {settings}.save('voidbox-lab:panel', JSON.stringify(value))"
    page.evaluate(change, {"showCost": False})
    page.reload()
    page.locator(".jp-Launcher").wait_for()
    page.locator(".vbl-panel").get_by_text("today").wait_for(state="attached")
    assert not page.locator(".vbl-status").is_visible()
    page.evaluate(change, {"showCost": True})


def test_a_daemon_that_leaves_is_told(lab: Any, daemon: Client, page: Any) -> None:
    panel = in_lab(page, lab)
    panel.get_by_text("Nothing runs.").wait_for()
    daemon.shutdown()
    panel.get_by_role("status").get_by_text("No daemon runs.").wait_for()
    with pytest.raises(ProviderError):
        daemon.health()
