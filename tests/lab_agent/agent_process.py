"""Runs lab-agent as a process against a served gateway. Not a test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from voidbox_lab.gateway import Gateway, Library, StageSession, serving
from voidbox_lab.resources import data_dir
from voidbox_lab.spec import Model
from voidbox_lab.spec.events import ModelCall

TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@dataclass
class Ended:
    """A finished run."""

    code: int
    events: list[dict[str, Any]]
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The last event, which must be a result."""
        assert self.events[-1]["type"] == "result", self.events[-1]
        return self.events[-1]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Events of one type."""
        return [e for e in self.events if e["type"] == kind]


@dataclass
class Place:
    """A directory to work in, a gateway to ask."""

    home: Path
    gateway: Gateway
    url: str
    calls: list[ModelCall]

    def env(self, model: str) -> dict[str, str]:
        """The environment of an agent whose stage has `model`."""
        token = self.gateway.register(StageSession("run-1", "analyst", Model.parse(model)))
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(data_dir("guest")),
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": token,
            "TRACEPARENT": TRACEPARENT,
        }

    def argv(self, prompt: str, *options: str) -> list[str]:
        """The command, as the image's launcher runs it."""
        return [sys.executable, "-S", "-m", "lab_agent", "-p", prompt, *options]

    async def run(self, model: str, prompt: str, *options: str, stdin: bytes = b"") -> Ended:
        """Run it to its end."""
        with anyio.fail_after(90):
            done = await anyio.run_process(
                self.argv(prompt, *options), env=self.env(model), cwd=self.home, input=stdin, check=False
            )
        return Ended(done.returncode, parsed(done.stdout), done.stderr.decode())

    async def start(self, model: str, prompt: str, *options: str) -> anyio.abc.Process:
        """Start it, with pipes."""
        return await anyio.open_process(
            self.argv(prompt, *options), env=self.env(model), cwd=self.home, stderr=subprocess.PIPE
        )


def parsed(stdout: bytes) -> list[dict[str, Any]]:
    """One JSON object a line, and nothing else."""
    return [json.loads(line) for line in stdout.splitlines()]


@asynccontextmanager
async def place(home: Path, library: Library | None = None) -> AsyncIterator[Place]:
    """Serve a gateway on loopback for agents that work in `home`."""
    calls: list[ModelCall] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        gateway = Gateway(lambda _, call: calls.append(call), library=library)
        async with serving(gateway, sock), gateway:
            yield Place(home, gateway, f"http://127.0.0.1:{sock.getsockname()[1]}", calls)
