"""The error tree keeps its five kinds across JSON."""

from __future__ import annotations

import json

import pytest

from voidbox_lab import errors
from voidbox_lab.spec import Trouble

ERRORS = [
    errors.UserError("u"),
    errors.ProviderError("p"),
    errors.Unavailable("no qemu", cause="qemu"),
    errors.BoxLost("gone", cause="guest-panic"),
    errors.CommandFailed("c", exit_code=3),
    errors.LimitExceeded("l", limit="time", value=300, unit="s", source="stage"),
    errors.Cancelled("x"),
]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)


def test_no_error_is_forgotten_here() -> None:
    tree = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.VoidboxError)}
    assert {type(e) for e in ERRORS} == tree - {errors.VoidboxError}


@each_error
def test_an_error_survives_json(error: errors.VoidboxError) -> None:
    """Type, kind, message and details are the same on the other side of the API."""
    again = errors.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()


@each_error
def test_an_error_survives_a_record(error: errors.VoidboxError) -> None:
    """As a run's trouble it is stored, and raised from it as the error it was."""
    stored = Trouble.from_error(error.to_dict()).model_dump_json()
    again = errors.from_dict(Trouble.model_validate_json(stored).model_dump())
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()


def test_a_record_without_details_still_raises_its_kind() -> None:
    """As an earlier release stored it."""
    old = Trouble(kind="limit", message="l", cause="time")
    again = errors.from_dict(old.model_dump())
    assert isinstance(again, errors.LimitExceeded)
    assert (again.limit, again.value, again.unit, again.source) == ("time", None, "", "default")


def test_nonsense_becomes_a_provider_error() -> None:
    """A newer peer's unknown kind is still an error of ours."""
    assert errors.from_dict({"kind": "new", "message": "m"}).kind == "provider"
    assert errors.from_dict({}).message
