"""What the policy denied a command, as the guest tells it: checked, bounded, and no count lost."""

from __future__ import annotations

from collections import deque

from pydantic import ValidationError

from voidbox_lab.errors import ProviderError
from voidbox_lab.spec.events import Denied

MAX_DENIED = 1000
"""Denials of one command that are told one by one; those after them are added up by rule and told at its end."""
MAX_RULES = 64
"""Rules that are told apart then; an honest guest knows fewer."""
MAX_COUNT = 1 << 40


class Denials:
    """Of one command: what was taken in and not given out yet."""

    def __init__(self) -> None:
        self._told: deque[Denied] = deque()
        self._taken = 0
        self._more: dict[str, int] = {}

    def take(self, fields: object) -> None:
        """Take in one that the guest tells.

        Raises:
            ProviderError: it is none.
        """
        one = denied(fields)
        if self._taken < MAX_DENIED:
            self._told.append(one)
            self._taken += 1
        else:
            rule = one.rule if one.rule in self._more or len(self._more) < MAX_RULES else "…"
            self._more[rule] = min(MAX_COUNT, self._more.get(rule, 0) + one.count)

    def end(self) -> None:
        """There will be no more: what was added up is told."""
        for rule, count in self._more.items():
            message = "The policy denied more than is listed one by one."
            self._told.append(Denied(rule=rule, subject="…", message=message, count=count))
        self._more.clear()

    def pop(self) -> Denied | None:
        """The next one to tell, or None for now."""
        return self._told.popleft() if self._told else None


def denied(fields: object) -> Denied:
    """A denial from the guest's fields.

    Raises:
        ProviderError: they are not those of a denial.
    """
    if not isinstance(fields, dict):
        raise ProviderError("The guest sent a malformed denial.", cause="protocol")
    try:
        told = Denied.model_validate({**fields, "type": "denied"}, strict=True)
    except ValidationError:
        raise ProviderError("The guest sent a malformed denial.", cause="protocol") from None
    return told if told.count <= MAX_COUNT else told.model_copy(update={"count": MAX_COUNT})
