"""Which run's stage has the result for a key, in memory and in a file of lines. Not for the results.

Blocking; one writer. A lost line costs a stage that runs once more, nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from voidbox_lab.store.rundir import write_file


class StageIndex:
    """The cache in the file `path`; entries of runs that `exists` does not know are dropped."""

    def __init__(self, path: Path, exists: Callable[[str], bool]) -> None:
        self._path = path
        self._entries: dict[str, tuple[str, str]] = {}
        lines = self._lines()
        for line in lines:
            self._take(line)
        self._entries = {k: v for k, v in self._entries.items() if exists(v[0])}
        self._torn = False
        if len(lines) != len(self._entries):
            self._rewrite()

    def get(self, key: str) -> tuple[str, str] | None:
        """Run and stage for `key`."""
        return self._entries.get(key)

    def put(self, key: str, run: str, stage: str) -> None:
        """Keep that. In the page cache when this returns; nothing is kept after an OSError."""
        self._append({"key": key, "run": run, "stage": stage})
        self._entries[key] = (run, stage)

    def forget(self, run: str) -> None:
        """Drop all of `run`, in memory also if the file cannot be written."""
        left = {k: v for k, v in self._entries.items() if v[0] != run}
        if len(left) != len(self._entries):
            self._entries = left
            self._append({"forget": run})

    def _take(self, line: Mapping[str, Any]) -> None:
        match line:
            case {"key": str(key), "run": str(run), "stage": str(stage)}:
                self._entries[key] = (run, stage)
            case {"forget": str(run)}:
                self._entries = {k: v for k, v in self._entries.items() if v[0] != run}

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        lines: list[dict[str, Any]] = []
        for line in text.split("\n"):
            try:
                value = json.loads(line)
            except ValueError:
                value = None  # the last one, torn; counted, so that the file is written anew
            if line:
                lines.append(value if isinstance(value, dict) else {})
        return lines

    def _append(self, line: dict[str, str]) -> None:
        if self._torn:
            self._rewrite()
        data = json.dumps(line).encode() + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            self._torn = True
            written = os.write(file, data)
            if written < len(data):
                os.write(file, data[written:])
            self._torn = False
        finally:
            os.close(file)

    def _rewrite(self) -> None:
        lines = [json.dumps({"key": k, "run": r, "stage": s}) + "\n" for k, (r, s) in self._entries.items()]
        write_file(self._path, "".join(lines))
        self._torn = False
