"""The Python API: boxes, pipelines and their runs.

    from voidbox_lab import VoidBox

    run = VoidBox("analyst", prompt="Which stock did best?", model="anthropic:claude-sonnet-4-5").run("stocks.csv")
    run.result, run.stages["analyst"].output, run.to_frame()

A run that failed is a `Run` with ``state == "failed"`` and `trouble`, for a notebook wants to look at it;
`Run.check` raises. What could not even begin raises at once.
"""

from voidbox_lab import skills as _skills  # noqa: F401 - makes `Skill.remote` work
from voidbox_lab.api.box import VoidBox
from voidbox_lab.api.compose import Composable, Pipeline, budget_of, fan_out
from voidbox_lab.api.files import OutputFile
from voidbox_lab.api.inputs import Inputs, Source, absolute_mount, named
from voidbox_lab.api.run import Run
from voidbox_lab.api.verdict import failure
from voidbox_lab.api.waiting import blocking, persistently, submitted
from voidbox_lab.spec import Skill

__all__ = [
    "Composable",
    "Inputs",
    "OutputFile",
    "Pipeline",
    "Run",
    "Skill",
    "Source",
    "VoidBox",
    "absolute_mount",
    "blocking",
    "budget_of",
    "failure",
    "fan_out",
    "named",
    "persistently",
    "submitted",
]
