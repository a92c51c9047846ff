"""Earlier results of the same stage: same spec, inputs, image, model and policy, so the same answer may be taken.

What the agent could not see is not in the key: a stage's name, its budget, its time-out, its failure domain. What
it could see is: names and bytes of its inputs, the outputs it builds on, the layers it runs on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
from anyio import to_thread

from voidbox_lab.box.hostfolder import HostFolder
from voidbox_lab.engine.job import StageJob
from voidbox_lab.errors import VoidboxError
from voidbox_lab.spec import (
    TERMINAL,
    CachedFrom,
    InputFile,
    RunRecord,
    StageRecord,
    VoidBoxSpec,
    digest_bytes,
    digest_json,
)
from voidbox_lab.store import Store

KEY_VERSION = 3
"""Raised when what a stage is given changes: its prompt's notes, its files' names."""
UNSEEN = frozenset({"name", "budget", "timeout_s", "on_failure", "retry"})

Identify = Callable[[VoidBoxSpec], Awaitable[str]]
"""The digest of what a box would run on: kernel, layers, agent, a scripted model's script.

Raises:
    VoidboxError: it cannot be told, or the image is not there.
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hit:
    """An earlier result."""

    output: str
    output_file: InputFile | None
    files: Mapping[str, InputFile]
    source: CachedFrom


class StageCache:
    """Finds and keeps results by key. A cache that fails costs a run nothing but the saving."""

    def __init__(self, store: Store, identify: Identify) -> None:
        self._store, self._identify = store, identify
        self._lock = anyio.Lock()
        self._last: RunRecord | None = None
        """The run of the last hit: a run's stages mostly have their results from one."""

    async def identity(self, job: StageJob) -> str | None:
        """What `job` would run on now; None if its result is not to be kept: from a volume or the network it reads
        what is not in its spec, and there it leaves more than its answer; so it does in a folder that it may write
        to. A folder that it may only read counts by what is in it."""
        box = job.box
        writable = any(not mount.read_only for mount in box.mounts)
        if box.volumes or writable or box.effective_policy.network != "none":
            return None
        try:
            found = await self._identify(box)
            folders = [await to_thread.run_sync(_folder, mount.source) for mount in box.mounts]
            return digest_json([found, folders]) if folders else found
        except VoidboxError as e:
            log.debug("%s/%s has no key: %s", job.run, job.box.name, e)
            return None

    @staticmethod
    def key(job: StageJob, identity: str) -> str:
        """The key of `job` on what is known by `identity`."""
        stage = job.stage
        return digest_json(
            {
                "version": KEY_VERSION,
                "identity": identity,
                "box": stage.box.model_dump(mode="json", exclude=set(UNSEEN)),
                "inputs": {name: file.digest for name, file in sorted(job.files.items())},
                "upstream": [[name, digest_bytes(text.encode())] for name, text in job.upstream.items()],
                "merge": stage.merging.model_dump(mode="json") if stage.merging else None,
                "stdin_from": stage.stdin_from,
            }
        )

    async def find(self, key: str) -> Hit | None:
        """The latest result under `key`, if it is still there."""
        try:
            found = await self._store.recall(key)
            if found is None:
                return None
            run, name = found
            stage = await self._stage(run, name)
        except VoidboxError as e:
            log.warning("the stage cache cannot be read: %s", e)
            return None
        if stage is None or stage.state != "succeeded" or stage.output is None:
            return None
        return Hit(stage.output, stage.output_file, stage.files, CachedFrom(run=run, stage=name))

    async def _stage(self, run: str, name: str) -> StageRecord | None:
        async with self._lock:
            for last in (self._last, None):
                if last is None or last.id != run:
                    last = self._last = await self._store.get_run(run)
                stage = last.stages.get(name)
                if stage is not None and stage.state in TERMINAL:  # which stays
                    return stage
        return stage

    async def keep(self, key: str, run: str, stage: str) -> None:
        """Remember that `stage` of `run` has the result for `key`."""
        try:
            await self._store.remember(key, run, stage)
        except VoidboxError as e:
            log.warning("the stage cache cannot be written: %s", e)


def _folder(path: str) -> str:
    """The digest of what is in a folder of the host now. Errors as `HostFolder`'s."""
    with HostFolder(path) as folder:
        return folder.contents().digest
