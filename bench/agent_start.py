"""The default agent's start: from the exec request to its first model request at the gateway's socket.

    .venv/bin/python bench/agent_start.py [--samples 5] [--starts 4] [--memory 384] [--json FILE]

Floor: ``/bin/true`` in the same box, from the request to its exit code. Subject: ``lab-agent -p -``, until the
head of its first POST is on the host's side of the gateway socket, where a fixed text answers. Each sample is a
box of its own; its first start finds in the guest's page cache what PID 1 has read, the later ones everything.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
from anyio.abc import SocketStream

from voidbox_lab.box import Box, Boxes
from voidbox_lab.settings import Settings

BOUND_S = 120.0
_EVENTS = (
    {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "usage": {}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Done."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + b"".join(
    b"data: " + json.dumps(event).encode() + b"\n\n" for event in _EVENTS
)


@dataclass(frozen=True)
class Sample:
    """Seconds in one box: the medians of its `true`s, the agent's first start, the median of the later ones."""

    floor_s: float
    first_s: float
    again_s: float
    whole_s: float
    """A later start from the request to the exit code, one answered model call included."""


class Model:
    """Answers every connection on a UNIX socket; `asked` is when the last request's head came."""

    def __init__(self) -> None:
        self.asked = 0.0

    async def serve(self, stream: SocketStream) -> None:
        """One request, one answer."""
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            self.asked = time.monotonic()
            before, _, body = head.partition(b"\r\n\r\n")
            length = int(before.lower().partition(b"content-length:")[2].split()[0])
            while len(body) < length:
                body += await stream.receive()
            await stream.send(_ANSWER)


async def one_box(boxes: Boxes, socket: Path, model: Model, memory_mb: int, starts: int) -> Sample:
    """Open a box, start the agent in it `starts` times."""
    env = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8129", "ANTHROPIC_API_KEY": "none"}
    async with await boxes.open(memory_mb=memory_mb, gateway_socket=socket) as box:
        times, wholes = [], []
        for _ in range(starts):
            began = time.monotonic()
            with anyio.fail_after(BOUND_S):
                done = await box.run(["lab-agent", "-p", "-"], env=env, stdin=b"Say that you are done.")
            assert done.exit_code == 0, done.stderr
            times.append(model.asked - began)
            wholes.append(time.monotonic() - began)
        floor = statistics.median([await _true(box) for _ in range(5)])
    return Sample(floor, times[0], statistics.median(times[1:]), statistics.median(wholes[1:]))


async def _true(box: Box) -> float:
    began = time.monotonic()
    assert (await box.run(["/bin/true"])).exit_code == 0
    return time.monotonic() - began


async def measure(samples: int, starts: int, memory_mb: int) -> list[Sample]:
    """`samples` boxes, one after the other, after one that warms the host's page cache."""
    found = []
    model = Model()
    settings = Settings.from_env().prepare()
    with tempfile.TemporaryDirectory(dir="/tmp") as work:
        socket = Path(work) / "gw"
        listener = await anyio.create_unix_listener(socket)
        async with Boxes.here(settings) as boxes, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, model.serve)
            for n in range(samples + 1):
                sample = await one_box(boxes, socket, model, memory_mb, starts)
                if n:
                    found.append(sample)
                print(("warm-up " if not n else f"{n:7} ") + json.dumps(asdict(sample)), file=sys.stderr)
            tasks.cancel_scope.cancel()
    return found


def main() -> None:
    """Measure, print medians and ratios, keep the raw samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--starts", type=int, default=4, help="starts in each box, at least 2")
    parser.add_argument("--memory", type=int, default=384)
    parser.add_argument("--json", type=Path, help="write raw samples here")
    args = parser.parse_args()
    samples = anyio.run(measure, args.samples, args.starts, args.memory)
    print(f"{args.memory} MB, {len(samples)} boxes of {args.starts} starts, medians in ms, ratio to the floor")
    floor = statistics.median(s.floor_s for s in samples)
    for name, label in (
        ("floor_s", "floor: /bin/true"),
        ("first_s", "first start to first model request"),
        ("again_s", "later start to first model request"),
        ("whole_s", "later start to exit code"),
    ):
        value = statistics.median(getattr(s, name) for s in samples)
        print(f"{label:36} {value * 1000:7.0f} {value / floor:6.1f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps(
                {"benchmark": "agent_start", "host": platform.platform(), "samples": [asdict(s) for s in samples]},
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
