"""Skills: front matter, names, digests, and the sentences of bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Skill


def test_front_matter_is_read_and_arguments_win() -> None:
    """A cell may hold a whole SKILL.md; what stands on the magic's line wins."""
    text = "---\nname: table\ndescription: from the file\n---\n\n# How\nRead it.\n"
    assert Skill.from_markdown(text).description == "from the file"
    skill = Skill.from_markdown(text, name="other", description="from the line")
    assert (skill.name, skill.description, skill.body) == ("other", "from the line", "# How\nRead it.\n")


def test_a_skill_survives_its_own_markdown() -> None:
    """to_markdown is what the box sees; reading it back gives the same skill."""
    skill = Skill.from_markdown("Do: this\n---\nand that", name="a", description='quotes " and: colons')
    again = Skill.from_markdown(skill.to_markdown())
    assert again == skill
    assert again.digest == skill.digest


@given(st.text(max_size=200), st.text(max_size=100))
def test_any_text_is_a_skill_or_one_sentence(text: str, description: str) -> None:
    """No input ends in anything but a skill or a UserError."""
    try:
        skill = Skill.from_markdown(text, name="x", description=description)
    except UserError as e:
        assert "\n" not in e.message.strip()  # noqa: PT017 - either outcome is right; this one has a shape
    else:
        assert skill.body.strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("body", "no name"),
        ("---\nname: [\n---\nbody", "front matter is not valid YAML at line 3"),
        ("---\nname: a\nother: b: c\n---\nbody", "front matter is not valid YAML at line 3"),
        ('---\nname: "\\UFFFFFFFF"\n---\nbody', "front matter is not valid YAML"),
        ('---\nname: a\ndescription: "\\ud800"\n---\nbody', "description"),
        ("---\nname: [a]\n---\nbody", "name in the skill's front matter is a list or mapping"),
        ("---\nname: a\ndescription: {b: c}\n---\nbody", "description in the skill's front matter is a list"),
        ("---\nname: 2024-13-45 \n---\n", "empty"),
        (f"---\nname: {'9' * 5000}\n---\nbody", "name"),
        (f"---\nname: a\nother: {'x' * 20_000}\n---\nbody", "more than 16 KiB"),
        (f"---\nname: {'[' * 16_000}\n---\nbody", "front matter is not valid YAML"),
        # libyaml's composer ends the process on this one.
        (f"---\nname: {'[' * 500_000}\n---\nbody", "more than 16 KiB"),
        ("---\nname: Not A Name\n---\nbody", "not a name"),
    ],
)
def test_bad_skills_say_why(text: str, words: str) -> None:
    """One sentence that names the problem."""
    with pytest.raises(UserError, match=words):
        Skill.from_markdown(text, name="x" if not text else None)


def test_front_matter_cannot_grow() -> None:
    """Three hundred bytes of aliases would be 26 MB as text."""
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 8)]
    bomb = "\n".join(["---", "l0: &l0 [x]", *levels, "name: *l7", "---", "body"])
    with pytest.raises(UserError, match=r"at line 2 \(anchors and aliases are not read here\)"):
        Skill.from_markdown(bomb)
    with pytest.raises(UserError, match="anchors and aliases"):
        Skill.from_markdown("---\nname: a\ndescription: &d d\n---\nbody")


def test_front_matter_is_text_as_it_stands(tmp_path: Path) -> None:
    """What YAML would make a date, a number or a truth of; what it makes nothing of is not there."""
    path = tmp_path / "SKILL.md"
    for written in ("2024-13-45", "2024-01-01", "007", "1e3", "yes", '"null"'):
        path.write_text(f"---\nname: {written}\ndescription: {written}\n---\nbody")
        assert Skill.file(path).name == Skill.file(path).description == written.strip('"')
    path.write_text("---\nname:\ndescription: ~\nallowed-tools: [a, {b: c}]\n---\nbody")
    assert (Skill.file(path, name="given").name, Skill.file(path).description) == ("given", "")
    assert Skill.file(path).name == tmp_path.name.replace("_", "-")


@pytest.mark.parametrize("text", ["{\nnot json\n}\nbody", "+++\nnot = [toml\n+++\nbody", "a\n---\nb: [\n---\nc"])
def test_nothing_else_is_front_matter(text: str) -> None:
    """Other kinds, and what stands below a first line, are the skill's own words."""
    assert Skill.from_markdown(text, name="a").body == text + "\n"


def test_files_and_directories(tmp_path: Path) -> None:
    """A SKILL.md is named by its directory, another file by its stem."""
    folder = tmp_path / "Price History"
    folder.mkdir()
    (folder / "SKILL.md").write_text("Read it.")
    (tmp_path / "hn-api.md").write_text("Call it.")
    assert Skill.file(folder).name == "price-history"
    assert Skill.file(tmp_path / "hn-api.md").name == "hn-api"
    with pytest.raises(UserError, match=r"none\.md cannot be read"):
        Skill.file(tmp_path / "none.md")
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        Skill.file(tmp_path / "binary.md")
    (tmp_path / "large.md").write_bytes(b"x" * (1 << 20) + b"x")
    with pytest.raises(UserError, match="limit"):
        Skill.file(tmp_path / "large.md")
