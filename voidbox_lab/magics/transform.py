"""What becomes of cells with our magics: ``await`` in front of those that wait, after IPython's own
transformations; and help on subcommands, before them.

A synchronous magic would block the kernel: no widget message would come through before the cell ends.
IPython does not await what a magic returns, so the code that calls it must.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator

_CALLS = {"run_line_magic", "run_cell_magic"}
_ASKED = re.compile(r"\s*%%?voidbox\s+([a-z]+)\s*\?{1,2}\s*")


def help_on_subcommands(lines: list[str]) -> list[str]:
    """``%voidbox run?`` as ``%voidbox run --help``: IPython would tell about its own ``%run``. For
    ``shell.input_transformers_cleanup``."""
    asked = [_ASKED.fullmatch(line) for line in lines]
    return [f"%voidbox {m[1]} --help\n" if m else line for m, line in zip(asked, lines, strict=True)]


class AwaitMagic:
    """An input transformer for ``shell.input_transformers_post``: lines in, lines out.

    Only whole statements are touched, ``%magic …`` and ``x = %magic …``, and only for the subcommands in
    `waiting`. Inside a plain ``def``, where ``await`` would be a syntax error, the call is left alone: the
    function then returns the magic's `Pending`.
    """

    def __init__(self, magic: str, waiting: Container[str]) -> None:
        self.magic, self.waiting = magic, waiting

    def __call__(self, lines: list[str]) -> list[str]:
        source = "".join(lines)
        if self.magic not in source or not any(call in source for call in _CALLS):
            return lines
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return lines  # IPython reports it in its own words
        # ast counts lines at \n, \r\n and \r only; a form feed, say, does not end one.
        rows = source.encode().splitlines(keepends=True)
        for line, column in sorted(self._places(tree), reverse=True):
            row = rows[line - 1]
            rows[line - 1] = row[:column] + b"await " + row[column:]
        return b"".join(rows).decode().splitlines(keepends=True)

    def _places(self, tree: ast.Module) -> Iterator[tuple[int, int]]:
        """Line (from 1) and byte column of every call to be awaited."""
        for statement in _reachable(tree):
            if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign) and self._matches(statement.value):
                assert statement.value is not None
                yield statement.value.lineno, statement.value.col_offset

    def _matches(self, node: ast.expr | None) -> bool:
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=attr),
                args=[ast.Constant(value=name), ast.Constant(value=str(line)), *_],
            ) if attr in _CALLS and name == self.magic:
                return bool(line.split()) and line.split()[0] in self.waiting
        return False


def _reachable(node: ast.AST) -> Iterator[ast.AST]:
    """Every node under `node` at which ``await`` may stand: not inside a synchronous function, lambda or class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        yield child
        yield from _reachable(child)
