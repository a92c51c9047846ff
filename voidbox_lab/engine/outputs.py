"""What the stages of a run answered: in the record as far as it is short, as an artifact where it is long."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from voidbox_lab.engine.job import Result
from voidbox_lab.errors import LimitExceeded
from voidbox_lab.spec import MAX_OUTPUT, InputFile, RunRecord
from voidbox_lab.store import MAX_EVENT_BYTES, Artifacts

MAX_BYTES = 64 << 20
"""Longest output that is read back, in bytes."""

MAX_HELD = 128 << 20
"""Bytes of long outputs that one run keeps in memory."""

MAX_FILES = 4096
"""Files of earlier stages that one stage is given."""

MAX_FILES_BYTES = 1 << 30
"""Bytes of these together."""


@dataclass(frozen=True)
class Output:
    """An answer: all of it in `text`, or its beginning there and all of it in `file`. And the files beside it."""

    text: str
    file: InputFile | None = None
    files: Mapping[str, InputFile] = field(default_factory=dict)
    """What the stage left in ``/workspace/output``."""


def _fits(text: str) -> bool:
    """Whether an event has room for it: a control character takes six bytes in JSON."""
    return len(json.dumps(text, ensure_ascii=False).encode()) <= MAX_EVENT_BYTES * 3 // 4


class Outputs:
    """Outputs of one run by stage; those of `record` if it is to go on."""

    def __init__(self, artifacts: Artifacts, record: RunRecord | None = None) -> None:
        self._artifacts = artifacts
        self._kept: dict[str, Output] = {}
        self._read: dict[str, str] = {}
        """Whole texts of long outputs, read once and shared by the stages that wait with them."""
        self._held = 0
        for name, stage in (record.stages if record else {}).items():
            if stage.state == "succeeded" and stage.output is not None:
                self._kept[name] = Output(stage.output, stage.output_file, stage.files)

    def add(self, stage: str, output: Output) -> None:
        """Take an output that is kept already."""
        self._kept[stage] = output

    async def made(self, result: Result) -> Output:
        """The output that is `result`, its text on disk if it is too long for a record. Half surrogates, which
        no file and no JSON of ours could hold, are replaced."""
        data = result.text.encode(errors="replace")
        text = data.decode()
        if len(text) <= MAX_OUTPUT and _fits(text):
            return Output(text, None, result.files)
        head = text[:MAX_OUTPUT]
        head = head if _fits(head) else head[: MAX_EVENT_BYTES // 8]
        return Output(head, await self._artifacts.put(data), result.files)

    async def of(self, stages: Iterable[str]) -> dict[str, str]:
        """The whole outputs of those of `stages` that have one.

        Raises:
            ProviderError: one that is an artifact is gone or damaged.
        """
        found = {}
        for name in stages:
            if (output := self._kept.get(name)) is None:
                continue
            text = output.text
            if output.file is not None:
                text = (await self._artifacts.read(output.file.digest, max_bytes=MAX_BYTES)).decode(
                    errors="replace"
                )
            found[name] = text
        return found

    def files_of(self, stages: Iterable[str]) -> dict[str, InputFile]:
        """What those of `stages` that succeeded left, as ``STAGE/PATH``.

        Raises:
            LimitExceeded: more than `MAX_FILES`, or `MAX_FILES_BYTES`.
        """
        kept = {name: self._kept[name].files for name in stages if name in self._kept}
        found = {f"{name}/{path}": file for name, files in kept.items() for path, file in files.items()}
        if len(found) > MAX_FILES or sum(file.size for file in found.values()) > MAX_FILES_BYTES:
            raise LimitExceeded(
                f"The stages before this one left more than {MAX_FILES} files, or {MAX_FILES_BYTES >> 20} MiB, "
                "which is more than a box is given; have them leave less, or merge them in steps.",
                limit="files",
                value=MAX_FILES,
                unit="files",
            )
        return found
