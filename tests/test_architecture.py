"""The walls of docs/architecture.md, checked: imports between rooms point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "voidbox_lab"
COMMON = {"errors", "settings", "resources", "cards"}
"""What every room may use."""

MAY_USE: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "resources": set(),
    "tarstream": set(),
    "cards": set(),
    "spec": {"errors"},
    "wire": set(),
    "vsock": {"wire"},
    "images": {"spec", "tarstream"},
    "machines": {"images", "vsock", "spec"},
    "box": {"machines", "images", "vsock", "wire", "spec"},
    "agents": {"box", "spec"},
    "store": {"spec"},
    "gateway": {"spec", "store"},
    "engine": {"spec", "wire", "vsock", "images", "machines", "box", "agents", "gateway", "store"},
    "observe": {"spec", "store"},
    "cluster": {"engine", "store", "spec", "gateway", "box", "agents"},
    "daemon": {
        "cluster",
        "engine",
        "observe",
        "store",
        "spec",
        "box",
        "machines",
        "images",
        "gateway",
        "agents",
        "vsock",
        "wire",
    },
    "skills": {"spec", "tarstream"},
    "client": {"spec"},
    "api": {"client", "spec", "observe", "skills"},
    "widgets": {"client", "observe", "spec", "api"},
    "magics": {"client", "widgets", "spec", "api", "skills"},
    "jupyter": {"client"},
    "bench": {
        *("spec", "wire", "vsock", "images", "machines", "box", "agents", "engine", "store"),
        *("daemon", "client", "observe", "api", "widgets"),
    },
    "cli": {
        *("client", "spec", "api", "images", "widgets", "observe", "daemon", "machines", "box", "bench"),
        "skills",
    },
}
"""Room to the rooms it may import, besides `COMMON`. The table in docs/architecture.md is this one in words."""


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> set[str]:
    """The rooms of voidbox_lab that the module at `path` imports, lazily or not, for types or not."""
    package = ("voidbox_lab", *path.relative_to(PACKAGE).parent.parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{a.name}" for a in node.names] if module == "voidbox_lab" else [module]
        else:
            continue
        rooms |= {n.split(".")[1] for n in names if n.startswith("voidbox_lab.")}
    return rooms


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A module imports only from its own room and from rooms below it."""
    room = _room(path)
    assert room in MAY_USE, f"{room} is not in the table of rooms"
    up = _imported_rooms(path) - {room, "__version__"} - (COMMON if room not in COMMON else set()) - MAY_USE[room]
    assert not up, f"{path.relative_to(PACKAGE)} imports upward: {sorted(up)}"


def test_the_table_has_no_cycle() -> None:
    """The rooms can be put in one order."""
    left = {room: set(uses) for room, uses in MAY_USE.items()}
    while left:
        ground = [room for room, uses in left.items() if not uses & left.keys()]
        assert ground, f"a cycle among {sorted(left)}"
        for room in ground:
            del left[room]


GUEST = sorted((PACKAGE.parent / "guest").rglob("*.py"))


@pytest.mark.parametrize("path", [*MODULES, *GUEST], ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_modules_are_of_one_sitting(path: Path) -> None:
    """No module outgrows what a reader takes in at once."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
