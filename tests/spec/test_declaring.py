"""Skills of every kind by their constructors."""

from __future__ import annotations

import pytest

from voidbox_lab import AgentSkill, CliSkill, McpSkill, OciSkill, Policy, Skill, VoidBox
from voidbox_lab.errors import UserError


def test_constructors_say_what_the_models_say() -> None:
    """Each is the model that its kind has; short forms stand for whole ones."""
    clock = Skill.mcp("clock", "mcp-server-time --local-timezone 'Europe/Berlin'", packages="pypi:mcp-server-time",
                      env={"TZ": "UTC"}, tools=["get_current_time"])  # fmt: skip
    assert clock == McpSkill(
        name="clock", command=("mcp-server-time", "--local-timezone", "Europe/Berlin"),
        packages=("pypi:mcp-server-time",), env={"TZ": "UTC"}, tools=("get_current_time",),
    )  # fmt: skip
    assert Skill.cli("jq") == CliSkill(name="jq", packages=("deb:jq",))
    assert Skill.cli("http", "pypi:httpie", commands="http").programs == ("http",)
    assert Skill.agent("codex") == AgentSkill(name="codex")
    node = Skill.oci("registry.example/lib/node.js:22-slim")
    assert node == OciSkill(name="node-js", image="registry.example/lib/node.js:22-slim")
    assert node.place == "/skills/node-js"
    assert Skill.inline("brief", "Be brief.\n", description="How to answer.").kind == "inline"
    skills = [clock, Skill.cli("jq"), Skill.agent("codex"), node]
    policy = {"network": "allowlist", "egress": ["pypi.org"], "commands": ["git"]}
    box = VoidBox("a", prompt="p", model="scripted:echo", skills=skills, policy=policy)
    assert box.spec.adapter == "codex"
    assert box.spec.effective_policy.commands == ("git", "jq", "mcp-server-time")
    assert Policy.allow("PyPI.org:443").egress == ("pypi.org:443",)
    assert "skills: clock, jq, codex, node-js" in repr(box)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Skill.mcp("x", 'server "a'), "a quotation mark has no partner"),
        (lambda: Skill.mcp("x", []), "option 'command'"),
        (lambda: Skill.mcp("x", "s", packages="npx"), "write deb:NAME, pypi:NAME==VERSION"),
        (lambda: Skill.cli("g++"), "is not a name"),
        (lambda: Skill.oci("../x"), "option"),
        (lambda: Policy.allow("example.org:99999"), "is not HOST:PORT"),
        (lambda: VoidBox("a", command="id", policy={"netwrok": "open"}), "option 'netwrok'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(make: object, said: str) -> None:
    """User errors that name the option."""
    with pytest.raises(UserError, match=said):
        make()  # type: ignore[operator]
