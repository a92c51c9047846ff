"""Skills that are programs, the layers they need, and what a stage makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec import (
    AgentSkill,
    CliSkill,
    HostMount,
    McpSkill,
    Model,
    OciMount,
    OciSkill,
    Policy,
    Skill,
    VoidBoxSpec,
    validated,
)
from voidbox_lab.spec.api import ExecRequest, ShellRequest

CLOCK = McpSkill(name="clock", command=("mcp-server-time",), packages=("pypi:mcp-server-time==2026.7.10",))
JQ = CliSkill(name="jq", packages=("deb:jq",))
SHELL = OciSkill(name="box", image="busybox:1.37")
AGENT = {"name": "a", "prompt": "Do it.", "model": Model.parse("scripted:echo")}


def test_what_a_root_is_made_of() -> None:
    """Packages in order and once, images at their places, the agent's layer."""
    git = McpSkill(name="git", command=("mcp-server-git",), packages=("pypi:mcp-server-git", "deb:jq"))
    box = VoidBoxSpec(skills=(git, CLOCK, JQ, SHELL), image="python:3.12-slim", **AGENT)
    root = box.rootfs("claude-code")
    assert root.packages == ("deb:jq", "pypi:mcp-server-git", "pypi:mcp-server-time==2026.7.10")
    assert root.oci == (OciMount(image="busybox:1.37", path="/skills/box"),)
    assert (root.image, root.agent) == ("python:3.12-slim", "claude-code")
    assert VoidBoxSpec(**AGENT).rootfs(None).model_dump() == {
        "image": "default", "agent": None, "packages": (), "oci": (),
    }  # fmt: skip


def test_a_skill_chooses_the_agent() -> None:
    """One of them, and not against the field."""
    box = VoidBoxSpec(skills=(AgentSkill(name="codex"),), **AGENT)
    assert box.adapter == "codex"
    with pytest.raises(UserError, match="keep one of them"):
        validated(VoidBoxSpec, skills=(AgentSkill(name="codex"),), agent="claude-code", **AGENT)
    with pytest.raises(UserError, match="one agent"):
        validated(VoidBoxSpec, skills=(AgentSkill(name="codex"), AgentSkill(name="claude-code")), **AGENT)


def test_programs_of_skills_are_allowed() -> None:
    """A policy that names commands need not name those of the stage's skills; one that names none stays so."""
    tool = CliSkill(name="http", packages=("pypi:httpie",), commands=("http", "https"))
    box = VoidBoxSpec(skills=(tool, CLOCK), policy=Policy(commands=("ls", "http")), **AGENT)
    assert box.effective_policy.commands == ("ls", "http", "https", "mcp-server-time")
    assert box.policy.commands == ("ls", "http")
    assert VoidBoxSpec(skills=(tool,), **AGENT).effective_policy == Policy()


def test_a_command_has_tools_and_no_teachings() -> None:
    """What an agent reads is not for a command; programs and images are for both."""
    assert validated(VoidBoxSpec, name="c", command=("jq", "."), skills=(JQ, SHELL)).tools == (JQ,)
    for skill in (Skill(name="s", description="", body="Read."), CLOCK, AgentSkill(name="codex")):
        with pytest.raises(UserError, match="neither a prompt nor skills"):
            validated(VoidBoxSpec, name="c", command=("jq",), skills=(skill,))


def test_places_in_each_others_way() -> None:
    """Volumes, folders and images share one tree."""
    with pytest.raises(UserError, match="in each other's way"):
        validated(VoidBoxSpec, skills=(SHELL,), volumes=("v:/skills/box/x",), **AGENT)
    for mounts in (("/srv:/data",), ("/srv:/data/sub",), ("/srv:/m", "/srv:/m"), ("/a:/m:rw", "/b:/m/sub")):
        for model, fields in ((VoidBoxSpec, AGENT), (ExecRequest, {"argv": ("true",)}), (ShellRequest, {})):
            with pytest.raises(UserError, match="in each other's way"):
                validated(model, mounts=mounts, volumes=("v:/data",), **fields)
    assert validated(ExecRequest, argv=("true",), mounts=("/a:/m:rw", "/a:/m2"), volumes=("v:/data",)).mounts


@pytest.mark.parametrize(
    "package",
    ["jq", "deb:", "deb:JQ", "deb:a b", "pypi:../x", "pypi:x=1", "npm:@a", "npm:A", "apt:jq", "pypi:--index-url"],
)
def test_no_packages(package: str) -> None:
    """Neither an option nor a path can be one."""
    with pytest.raises(UserError, match=r"deb:NAME, pypi:NAME==VERSION or npm:NAME@VERSION"):
        validated(CliSkill, name="x", packages=(package,))


@pytest.mark.parametrize(
    "image", ["python:3.12-slim", "ghcr.io/a/b@sha256:" + "0" * 64, "localhost:5000/x", "a/b"]
)
def test_images(image: str) -> None:
    """An OCI reference is told from the name of an image of ours by what is in it."""
    assert validated(VoidBoxSpec, image=image, **AGENT).image == image


@pytest.mark.parametrize("image", ["../x", "a//b", "a:", "a@sha256:12", "a/UPPER", "-x", "a b", "http://x/y"])
def test_no_images(image: str) -> None:
    """Neither an option nor a URL can be one."""
    with pytest.raises(UserError):
        validated(VoidBoxSpec, image=image, **AGENT)


def test_a_folder_with_its_files(tmp_path: Path) -> None:
    """What lies beside SKILL.md belongs to it, by digest; links and hidden things do not."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "SKILL.md").write_text("---\nname: news\ndescription: d\n---\nDo.\n")
    (tmp_path / "scripts" / "top.sh").write_text("echo top\n")
    (tmp_path / "scripts" / "top.sh").chmod(0o755)
    (tmp_path / "words.txt").write_text("a\n")
    (tmp_path / ".git" / "config").write_text("secret")
    (tmp_path / "outside").symlink_to("/etc/passwd")
    skill = Skill.file(tmp_path)
    assert {path: file.executable for path, file in skill.files.items()} == {
        "scripts/top.sh": True,
        "words.txt": False,
    }
    assert skill.contents[skill.files["words.txt"].digest] == b"a\n"
    again = Skill.model_validate_json(skill.model_dump_json())
    assert again == skill
    assert again.digest == skill.digest
    assert again.contents == {}
    assert skill.renamed("other").contents == skill.contents
    assert Skill.file(tmp_path / "SKILL.md").files == {}


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", "a//b", "SKILL.md", "a\nb", "x" * 256])
def test_no_files_of_a_skill(path: str) -> None:
    """They stay below its directory."""
    with pytest.raises(UserError):
        Skill(name="s", description="", body="x").with_files({path: (b"", False)})


def test_folders_of_the_host() -> None:
    """As text, read-only unless told otherwise; never over what is the guest's own."""
    assert HostMount.model_validate("/srv/data:/data") == HostMount(source="/srv/data", path="/data")
    assert str(HostMount.model_validate("/srv/data/:/workspace/data:rw")) == "/srv/data:/workspace/data:rw"
    for text in (
        "data:/data",
        "/srv:/usr/x",
        "/srv:/workspace/input",
        "/srv:/data:x",
        "/a/../b:/data",
        "/srv",
        "/srv:data",
    ):
        with pytest.raises(ValueError, match=r"folder|guest's own|inputs and outputs|FOLDER:PATH|pattern"):
            HostMount.model_validate(text)
