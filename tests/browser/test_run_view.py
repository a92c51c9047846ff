"""The run view in a real JupyterLab: it streams, it cancels while the cell runs, it stays when the run is over.

The daemon is replaced by `replay.py` here; `test_quickstart.py` uses a real one.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SETUP = "import replay; replay.install()\n%load_ext voidbox_lab"
SKILL = "%%voidbox skill price-history --description 'How to read the price table'\nOne row per symbol and month."


def stage(model: str, name: str = "analyst") -> str:
    """A stage cell."""
    return f"%%voidbox stage {name} --skill price-history --model scripted:{model}\nWhich stock did best?"


def test_the_view_streams_while_the_cell_runs_and_stays_after_a_reload(
    lab: Any, page: Any, open_and_run: Any, shots: Any
) -> None:
    """Text appears before the end; the saved notebook shows the same result with no kernel and no widget."""
    url = lab.write(
        "stream.ipynb",
        [SETUP, SKILL, stage("slow"), "run = %voidbox run analyst", "print(run.stages['analyst'].state)"],
    )
    open_and_run(page, url)
    live = page.locator(".jp-OutputArea .vbx[data-vbx=running]")
    live.get_by_text("I will look at").wait_for()
    assert page.locator(".jp-InputPrompt", has_text="[*]").count() >= 1, "the cell is over already"
    live.locator(".vbx-tool[data-status=error]").wait_for()
    shots(page, "live")

    frozen = page.locator(".vbx[data-vbx=succeeded] .vbx-answer")
    frozen.get_by_text("best risk-adjusted return").wait_for()
    page.get_by_text("succeeded", exact=True).last.wait_for()
    assert page.locator(".vbx button[name=cancel]").count() == 0, "the live view is still there"
    shots(page, "frozen")
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 20
    while "vbx-answer" not in json.dumps(lab.saved("stream.ipynb")):
        assert time.monotonic() < deadline, "the notebook was not saved within 20 s"
        time.sleep(0.2)
    content = lab.saved("stream.ipynb")
    assert "widget-view" not in json.dumps(content["cells"])
    page.goto(url)
    page.locator(".vbx[data-vbx=succeeded] .vbx-answer").get_by_text("best risk-adjusted return").wait_for()


def test_the_cancel_button_works_while_the_cell_runs(lab: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """One click ends the run and the cell; the error is one sentence."""
    cells = [SETUP, SKILL, stage("endless"), "run = %voidbox run analyst", "print('not reached')"]
    open_and_run(page, lab.write("cancel.ipynb", cells))
    page.locator(".vbx").get_by_text("word40 ").first.wait_for()
    clicked = time.monotonic()
    page.locator(".vbx button[name=cancel]").click()
    page.locator(".vbx[data-vbx=cancelled] .vbx-stage[data-vbx=cancelled]").wait_for()
    page.locator(".vbx button[name=cancel]").wait_for(state="detached")
    assert time.monotonic() - clicked < 5
    error = page.locator(
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], .jp-RenderedText"
    )
    error.get_by_text("Cancelled").first.wait_for()
    assert page.get_by_text("Traceback").count() == 0
    shots(page, "cancelled")


def test_the_stop_button_cancels_the_run(lab: Any, page: Any, open_and_run: Any) -> None:
    """Interrupting the kernel ends the cell within seconds, with a sentence."""
    cells = [SETUP, SKILL, stage("endless"), "run = %voidbox run analyst"]
    open_and_run(page, lab.write("stop.ipynb", cells))
    page.locator(".vbx").get_by_text("word20 ").first.wait_for()
    page.locator(".jp-Notebook .jp-Cell").last.click()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    stopped = time.monotonic()
    page.get_by_role("menuitem", name="Interrupt Kernel").click()
    page.locator(".vbx[data-vbx=cancelled]").wait_for()
    page.get_by_text("was cancelled from this cell").wait_for()
    assert time.monotonic() - stopped < 6
    assert page.get_by_text("Traceback").count() == 0


def test_denials_and_connections_show_while_it_runs(lab: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """Open where the policy forbade something, folded elsewhere; what the user folds stays so."""
    cells = [SETUP, SKILL, stage("deeds"), "run = %voidbox run analyst"]
    open_and_run(page, lab.write("deeds.ipynb", cells))
    live = page.locator(".vbx[data-vbx=running] .vbx-doing")
    page.locator(".vbx[data-vbx=running] .vbx-badge[data-kind=denied]").get_by_text("5 denied").wait_for()
    page.locator("[data-kind=denied] .vbx-line").get_by_text("nc is not among the programs").wait_for()
    live.get_by_text("2 connections, 1 denied").click()
    page.locator("[data-kind=egress] .vbx-line").get_by_text("pypi.org:443 allowed").wait_for()
    shots(page, "deeds")
    page.locator(".vbx[data-vbx=succeeded] .vbx-doing[data-kind=files]").get_by_text("2 output files").wait_for()
    assert page.locator(".vbx[data-vbx=succeeded] .vbx-doing[data-kind=denied][open]").count() == 1


def test_guest_text_is_text(lab: Any, page: Any, open_and_run: Any) -> None:
    """What a guest says never becomes markup, neither live nor frozen."""
    cells = [SETUP, SKILL, stage("hostile"), "run = %voidbox run analyst"]
    open_and_run(page, lab.write("hostile.ipynb", cells))
    page.locator(".vbx[data-vbx=succeeded] .vbx-answer").get_by_text("<script>").wait_for()
    assert page.locator(".vbx script, .vbx img").count() == 0
    assert "owned" not in page.title()


def test_side_by_side_stages_in_the_dark_theme(lab: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """Two stages, one of which fails, in one view; the other's answer is shown all the same."""
    cells = [
        SETUP,
        SKILL,
        stage("slow"),
        stage("fails", "second"),
        "run = %voidbox run analyst second --allow-failure",
    ]
    url = lab.write("dark.ipynb", cells)
    page.goto(url)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    open_and_run(page, url)
    page.locator(".vbx[data-vbx=running]").get_by_text("I will look at").wait_for()
    page.locator(".vbx-stage[data-vbx=failed]").get_by_text("still running after 300 s").wait_for()
    page.locator(".vbx[data-vbx=running] .vbx-tool[data-status=error]").wait_for()
    shots(page, "dark-live")
    page.locator(".vbx[data-vbx=failed] .vbx-answer").wait_for()
    shots(page, "dark-frozen")


def test_the_pipeline_is_walked_by_keyboard(lab: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """Arrows go from stage to stage, the one with the focus is selected; changes of state are announced."""
    cells = [SETUP, SKILL, stage("quickstart", "data"), stage("endless", "quant"), stage("slow", "sentiment")]
    cells += [stage("quickstart", "strategist"), "run = %voidbox run data | [quant, sentiment] | strategist"]
    open_and_run(page, lab.write("graph.ipynb", cells))
    live = page.locator(".vbx[data-vbx=running]")
    live.locator(".vbx-node[data-stage=data][data-vbx=succeeded]").wait_for()
    live.locator(".vbx-node[data-stage=quant][data-vbx=running]").wait_for()
    assert live.locator(".vbx-node").count() == 4
    assert live.locator(".vbx-lines path").count() == 4
    node = live.locator(".vbx-node[data-stage=data]")
    node.focus()
    assert node.inner_text().split() == ["✓", "data", "succeeded"]
    for key, reached in (("ArrowRight", "quant"), ("ArrowDown", "sentiment"), ("ArrowRight", "strategist")):
        page.keyboard.press(key)
        live.locator(f".vbx-node[data-stage={reached}][aria-pressed=true]:focus").wait_for()
        assert live.locator(".vbx-stage[data-selected]").get_attribute("aria-label") == f"Stage {reached}"
    assert live.locator(".vbx-node[tabindex='0']").count() == 1
    live.locator("[role=status][aria-live=polite]", has_text="running").wait_for(state="attached")
    assert live.locator("[role=log][aria-live=off]").count() == 4
    shots(page, "graph")
    page.keyboard.press("Escape")
    assert live.locator(".vbx-stage[data-selected]").count() == 0
    assert page.locator(".jp-Notebook.jp-mod-editMode").count() == 0, "the notebook took a key"


def test_pause_and_resume(lab: Any, page: Any, open_and_run: Any) -> None:
    """The button becomes the other one when the run has obeyed; by keyboard, too, and Ctrl+S still saves."""
    cells = [SETUP, SKILL, stage("endless"), "run = %voidbox run analyst"]
    open_and_run(page, lab.write("pause.ipynb", cells))
    page.locator(".vbx").get_by_text("word10 ").first.wait_for()
    page.locator(".vbx button[name=pause]").click()
    page.locator(".vbx[data-vbx=paused] button[name=resume]").click()
    page.locator(".vbx[data-vbx=running] button[name=pause]").focus()
    page.keyboard.press("Enter")
    page.locator(".vbx[data-vbx=paused] button[name=resume]").focus()
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 20
    while "vbx-stage" not in (lab.directory / "pause.ipynb").read_text():
        assert time.monotonic() < deadline, "the notebook was not saved within 20 s"
        time.sleep(0.2)


def test_a_reloaded_page_shows_how_the_run_ended(lab: Any, page: Any, open_and_run: Any) -> None:
    """Of a notebook that was saved meanwhile. Until the cell is over JupyterLab gets nothing from its kernel."""
    url = lab.write("reload.ipynb", [SETUP, SKILL, stage("slow"), "run = %voidbox run analyst"])
    open_and_run(page, url)
    page.locator(".vbx[data-vbx=running]").get_by_text("I will look at").wait_for()
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 20
    while "vbx-stage" not in (lab.directory / "reload.ipynb").read_text():
        assert time.monotonic() < deadline, "the notebook was not saved within 20 s"
        time.sleep(0.1)
    page.goto(url)
    ended = page.locator(".vbx[data-vbx=succeeded]")
    ended.get_by_text("best risk-adjusted return").wait_for(timeout=60_000)
    assert ended.locator("button[name]").count() == 0


def test_more_of_a_long_stage_comes_from_the_store(lab: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """Entries and characters that the view left out, a page at a time, while the run goes on."""
    cells = [SETUP, SKILL, stage("long"), "run = %voidbox run analyst"]
    open_and_run(page, lab.write("more.ipynb", cells))
    log = page.locator(".vbx[data-vbx=running] .vbx-log")
    log.get_by_text("step 199", exact=True).wait_for()
    assert log.get_by_text("step 20", exact=True).count() == 0
    log.locator("> .vbx-gap button").click()
    log.get_by_text("step 20", exact=True).wait_for()
    assert "not shown" in log.locator("> .vbx-gap").inner_text()
    assert log.get_by_text("line 150 of a log", exact=True).count() == 0
    log.locator(".vbx-stderr button").click()
    log.locator(".vbx-stderr").get_by_text("line 150 of a log").wait_for()
    shots(page, "more")


@pytest.mark.timeout(400)
def test_a_hundred_megabytes_of_a_hostile_agent(lab: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """HTML, scripts and ANSI codes, as text and in a log: the page stays small, responsive and its own."""
    cells = [SETUP, SKILL, stage("flood"), "run = %voidbox run analyst"]
    open_and_run(page, lab.write("flood.ipynb", cells))
    page.locator(".vbx[data-vbx=running] .vbx-log").wait_for()
    slowest = 0.0
    while not page.locator(".vbx[data-vbx=succeeded]").count():
        asked = time.monotonic()
        assert page.evaluate("document.querySelectorAll('.vbx *').length") < 3000
        assert page.evaluate("document.querySelector('.vbx')?.textContent.length ?? 0") < 200_000
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.2)
    assert slowest < 5
    assert page.locator(".vbx script, .vbx img, .vbx iframe").count() == 0
    assert "owned" not in page.title()
    assert "\x1b" not in page.locator(".vbx").inner_text()
    page.locator(".vbx-more > summary", has_text="transcript").first.click()
    page.get_by_text("characters not shown").first.wait_for()
    shots(page, "flood")
