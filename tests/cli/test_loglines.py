"""What a stage did besides talking, as lines of ``voidbox logs``: one each, whatever the guest called it."""

from __future__ import annotations

import pytest

from voidbox_lab.cli.loglines import Lines
from voidbox_lab.spec import InputFile
from voidbox_lab.spec.events import Body, Denied, Egress, Event, FileKept, Mounted

EVIL = "\x1b[2Jevil\n\x9b31m\u202e"
FILE = InputFile(digest="sha256:" + "0" * 64, size=2048)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            Denied(rule="commands", subject="/tmp/x", message="x is not allowed.", program="bash", count=3),
            "denied by commands: x is not allowed. (bash), 3 times",
        ),
        (
            Egress(host="pypi.org", port=443, verdict="allowed", rule="pypi.org:443", address="151.101.0.1",
                   bytes_out=100, bytes_in=4096, duration_s=0.5),
            "egress pypi.org:443 allowed by pypi.org:443, 151.101.0.1, 100 B out, 4.0 kB in, 0.5 s",
        ),
        (
            Egress(host="a.example", port=80, verdict="denied", rule="allowlist", reason="not in the allowlist"),
            "egress a.example:80 denied by allowlist: not in the allowlist",
        ),
        (FileKept(path="a/b.csv", file=FILE), "file a/b.csv (2.0 kB)"),
        (
            Mounted(mount="/srv/a:/a:rw", how="copy", direction="out", files=1200, bytes=2048, digest="x"),
            "brought back /srv/a:/a:rw: 1,200 files, 2.0 kB (copy)",
        ),
    ],
)  # fmt: skip
def test_one_line_each(body: Body, line: str) -> None:
    """With what a reader wants to know."""
    assert list(Lines().of(Event(seq=1, run="r", at=1.0, stage="a", body=body))) == [f"[vm:a] {line}"]


@pytest.mark.parametrize(
    "body",
    [
        Denied(rule=EVIL, subject=EVIL, message=EVIL * 20, program=EVIL, count=10**20),
        Egress(host=EVIL, port=1, verdict="failed", rule=EVIL, address=EVIL, reason=EVIL * 20),
        Mounted(mount=EVIL * 100, how="copy", direction="in", files=1, bytes=1, digest="x"),
    ],
)
def test_nothing_in_a_line_controls_a_terminal(body: Body) -> None:
    """Control characters are written out, and a line stays one."""
    (line,) = Lines().of(Event(seq=1, run="r", at=1.0, stage="a", body=body))
    assert line.isprintable()
    assert len(line) < 3000
    assert "evil" in line
