"""The error tree keeps its five kinds across JSON."""

from __future__ import annotations

import json

import pytest

from voidbox_lab import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.UserError("u"),
        errors.ProviderError("p"),
        errors.Unavailable("no qemu", cause="qemu"),
        errors.BoxLost("gone", cause="guest-panic"),
        errors.CommandFailed("c", exit_code=3),
        errors.LimitExceeded("l", limit="time", value=300, unit="s", source="stage"),
        errors.Cancelled("x"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_survives_json(error: errors.VoidboxError) -> None:
    """Type, kind, message and details are the same on the other side of the API."""
    again = errors.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()


def test_nonsense_becomes_a_provider_error() -> None:
    """A newer peer's unknown kind is still an error of ours."""
    assert errors.from_dict({"kind": "new", "message": "m"}).kind == "provider"
    assert errors.from_dict({}).message
