"""The stages of ``%voidbox run`` as a run. How their expression is read, `voidbox_lab.spec.flow` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voidbox_lab.spec import Pipeline, RunSpec, VoidBoxSpec
from voidbox_lab.spec.flow import Flow, assemble
from voidbox_lab.spec.run import InputFile


def build(
    flow: Flow, lookup: Callable[[str], VoidBoxSpec], inputs: dict[str, InputFile], **options: Any
) -> RunSpec:
    """The run of `flow`, with each stage by `lookup`. `options` are those of `Pipeline.run_spec`.

    Raises:
        UserError: a stage named twice, or whatever `lookup` raises.
    """
    return assemble(flow, lambda name: Pipeline.of(lookup(name))).run_spec(inputs=inputs, **options)
