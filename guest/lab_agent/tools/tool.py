"""What a tool is."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Callable


class ToolProblem(Exception):
    """What went wrong, in words the model can act on."""


class Tool:
    """One tool. `call` takes the input object and returns text, or raises `ToolProblem`.

    `checked` says whether inputs are held against the schema here; else whoever made the tool does that.
    """

    def __init__(
        self, name: str, description: str, schema: dict, call: Callable[[dict], str], checked: bool = True
    ) -> None:
        self.name, self.description, self.schema, self.call = name, description, schema, call
        self.checked = checked
