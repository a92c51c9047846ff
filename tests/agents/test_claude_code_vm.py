"""The real claude-code binary in a real box, against a scripted model: the adapter contract, proved once.

Its layer is built here from the npm registry and stays in this user's cache; where that cannot be fetched the
test is skipped and says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox_lab import Skill, UserError, VoidBox, images
from voidbox_lab.client import Client
from voidbox_lab.settings import Settings
from voidbox_lab.spec.events import ModelCall, ToolCall, ToolResult

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

PROMPT = """Run this and tell me what it prints.
```sh
cat /home/agent/.claude/skills/greeting/SKILL.md | tail -n 1; id -un
```
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A home of its own, with claude-code's layer in the shared cache; its daemon is ended."""
    cache = Settings.from_env().cache
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path))
    monkeypatch.setenv("VOIDBOX_CACHE", str(cache))
    settings = Settings.from_env(dict(os.environ)).prepare()
    images.add_agent(settings, images.resolve(settings), "claude-code")
    yield settings
    with Client(settings) as client:
        client.shutdown()


def test_claude_code_works_in_a_box(home: Settings) -> None:
    """It finds its skill, calls its tool, reads the result and answers; the gateway meters every call."""
    run = VoidBox(
        "claude",
        agent="claude-code",
        model="scripted:shell",
        skills=[Skill(name="greeting", description="How to greet", body="Say good-day.\n")],
        prompt=PROMPT,
        memory_mb=1024,
        timeout_s=400,
    ).run()
    stage = run.stages["claude"]
    assert run.state == "succeeded", run.trouble or stage.trouble
    assert stage.output is not None
    assert "Say good-day." in stage.output
    assert "agent" in stage.output
    assert (stage.box.isolation, stage.model_source) == ("tcg", "scripted") or stage.box.isolation == "kvm"
    bodies = [event.body for event in run.events()]
    assert [b.name for b in bodies if isinstance(b, ToolCall)] == ["Bash"]
    assert not any(b.is_error for b in bodies if isinstance(b, ToolResult))
    calls = [b for b in bodies if isinstance(b, ModelCall)]
    assert len(calls) >= 2
    assert all(c.tokens.input > 0 and c.cost_usd == 0 for c in calls)
    assert stage.tokens.total == sum(c.tokens.total for c in calls)


def test_an_agent_nobody_knows_is_a_sentence(home: Settings) -> None:
    """Before a box is booted."""
    with pytest.raises(UserError, match="no-such-agent"):
        VoidBox("x", agent="no-such-agent", model="scripted:echo", prompt="p").run()
