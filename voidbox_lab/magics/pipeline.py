"""The stages of ``%voidbox run`` as a run. How their expression is read, `voidbox_lab.spec.flow` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from voidbox_lab.spec import Pipeline, RunSpec, VoidBoxSpec
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.flow import Flow, assemble


def build(
    flow: Flow,
    lookup: Callable[[str], VoidBoxSpec],
    inputs: dict[str, InputFile],
    own: Mapping[str, dict[str, InputFile]] | None = None,
    **options: Any,
) -> RunSpec:
    """The run of `flow`, with each stage by `lookup`. `own` holds the files of single stages, by stage; `options`
    are those of `Pipeline.run_spec`.

    Raises:
        UserError: a stage named twice, or whatever `lookup` raises.
    """
    own = own or {}

    def part(name: str) -> Pipeline:
        return Pipeline.of(lookup(name), inputs=own.get(name, {}))

    return assemble(flow, part).run_spec(inputs=inputs, **options)
