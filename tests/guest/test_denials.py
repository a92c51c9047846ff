"""What the guest tells of denials: bounded in events, and with every one counted."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from typing import Any

import pytest

from voidbox_lab.resources import data_dir

sys.path.append(str(data_dir("guest")))
try:
    Loop = importlib.import_module("voidbox_guest.loop").Loop
    Denials = importlib.import_module("voidbox_guest.denials").Denials
finally:
    sys.path.pop()


class Call:
    """A request whose host reads while there is `space`."""

    def __init__(self, space: int) -> None:
        self.space = space
        self.counts: Counter[str] = Counter()
        self.events = 0

    def room(self, channel: int) -> int:
        return self.space

    def event(self, value: dict[str, Any]) -> None:
        self.counts[value["denied"]["rule"]] += value["denied"]["count"]
        self.events += 1


@pytest.mark.parametrize("space", [0, 100])
def test_every_denial_is_told_by_the_end(space: int) -> None:
    """Of every rule, also where there are many, and to a host that has not read for a while."""
    call = Call(space)
    denials = Denials(Loop(), call)
    rules = [f"syscalls.{n}" for n in range(30)]
    for n in range(40):
        for rule in rules:
            denials.add(rule, f"call {n}", "No.", count=2)
    before = call.events
    denials.close()
    assert before == (1 if space else 0)
    assert call.counts == dict.fromkeys(rules, 80)
    assert call.events < 60
