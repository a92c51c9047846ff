"""The example notebooks in a real JupyterLab with real boxes: what a run of several stages looks like."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.vm, pytest.mark.timeout(400)]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RUN_S = 240_000
"""Bound on a whole notebook in the browser, in milliseconds."""
ERROR = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"


@pytest.fixture(scope="module")
def lab_env(boxes_env: dict[str, str]) -> dict[str, str]:
    """Real boxes."""
    return boxes_env


def opened(lab: Any, page: Any, open_and_run: Any, name: str, width: int = 1180) -> None:
    """A notebook of ours, with the files beside it, all its cells executed."""
    for file in (name, "headlines.csv", "lexicon.csv"):
        shutil.copy(NOTEBOOKS / file, lab.directory / file)
    page.set_viewport_size({"width": width, "height": 1000})
    open_and_run(page, lab.page(name))
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")


def test_the_trading_pipeline(lab: Any, lab_env: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """Four stages work one after the other; later runs show what was cached, and what was skipped."""
    opened(lab, page, open_and_run, "trading_pipeline.ipynb")
    live = page.locator(".vbx[data-vbx=running]")
    live.locator(".vbx-stage[data-vbx=queued]").first.wait_for(timeout=RUN_S)
    live.locator(".vbx-stage[data-vbx=succeeded]").nth(1).wait_for(timeout=RUN_S)
    live.evaluate("view => view.scrollIntoView()")
    shots(page, "trading-live")

    # What has ended makes room for what goes on, and can be opened.
    live.locator(".vbx-stage[data-vbx=succeeded] > details > summary").first.click()
    live.locator(".vbx-stage[data-vbx=succeeded] .vbx-tool").first.wait_for()

    page.locator(".vbx-stage[data-vbx=skipped]").nth(1).wait_for(timeout=RUN_S)
    page.locator(".vbx[data-vbx=succeeded]").nth(3).wait_for(timeout=RUN_S)
    assert page.locator(ERROR).count() == 0
    runs = [page.locator(".vbx").nth(i) for i in range(4)]
    assert [run.locator(".vbx-badge[data-kind=cached]").count() for run in runs] == [0, 4, 2, 1]
    assert [run.locator(".vbx-answer:visible").count() for run in runs] == [1, 1, 1, 0], "only what a run answers"
    for i, run in enumerate(runs):
        run.evaluate("view => view.scrollIntoView()")
        shots(page, f"trading-{i}")


def test_the_parallel_pipeline(lab: Any, lab_env: Any, page: Any, open_and_run: Any, shots: Any) -> None:
    """Branches work at the same time; runs that were begun in Python are shown live, too."""
    opened(lab, page, open_and_run, "parallel_pipeline.ipynb")
    live = page.locator(".vbx[data-vbx=running]")
    live.locator(".vbx-tool").first.wait_for(timeout=RUN_S)
    live.evaluate("view => view.scrollIntoView()")
    shots(page, "parallel-live")
    live.locator(".vbx-stage").get_by_text("drawdown-5", exact=True).wait_for(timeout=RUN_S)
    shots(page, "parallel-map-live")

    page.locator(".vbx[data-vbx=succeeded]").nth(2).wait_for(timeout=RUN_S)
    page.locator(".jp-RenderedHTMLCommon td", has_text="Jan 2009").or_(
        page.locator(".jp-RenderedHTMLCommon td", has_text="Dec 2008")
    ).first.wait_for(timeout=60_000)  # fmt: skip
    assert page.locator(ERROR).count() == 0
    for i in range(3):
        page.locator(".vbx").nth(i).evaluate("view => view.scrollIntoView()")
        shots(page, f"parallel-{i}")
