"""What a stage or a run may cost at most: dollars, tokens, seconds."""

from __future__ import annotations

from pydantic import Field

from voidbox_lab.cards import Card, Shown
from voidbox_lab.errors import UserError
from voidbox_lab.spec.base import Spec
from voidbox_lab.spec.validate import validated


class Budget(Shown, Spec):
    """A bound on what is spent; None: unbounded. Spent is what the gateway metered, so a call that is under way
    when the budget ends may overshoot it by its own cost."""

    usd: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    """Dollars at list price."""
    tokens: int | None = Field(None, gt=0, le=1 << 40)
    """Tokens of all kinds, cached ones included."""
    seconds: float | None = Field(None, gt=0, le=30 * 86400, allow_inf_nan=False)
    """Wall clock. A stage's: from its first box on, boots and retries included, waiting for room not. A run's:
    from its beginning on; a run that is resumed after its daemon died starts it anew."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``usd=0.5``, ``tokens=20000,seconds=60``.

        Raises:
            UserError: another name, or not a number.
        """
        fields: dict[str, str] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals or name.strip() not in cls.model_fields:
                known = ", ".join(f"{f}=N" for f in cls.model_fields)
                raise UserError(f"The budget {text!r} cannot be read at {part!r}; write it like {known}.")
            fields[name.strip()] = value.strip()
        return validated(cls, **fields)

    def __bool__(self) -> bool:
        """Whether it bounds anything."""
        return self.usd is not None or self.tokens is not None or self.seconds is not None

    def __str__(self) -> str:
        parts = [f"{n}={v:g}" for n, v in self.model_dump().items() if v is not None]
        return ",".join(parts) or "unbounded"

    def _card(self) -> Card:
        facts = (
            ("dollars", "unbounded" if self.usd is None else f"${self.usd:g} at list price"),
            ("tokens", "unbounded" if self.tokens is None else f"{self.tokens:,} of all kinds"),
            ("seconds", "unbounded" if self.seconds is None else f"{self.seconds:g} of wall clock"),
        )
        return Card("budget", str(self), facts=facts)
