"""Options and names: what is wrong, where, and what was probably meant."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.errors import UserError
from voidbox_lab.magics.arguments import CELL, LINE, run_parser, stage_parser, subcommand
from voidbox_lab.magics.registry import unknown


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("analyst --model scripted:q --memry 512", "did you mean '--memory'?"),
        ("analyst --model scripted:q --memory lots", "'lots' is not a whole number of MB"),
        ("analyst --model scripted:q --memory 64", "64 is not between 192 and 1048576 MB"),
        ("analyst --model scripted:q --timeout -3", "not between 0 and 86400 seconds"),
        ("analyst --model scripted:q --timeout nan", "not between 0 and 86400 seconds"),
        ("analyst --model scripted:q --vcpus 0", "0 is not between 1 and 64 vCPUs"),
        ("analyst", "--model"),
        ("--model scripted:q", "name"),
        ("analyst --model 'scripted:q", "a quotation mark has no partner"),
    ],
)
def test_a_wrong_option_is_one_sentence(line: str, says: str) -> None:
    """It names the magic and the trouble, and fits on a line."""
    with pytest.raises(UserError) as caught:
        stage_parser().read(line)
    message = caught.value.message
    assert says in message
    assert "%%voidbox stage" in message
    assert "\n" not in message
    assert message.rstrip()[-1] in ".?"


def test_options_may_stand_before_and_after_names() -> None:
    """Stages and options mix, as people type them."""
    options = run_parser().read("a --input x.csv '|' [b, c] --input 'y z.csv' --quiet")
    assert options.stages == ["a", "|", "[b,", "c]"]
    assert options.input == ["x.csv", "y z.csv"]
    assert options.quiet


@given(st.text(max_size=60))
def test_any_line_is_options_or_a_user_error(line: str) -> None:
    """Nothing typed after the magic's name is a crash, an exit or a print."""
    for parser in (*CELL.values(), *LINE.values()):
        with suppress(UserError):
            assert parser().read(line) is not None


@pytest.mark.parametrize(
    ("magic", "line", "says"),
    [
        ("%voidbox", "rnu analyst", "did you mean 'run'?"),
        ("%voidbox", "stage x", "'stage' is a cell magic; write '%%voidbox stage …'"),
        ("%%voidbox", "run x", "'run' is a line magic; write '%voidbox run …'"),
        ("%%voidbox", "zzz", "there are skill, stage"),
    ],
)
def test_an_unknown_subcommand_names_the_right_one(magic: str, line: str, says: str) -> None:
    """A slip, the wrong magic, or nonsense."""
    with pytest.raises(UserError) as caught:
        subcommand(magic, line, LINE if magic == "%voidbox" else CELL)
    assert says in caught.value.message


def test_unknown_names_come_with_the_nearest() -> None:
    """Or with what there is, or with how to make one."""
    assert unknown("stage", "analist", ["analyst", "b"], "Declare it") == (
        "The stage 'analist' is not known; did you mean 'analyst'?"
    )
    assert unknown("stage", "zzz", ["b"], "Declare it").endswith("(known: b). Declare it.")
    assert unknown("stage", "zzz", [], "Declare it").endswith("is not known. Declare it.")
