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
        ("---\nname: [\n---\nbody", "front matter is not valid YAML at line"),
        ("---\nname: Not A Name\n---\nbody", "not a name"),
    ],
)
def test_bad_skills_say_why(text: str, words: str) -> None:
    """One sentence that names the problem."""
    with pytest.raises(UserError, match=words):
        Skill.from_markdown(text, name="x" if not text else None)


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
