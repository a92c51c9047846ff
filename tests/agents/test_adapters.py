"""How agents are started: command lines, environment, skills as files, unknown names."""

from __future__ import annotations

import pytest

from voidbox_lab.agents import adapter, names
from voidbox_lab.errors import UserError
from voidbox_lab.spec import Model, Skill, VoidBoxSpec

SKILL = Skill(name="price-history", description="How to: read", body="Read it.\n")
URL, TOKEN = "http://127.0.0.1:8129", "the-token"


def _stage(model: str, prompt: str = "Do it.") -> VoidBoxSpec:
    return VoidBoxSpec(name="analyst", prompt=prompt, model=Model.parse(model), skills=(SKILL,))


@pytest.mark.parametrize("name", names())
def test_every_adapter(name: str) -> None:
    """Prompt by standard input, token only in the environment, skills where the CLI looks for them."""
    agent = adapter(name)
    assert agent.name == name
    prompt = "x" * 500_000
    launch = agent.prepare(_stage("anthropic:claude-sonnet-4-5", prompt), [SKILL], URL, TOKEN)
    assert launch.stdin == prompt.encode()
    assert sum(map(len, launch.argv)) < 1000
    assert TOKEN not in " ".join(launch.argv)
    assert launch.env["ANTHROPIC_BASE_URL"] == URL
    assert launch.env["ANTHROPIC_API_KEY"] == TOKEN
    assert "claude-sonnet-4-5" in launch.argv
    path = "/home/agent/.claude/skills/price-history/SKILL.md"
    assert Skill.from_markdown(launch.files[path].decode()) == SKILL
    assert agent.parser() is not agent.parser()


def test_a_stage_has_exactly_the_skills_it_names() -> None:
    """None named, none written."""
    assert adapter("lab-agent").prepare(_stage("scripted:echo"), [], URL, TOKEN).files == {}


def test_lab_agent_is_in_every_image_and_claude_code_is_a_layer() -> None:
    """The default needs nothing besides the image."""
    assert names()[0] == "lab-agent" == VoidBoxSpec.model_fields["agent"].default
    assert adapter("lab-agent").layer is None
    assert adapter("claude-code").layer == "claude-code"


def test_claude_code_is_kept_from_phoning_home() -> None:
    """And is not told names of other providers' models, which it would not know."""
    launch = adapter("claude-code").prepare(_stage("ollama:qwen3"), [], URL, TOKEN)
    assert launch.env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert launch.env["DISABLE_AUTOUPDATER"] == "1"
    assert "--model" not in launch.argv


def test_an_unknown_agent() -> None:
    """Named, with those that are known."""
    with pytest.raises(UserError, match=r"no agent 'clod'; use one of lab-agent, claude-code"):
        adapter("clod")
