"""The quickstart in a real JupyterLab with real boxes: what a newcomer sees."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.client import Client
from voidbox_lab.settings import Settings

pytestmark = [pytest.mark.browser, pytest.mark.vm, pytest.mark.timeout(400)]
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
RUN_S = 240_000
"""Bound on a whole run in the browser, in milliseconds: an emulated CPU under load takes its time."""


@pytest.fixture(scope="module")
def lab_env(boxes_env: dict[str, str]) -> dict[str, str]:
    """Real boxes, and no answer from an earlier test."""
    return boxes_env | {"VOIDBOX_FRESH": "1"}


def daemon(lab_env: dict[str, str]) -> Client:
    """A client of the daemon that the notebook started."""
    return Client(Settings.from_env(os.environ | lab_env), start=False)


def test_the_quickstart_streams_and_its_numbers_hold(
    lab: Any, lab_env: Any, page: Any, open_and_run: Any, shots: Any
) -> None:
    """Text and tool calls appear while the box works; the notebook's own check against pandas passes."""
    shutil.copy(NOTEBOOK, lab.directory / "quickstart.ipynb")
    page.set_viewport_size({"width": 1180, "height": 860})
    open_and_run(page, lab.page("quickstart.ipynb"))
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    live = page.locator(".vbx[data-vbx=running]")
    live.locator(".vbx-text").first.wait_for(timeout=RUN_S)
    live.locator(".vbx-badge[data-kind=scripted]").wait_for()
    live.locator(".vbx-badge[data-kind=tcg], .vbx-badge[data-kind=kvm]").wait_for()
    live.locator(".vbx-tool").nth(1).wait_for(timeout=RUN_S)
    assert page.locator(".jp-InputPrompt", has_text="[*]").count() >= 1, "the cell is over already"
    page.locator(".jp-Cell", has_text="%%voidbox stage").evaluate("cell => cell.scrollIntoView()")
    shots(page, "quickstart-live")

    page.locator(".vbx[data-vbx=succeeded] .vbx-answer table").wait_for(timeout=RUN_S)
    page.get_by_text("(pandas)").first.wait_for(timeout=60_000)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0
    page.locator(".vbx-more > summary", has_text="transcript").click()
    assert page.locator(".vbx-more .vbx-text").count() == 3, "the answer stands in the transcript, too"
    page.locator(".jp-Cell", has_text="%%voidbox stage").evaluate("cell => cell.scrollIntoView()")
    shots(page, "quickstart")
    page.keyboard.press("Control+s")
    deadline = time.monotonic() + 30
    outputs: list[Any] = []
    while not any("(pandas)" in json.dumps(o) for o in outputs):
        assert time.monotonic() < deadline, "the notebook was not saved with its outputs within 30 s"
        time.sleep(0.2)
        outputs = [o for c in lab.saved("quickstart.ipynb")["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    # What a later reader opens, without a kernel; that it is shown then, test_run_view looks at.
    (view,) = [o["data"] for o in outputs if "application/vnd.voidbox.run+json" in o.get("data", {})]
    assert "<table" in "".join(view["text/html"])
    assert "application/vnd.jupyter.widget-view+json" not in view


def test_cancel_ends_the_box(lab: Any, lab_env: Any, page: Any, open_and_run: Any) -> None:
    """The button works while the box boots or works; afterwards the daemon holds no run and no box."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "code"}
    wanted = ("load", "data", "skill", "stage", "run")
    open_and_run(page, lab.write("cancel.ipynb", [sources[name] for name in wanted]))
    page.locator(".vbx .vbx-stage:not([data-vbx=queued])").wait_for(timeout=RUN_S)
    clicked = time.monotonic()
    page.locator(".vbx button[name=cancel]").click()
    page.locator(".vbx[data-vbx=cancelled] .vbx-stage[data-vbx=cancelled]").wait_for(timeout=30_000)
    assert time.monotonic() - clicked < 15
    assert page.get_by_text("Traceback").count() == 0
    with daemon(lab_env) as client:
        deadline = time.monotonic() + 20
        while (health := client.health()).runs or health.boxes:
            assert time.monotonic() < deadline, f"still there 20 s after the cancel: {health}"
            time.sleep(0.2)
        assert client.runs(limit=1)[0].state == "cancelled"


def test_a_run_is_shown_again_after_the_page_was_reloaded(
    lab: Any, lab_env: Any, page: Any, open_and_run: Any
) -> None:
    """Begun in one notebook and left; another one shows it from its first event on, live, and to its end."""
    loop = "for i in $(seq 40); do echo line $i; sleep 0.5; done"
    begin = f"from voidbox_lab import VoidBox\nVoidBox('counter', command={loop!r}, memory_mb=256).submit().id"
    open_and_run(page, lab.write("left.ipynb", [begin]))
    page.locator(".jp-OutputArea-output", has_text="run-").wait_for(timeout=RUN_S)
    page.reload()
    with daemon(lab_env) as client:
        run = client.runs(limit=1)[0].id
    open_and_run(page, lab.write("again.ipynb", ["%load_ext voidbox_lab", f"run = %voidbox attach {run}", "run"]))
    live = page.locator(".vbx[data-vbx=running] .vbx-log")
    live.get_by_text("line 1\n").first.wait_for(timeout=RUN_S)
    live.get_by_text("line 12\n").first.wait_for(timeout=RUN_S)
    page.locator(".vbx[data-vbx=succeeded] .vbx-answer").get_by_text("line 40").wait_for(timeout=RUN_S)
    page.locator(".vbx-card[data-vbx=succeeded]", has_text="counter").wait_for(timeout=60_000)
