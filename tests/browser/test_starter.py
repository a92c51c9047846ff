"""From the launcher to a result with a real box: what somebody does first in JupyterLab."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.vm, pytest.mark.timeout(400)]
RUN_S = 240_000
"""Bound on a run, in milliseconds: an emulated CPU under load takes its time."""


@pytest.fixture(scope="module")
def lab_env(boxes_env: dict[str, str]) -> dict[str, str]:
    """Real boxes."""
    return boxes_env


def test_the_notebook_to_begin_with_works(lab: Any, lab_env: Any, page: Any, shots: Any) -> None:
    """Its stage answers from a box, and the panel shows the run; boxes come and go between its looks."""
    page.set_viewport_size({"width": 1240, "height": 780})
    page.goto(f"{lab.url}/lab?reset&token={lab.token}")
    page.locator(".jp-LauncherCard", has_text="Agent in a box").click()
    page.get_by_role("tab", name="voidbox: runs, boxes, cost").click()
    page.locator(".jp-Notebook .jp-Cell", has_text="%%voidbox stage visitor").wait_for()
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.wait_for_timeout(1000)  # JupyterLab shows "idle" a moment before it takes requests
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    panel = page.locator(".vbl-panel")
    panel.locator(".vbl-run").wait_for(timeout=RUN_S)
    shots(page, "starter-live")
    page.locator(".jp-Notebook .vbx[data-vbx=succeeded]").wait_for(timeout=RUN_S)
    panel.locator(".vbl-run[data-state=succeeded]").wait_for()
    answer = page.locator(".jp-OutputArea-output[data-mime-type='text/plain']")
    answer.get_by_text("uid=1000(agent)").wait_for(timeout=30_000)
    shots(page, "starter-done")
