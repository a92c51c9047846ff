"""``%voidbox dashboard``: the same frame as `voidbox_lab.dashboard`, with its options."""

from __future__ import annotations

from typing import Any

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.widgets.dashboards import inline


@pytest.fixture(autouse=True)
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a hub, where no server is started."""
    monkeypatch.setenv(inline.HUB, "/user/ada/")


def test_a_frame_is_the_cells_result(shell: Any) -> None:
    result = shell.run_cell("%voidbox dashboard")
    result.raise_error()
    assert result.result.url == "/user/ada/voidbox-dashboard/"
    assert 'src="/user/ada/voidbox-dashboard/"' in result.result._repr_html_()


def test_its_options(shell: Any) -> None:
    result = shell.run_cell("%voidbox dashboard --theme dark --height 400")
    result.raise_error()
    assert 'src="/user/ada/voidbox-dashboard/?theme=dark"' in result.result._repr_html_()
    assert 'height="400"' in result.result._repr_html_()
    with pytest.raises(UserError, match="theme"):
        shell.run_cell("%voidbox dashboard --theme pink").raise_error()
