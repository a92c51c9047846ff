"""What the stages of a run answered: in the record as far as it is short, as an artifact where it is long."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from voidbox_lab.spec import MAX_OUTPUT, InputFile, RunRecord
from voidbox_lab.store import MAX_EVENT_BYTES, Artifacts

MAX_BYTES = 64 << 20
"""Longest output that is read back, in bytes."""

MAX_HELD = 128 << 20
"""Bytes of long outputs that one run keeps in memory."""


@dataclass(frozen=True)
class Output:
    """An answer: all of it in `text`, or its beginning there and all of it in `file`."""

    text: str
    file: InputFile | None = None


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
                self._kept[name] = Output(stage.output, stage.output_file)

    def add(self, stage: str, output: Output) -> None:
        """Take an output that is kept already."""
        self._kept[stage] = output

    async def made(self, text: str) -> Output:
        """The output that is `text`, on disk if it is too long for a record. Half surrogates, which no file and no
        JSON of ours could hold, are replaced."""
        data = text.encode(errors="replace")
        text = data.decode()
        if len(text) <= MAX_OUTPUT and _fits(text):
            return Output(text)
        head = text[:MAX_OUTPUT]
        return Output(head if _fits(head) else head[: MAX_EVENT_BYTES // 8], await self._artifacts.put(data))

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
