"""How values show themselves in a notebook: one small design, as HTML that can do nothing and as plain lines.

    class Budget(Shown, Spec):
        def _card(self) -> Card: ...

Standard library only, for every room may use it. Not for runs that go on: see `voidbox_lab.widgets`.
"""

from voidbox_lab.cards.card import MAX_VALUE, Card, Shown, Table
from voidbox_lab.cards.graph import Node

__all__ = ["MAX_VALUE", "Card", "Node", "Shown", "Table"]
