"""A notebook executed by nbclient: what is left in the file is frozen, and errors stop the execution."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

ROOT = Path(__file__).parents[2]
SETUP = "import replay; replay.install()\n%load_ext voidbox_lab"
SKILL = "%%voidbox skill price-history --description Prices\nOne row per month."

pytestmark = pytest.mark.timeout(120)


def execute(cells: list[str], directory: Path, **env: str) -> Any:
    """The notebook of these cells after nbclient ran it in a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "widgets"), os.environ.get("PYTHONPATH", "")])
    client.execute(env=os.environ | {"PYTHONPATH": path, "IPYTHONDIR": str(directory / "ipython"), **env})
    return notebook


def stage(model: str) -> str:
    """A stage cell."""
    return f"%%voidbox stage analyst --skill price-history --model scripted:{model}\nWhich did best?"


def test_the_executed_notebook_holds_the_frozen_view(tmp_path: Path) -> None:
    """One output per run, without a widget, escaped; the next cells have the run; nbconvert shows it."""
    cells = [SETUP, SKILL, stage("hostile"), "run = %voidbox run analyst", "run.stages['analyst'].state"]
    notebook = execute(cells, tmp_path)
    (output,) = notebook.cells[3].outputs
    assert set(output.data) == {"text/html", "text/plain", "application/vnd.voidbox.run+json"}
    assert output.data["application/vnd.voidbox.run+json"]["stages"]["analyst"]["isolation"] == "tcg"
    assert 'data-vbx="succeeded"' in output.data["text/html"]
    assert "&lt;script&gt;" in output.data["text/html"]
    assert "analyst  succeeded" in output.data["text/plain"]
    assert notebook.cells[4].outputs[0].data["text/plain"] == "'succeeded'"
    html, _ = HTMLExporter().from_notebook_node(notebook)
    assert "vbx-answer" in html
    assert "<script>document.title" not in html


def test_plain_lines_where_asked_for(tmp_path: Path) -> None:
    """VOIDBOX_VIEW=plain prints in a kernel, too."""
    cells = [SETUP, SKILL, stage("quickstart"), "run = %voidbox run analyst"]
    notebook = execute(cells, tmp_path, VOIDBOX_VIEW="plain")
    assert all(o.output_type == "stream" for o in notebook.cells[3].outputs)
    assert "analyst  > bash head" in "".join(o.text for o in notebook.cells[3].outputs)


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("%voidbox run analyst", "LimitExceeded", "still running after 300 s"),
        ("%voidbox run anlyst", "UserError", "did you mean 'analyst'?"),
    ],
)
def test_an_error_stops_the_execution_with_one_line(tmp_path: Path, source: str, name: str, says: str) -> None:
    """The saved output is the sentence, not a traceback."""
    with pytest.raises(CellExecutionError) as caught:
        execute([SETUP, SKILL, stage("fails"), source], tmp_path)
    assert caught.value.ename == name
    assert says in caught.value.evalue
    assert "line 1" not in caught.value.traceback
    assert len(caught.value.traceback.strip().splitlines()) < 15
