"""``await `` goes where it must, and nowhere else."""

from __future__ import annotations

import ast

import pytest

from voidbox_lab.magics.commands import WAITING
from voidbox_lab.magics.transform import AwaitMagic

RUN = "get_ipython().run_line_magic('voidbox', 'run analyst')"
hook = AwaitMagic("voidbox", WAITING)


def through(source: str) -> str:
    """`source` through the hook."""
    return "".join(hook(source.splitlines(keepends=True)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{RUN}\n", f"await {RUN}\n"),
        (f"run = {RUN}\n", f"run = await {RUN}\n"),
        (f"x = 'ä日本'; run = {RUN}\n", f"x = 'ä日本'; run = await {RUN}\n"),
        (f"for i in range(2):\n    {RUN}\n", f"for i in range(2):\n    await {RUN}\n"),
        (f"async def go():\n    r = {RUN}\n", f"async def go():\n    r = await {RUN}\n"),
        (f"a = {RUN}\nb = {RUN}\n", f"a = await {RUN}\nb = await {RUN}\n"),
    ],
)
def test_statements_of_waiting_magics_are_awaited(before: str, after: str) -> None:
    """Alone, assigned, indented, behind characters of several bytes, several in a cell."""
    assert through(before) == after


@pytest.mark.parametrize(
    "source",
    [
        f"await {RUN}\n",
        f"def go():\n    return 1\n\ndef f():\n    {RUN}\n",
        f"f = lambda: {RUN}\n",
        f's = """\n{RUN}\n"""\n',
        f"# {RUN}\n",
        f"{RUN}.result\n",
        "get_ipython().run_line_magic('voidbox', 'skills')\n",
        "get_ipython().run_line_magic('voidbox', '')\n",
        "get_ipython().run_cell_magic('voidbox', 'stage run --model m', 'run it')\n",
        "get_ipython().run_line_magic('timeit', 'run analyst')\n",
        f"if {RUN}\n",
        "x = 1\r\ny = 2\x0c\n",
        "",
    ],
)
def test_everything_else_stays_as_it_is(source: str) -> None:
    """Awaited already, where await cannot stand, in strings and comments, other magics, broken code."""
    assert through(source) == source


def test_the_hook_is_idempotent() -> None:
    """Two passes (a reload, two kernels' histories) add one await."""
    once = through(f"run = {RUN}\n")
    assert through(once) == once
    ast.parse(once)
