"""The run view in Notebook 7: what it does in JupyterLab, it does there."""

from __future__ import annotations

import pytest

from tests.browser.conftest import NOTEBOOK, Front
from tests.browser.test_run_view import (
    test_guest_text_is_text,
    test_pause_and_resume,
    test_side_by_side_stages_in_the_dark_theme,
    test_the_cancel_button_works_while_the_cell_runs,
    test_the_pipeline_is_walked_by_keyboard,
    test_the_stop_button_cancels_the_run,
    test_the_view_streams_while_the_cell_runs_and_stays_after_a_reload,
)

__all__ = [
    "test_guest_text_is_text",
    "test_pause_and_resume",
    "test_side_by_side_stages_in_the_dark_theme",
    "test_the_cancel_button_works_while_the_cell_runs",
    "test_the_pipeline_is_walked_by_keyboard",
    "test_the_stop_button_cancels_the_run",
    "test_the_view_streams_while_the_cell_runs_and_stays_after_a_reload",
]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def front() -> Front:
    return NOTEBOOK
