"""Plain ``ipython`` on a terminal: Ctrl-C ends the run and leaves the shell usable."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(90)
def test_ctrl_c_cancels_the_run_and_the_shell_goes_on(tmp_path: Path) -> None:
    """One sentence, no traceback, and the next input works; the run has ended."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "widgets")])
    env = os.environ | {"PYTHONPATH": path, "IPYTHONDIR": str(tmp_path), "TERM": "dumb", "NO_COLOR": "1"}
    command = [
        "-m",
        "IPython",
        "--simple-prompt",
        "--no-banner",
        "--colors=NoColor",
        "--HistoryManager.enabled=False",
    ]
    shell = pexpect.spawn(sys.executable, command, env=env, cwd=str(tmp_path), timeout=40, encoding="utf-8")
    try:
        shell.expect_exact("In [1]:")
        shell.sendline("import replay; replay.install(); get_ipython().run_line_magic('load_ext', 'voidbox_lab')")
        shell.expect_exact("In [2]:")
        stage = "get_ipython().run_cell_magic('voidbox', 'stage analyst --model scripted:endless', 'Go.')"
        shell.sendline(stage)
        shell.expect_exact("In [3]:")
        shell.sendline("run = %voidbox run analyst")
        shell.expect_exact("analyst  running")
        time.sleep(0.5)
        pressed = time.monotonic()
        shell.sendintr()
        shell.expect_exact("Cancelled: The run replay-1 was cancelled from this cell.")
        assert "Traceback" not in shell.before
        shell.expect_exact("In [4]:")
        assert time.monotonic() - pressed < 5
        shell.sendline("replay.RUNS['replay-1'].record.state")
        shell.expect_exact("'cancelled'")
        shell.expect_exact("In [5]:")
        # Ctrl-C at the prompt is Python's again.
        shell.sendintr()
        shell.expect_exact("KeyboardInterrupt")
        shell.sendline("6 * 7")
        shell.expect_exact("42")
    finally:
        shell.close(force=True)
