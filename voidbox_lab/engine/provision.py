"""What goes into a box before its agent starts: inputs, earlier answers and files, the files of skills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import anyio

from voidbox_lab.agents.contract import HOME, Adapter
from voidbox_lab.box.bundles import encoded
from voidbox_lab.engine.job import StageJob
from voidbox_lab.engine.ports import Box
from voidbox_lab.errors import LimitExceeded
from voidbox_lab.spec import VoidBoxSpec, is_json, merged
from voidbox_lab.wire import bundle

WORKSPACE = "/workspace"
INPUT_DIR = f"{WORKSPACE}/input"
OUTPUT = "output"
"""The directory in the workspace whose files are kept."""
PROVISION_S = 120.0
"""Bound on putting inputs and skills into a box, beyond what their size takes at `PROVISION_RATE`."""
PROVISION_RATE = 5 << 20
"""Bytes a second that even a slow box takes."""
MANY_NEEDS = 16
"""A stage that needs more stages than this finds their outputs merged in one file, and not one by one."""
SKILLS_ROOT = f"{HOME}/.claude/skills"
"""Where an agent looks for skills whose adapter says nothing of it."""


@contextmanager
def provisioning(job: StageJob) -> Iterator[None]:
    """Bound on provisioning, which grows with what is to be put in; folders of the host have one of their own."""
    files = [*job.inputs.values(), *job.blobs.values()]
    size = sum(path.stat().st_size for path in files) + 2 * sum(len(text) for text in job.upstream.values())
    seconds = round(PROVISION_S + size / PROVISION_RATE, 1)
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise LimitExceeded(
            f"Stage {job.box.name!r} was stopped: putting {size / (1 << 20):.1f} MiB of inputs into its box took "
            f"longer than {seconds:g} s; give it smaller inputs, or try again when this machine is less busy.",
            limit="time",
            value=seconds,
            unit="s",
        )


async def put_inputs(box: Box, job: StageJob) -> VoidBoxSpec:
    """Put in the inputs, and the answers and files of earlier stages; the spec with a note about these."""
    files: list[tuple[str, bytes | Path, bool]] = [(name, path, False) for name, path in job.inputs.items()]
    notes = []
    if len(job.upstream) <= MANY_NEEDS:
        for name, text in job.upstream.items():
            files.append((f"{name}.md", text.encode(), False))
            notes.append(f"- {INPUT_DIR}/{name}.md: the answer of stage {name!r}")
    if merge := job.stage.merging:
        name = "merged.json" if is_json(merge) else "merged.md"
        files.append((name, merged(merge, job.upstream).encode(), False))
        how = ", in this order, null for none" if merge.by == "json" else f" ({merge.by})"
        notes.append(f"- {INPUT_DIR}/{name}: the answers of {', '.join(merge.leaves[:MANY_NEEDS])} merged{how}")
    # How many, not what they are called: a guest named them, and this becomes an agent's prompt.
    left = Counter(path.partition("/")[0] for path in job.files if "/" in path)
    notes += [
        f"- {INPUT_DIR}/{name}/: what stage {name!r} left, {count} file{'s' * (count > 1)}"
        for name, count in left.items()
    ]
    directories = iter((bundle.head(bundle.DIRECTORY, 0o755, OUTPUT.encode()),))
    await box.unpack(
        WORKSPACE, chain(directories, encoded((f"input/{name}", source, x) for name, source, x in files))
    )
    if not notes or job.box.command is not None:
        return job.box
    said = "\n".join(notes)
    return job.box.model_copy(update={"prompt": f"{job.box.prompt}\n\nEarlier stages left their answers:\n{said}"})


async def put_skills(box: Box, job: StageJob, adapter: Adapter) -> None:
    """Put in what lies beside the SKILL.md of the stage's skills."""
    root = getattr(adapter, "skills_root", None) or SKILLS_ROOT
    for skill in job.box.procedures:
        if skill.files:
            files = [(path, job.blobs[file.digest], file.executable) for path, file in skill.files.items()]
            await box.unpack(f"{root}/{skill.name}", encoded(files))
