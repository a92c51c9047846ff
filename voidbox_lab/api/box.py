"""A `VoidBox`: an agent, or a plain command, bound to a box of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voidbox_lab import spec
from voidbox_lab.api.cards import box_card
from voidbox_lab.api.compose import BudgetLike, Composable, Graph, Pipeline, budget_of
from voidbox_lab.api.inputs import Inputs, absolute_mount, contents
from voidbox_lab.cards import Card
from voidbox_lab.errors import UserError
from voidbox_lab.spec import Capability, Model, Policy, Retry, Skill, VoidBoxSpec, parse_failure, validated
from voidbox_lab.spec.hostmount import HostMount
from voidbox_lab.spec.mapping import expand, item_bytes, item_file

if TYPE_CHECKING:
    import pandas as pd


class VoidBox(Composable):
    """An agent bound to its skills, its model and a box of its own: one stage, ready to run.

    Args:
        name: the stage's name: a-z, 0-9, ``-`` and ``_``.
        prompt: what the agent is to do. It sees its inputs under ``/workspace/input``.
        skills: `Skill`s of any kind, or paths of SKILL.md files and of directories with one.
        model: ``PROVIDER:NAME`` (see `Model.parse`) or a `Model`.
        command: a command instead of an agent, as a list or as a line for ``/bin/sh``; its standard output is the
            answer. It needs no prompt and no model.
        memory_mb: the box's memory, in MiB.
        policy: a `Policy`, or its fields: ``{"network": "allowlist", "egress": ["pypi.org:443"]}``.
        timeout_s: bound on one attempt of the agent, in seconds; boot is bounded apart.
        budget: the most it may spend: a `Budget`, or text such as ``"usd=0.5,tokens=20000"``.
        on_failure: ``fail``, ``skip``, ``continue``, ``retry(N, SECONDS)``, or ``retry(N) continue``; see
            `voidbox_lab.spec.failure`.
        retry: the retry part of `on_failure` as a `Retry`.
        inputs: files of this stage alone, wherever it stands in a pipeline; those of `run` go to the first stages.
            They are read now.
        mounts: folders of this host, each as ``FOLDER:PATH`` or ``FOLDER:PATH:rw``; see docs/data.md.
        options: further fields of `VoidBoxSpec`: ``vcpus``, ``image``, ``env``.

    Raises:
        UserError: a value out of range, an unknown option, a skill file or an input that cannot be read.
    """

    def __init__(
        self,
        name: str,
        *,
        prompt: str = "",
        skills: Iterable[Capability | str | Path] = (),
        model: str | Model | None = None,
        command: str | Sequence[str] | None = None,
        memory_mb: int = 512,
        timeout_s: float = 300,
        agent: str = "lab-agent",
        policy: Policy | Mapping[str, Any] | None = None,
        budget: BudgetLike = None,
        on_failure: str = "fail",
        retry: Retry | None = None,
        inputs: Inputs = None,
        mounts: Iterable[str | HostMount] = (),
        **options: Any,
    ) -> None:
        if isinstance(skills, str | Path | Capability):
            skills = [skills]
        mounts = [mounts] if isinstance(mounts, str | HostMount) else mounts
        domain, parsed = parse_failure(on_failure)
        self.spec = validated(
            VoidBoxSpec,
            name=name,
            prompt=prompt,
            skills=tuple(Skill.file(s) if isinstance(s, str | Path) else s for s in skills),
            model=Model.parse(model) if isinstance(model, str) else model,
            command=("/bin/sh", "-c", command) if isinstance(command, str) else command and tuple(command),
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            agent=agent,
            policy=policy if isinstance(policy, Policy) else validated(Policy, **(policy or {})),
            budget=budget_of(budget),
            on_failure=domain,
            retry=retry or parsed,
            mounts=tuple(absolute_mount(m) if isinstance(m, str) else m for m in mounts),
            **options,
        )

        data = contents(inputs)
        self._inputs = {file: item_file(d) for file, d in data.items()}
        beside = {digest: d for skill in self.spec.procedures for digest, d in skill.contents.items()}
        self._blobs = beside | {self._inputs[file].digest: d for file, d in data.items()}

    def graph(self) -> Graph:
        """See `Composable.graph`."""
        return Graph(spec.Pipeline.of(self.spec, inputs=self._inputs), self._blobs)

    def map(self, items: pd.DataFrame | Iterable[Any], *, concurrency: int = 4) -> Pipeline:
        """This once per item, as stages ``NAME-1``, ``NAME-2``, …, each with its item as
        ``/workspace/input/item.json``; the answers are merged as a JSON array in the items' order.

        Args:
            items: values with a JSON form; of a data frame, its rows as objects.
            concurrency: most that are at work at once, room permitting.

        Raises:
            UserError: no items, too many, one without a JSON form, or a concurrency below 1.
        """
        data = [item_bytes(value) for value in _values(items)]
        files = [item_file(d) for d in data]
        blobs = {f.digest: d for f, d in zip(files, data, strict=True)}
        return Pipeline(Graph(expand(self.spec, files, concurrency, self._inputs), {**self._blobs, **blobs}))

    def _card(self) -> Card:
        return box_card(self.spec, self._inputs)

    def __repr__(self) -> str:
        skills = ", ".join(s.name for s in self.spec.skills) or "none"
        what = (
            f"{self.spec.model} · skills: {skills}" if self.spec.command is None else " ".join(self.spec.command)
        )
        shown = what if len(what) <= 120 else what[:119] + "…"
        return f"<VoidBox {self.spec.name} · {shown} · {self.spec.memory_mb} MiB>"


def _values(items: Any) -> list[Any]:
    if hasattr(items, "to_json") and hasattr(items, "columns"):
        # Through pandas' own JSON: it knows dates, numpy's numbers and missing values.
        rows: list[Any] = json.loads(items.to_json(orient="records", date_format="iso", force_ascii=False))
        return rows
    if isinstance(items, Mapping | str | bytes):
        raise UserError(f"A {type(items).__name__} is no list of items; give a list or a data frame.")
    return list(items)
