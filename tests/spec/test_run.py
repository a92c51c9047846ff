"""Runs as data: what can be said, what cannot, and that saying it the same way gives the same digest."""

from __future__ import annotations

from typing import Any

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Model, RunSpec, Skill, Stage, StageRecord, Tokens, VoidBoxSpec, validated
from voidbox_lab.spec.run import RunRecord


def box(name: str = "a", **fields: Any) -> VoidBoxSpec:
    """A small valid box spec."""
    base: dict[str, Any] = {"name": name, "prompt": "p", "model": Model.parse("scripted:echo")}
    return validated(VoidBoxSpec, **base | fields)


def test_digest_is_of_the_content() -> None:
    """The same declaration has the same digest through JSON; any change has another."""
    spec = RunSpec(stages=(Stage(box=box()),))
    assert RunSpec.model_validate_json(spec.model_dump_json()).digest == spec.digest
    assert RunSpec(stages=(Stage(box=box(memory_mb=513)),)).digest != spec.digest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"memory_mb": 64}, "'memory_mb'.*192"),
        ({"timeout_s": 0}, "'timeout_s'"),
        ({"colour": "red"}, "'colour'"),
        ({"prompt": ""}, "needs a prompt"),
        ({"name": "../x"}, "not a name"),
        ({"skills": [Skill(name="s", description="", body="b")] * 2}, "named twice"),
    ],
)
def test_a_bad_box_is_one_sentence(fields: dict[str, Any], words: str) -> None:
    """The sentence names the option."""
    with pytest.raises(UserError, match=words) as e:
        box(**fields)
    assert "\n" not in e.value.message


def test_stages_form_a_graph_by_construction() -> None:
    """A stage needs only stages declared before it, so cycles and strangers cannot be written."""
    RunSpec(stages=(Stage(box=box("a")), Stage(box=box("b"), needs=("a",))))
    for stages, words in (
        ((Stage(box=box("a"), needs=("b",)), Stage(box=box("b"))), "declared later"),
        ((Stage(box=box("a"), needs=("a",)),), "declared later"),
        ((Stage(box=box("a"), needs=("z",)),), "not in this run"),
        ((Stage(box=box("a")), Stage(box=box("a"))), "named twice"),
    ):
        with pytest.raises(UserError, match=words):
            validated(RunSpec, stages=stages)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256])
def test_inputs_are_plain_file_names(name: str) -> None:
    """No input can name a place outside the input directory."""
    file = {"digest": "sha256:" + "0" * 64, "size": 1}
    with pytest.raises(UserError, match="not a plain file name"):
        validated(RunSpec, stages=[{"box": box()}], inputs={name: file})


@pytest.mark.parametrize("text", ["gpt-5", "who:x", "scripted:", "openai:a b", "", ":x"])
def test_models_name_a_provider(text: str) -> None:
    """Anything else is a sentence."""
    with pytest.raises(UserError):
        Model.parse(text)


def test_models_round_trip() -> None:
    """`str` of a model parses to the same model."""
    for text in ("anthropic:claude-sonnet-4-5", "ollama:qwen3:4b", "openai:m@http://127.0.0.1:8080/v1"):
        model = Model.parse(text)
        assert Model.parse(str(model)) == model
    assert str(Model.parse("openai:m@https://h/v1").base_url) == "https://h/v1"


def test_result_is_the_last_stage_that_answered() -> None:
    """A later stage without output does not hide an earlier answer."""
    spec = RunSpec(stages=(Stage(box=box("a")), Stage(box=box("b"), needs=("a",))))
    stages = {
        "a": StageRecord(name="a", state="succeeded", output="one"),
        "b": StageRecord(name="b", state="failed"),
    }
    assert RunRecord(id="r", spec=spec, created_at=0.0, stages=stages).result == "one"


def test_tokens_add_up() -> None:
    """Field by field; total counts cached ones."""
    both = Tokens(input=1, cache_read=2) + Tokens(output=4, cache_write=8)
    assert both == Tokens(input=1, output=4, cache_read=2, cache_write=8)
    assert both.total == 15
