"""``%load_ext voidbox_lab``: cell magics that declare skills and stages, line magics that run them.

Loading twice is loading once. What cells have declared survives ``%reload_ext``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from voidbox_lab.magics.commands import WAITING, VoidboxMagics
from voidbox_lab.magics.complete import matcher
from voidbox_lab.magics.registry import Registry
from voidbox_lab.magics.transform import AwaitMagic, help_on_subcommands

_MAGIC = "voidbox"


@dataclass(frozen=True)
class _Loaded:
    transform: AwaitMagic
    matcher: Any


_loaded: WeakKeyDictionary[Any, _Loaded] = WeakKeyDictionary()
_registries: WeakKeyDictionary[Any, Registry] = WeakKeyDictionary()


def registry(ipython: Any) -> Registry:
    """What the cells of this shell have declared."""
    return _registries.setdefault(ipython, Registry())


def load(ipython: Any) -> None:
    """Register the magics, the await hook and the completions in a shell."""
    if ipython in _loaded:
        return
    magics = VoidboxMagics(ipython, registry(ipython))
    ipython.register_magics(magics)
    hooks = _Loaded(AwaitMagic(_MAGIC, WAITING), matcher(magics.registry, lambda: magics.started))
    ipython.input_transformers_post.append(hooks.transform)
    ipython.input_transformers_cleanup.append(help_on_subcommands)
    if ipython.Completer is not None:
        ipython.Completer.custom_matchers.append(hooks.matcher)
    _loaded[ipython] = hooks


def unload(ipython: Any) -> None:
    """Undo `load`; harmless if it was not loaded."""
    hooks = _loaded.pop(ipython, None)
    if hooks is None:
        return
    ipython.input_transformers_post.remove(hooks.transform)
    ipython.input_transformers_cleanup.remove(help_on_subcommands)
    if ipython.Completer is not None and hooks.matcher in ipython.Completer.custom_matchers:
        ipython.Completer.custom_matchers.remove(hooks.matcher)
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop(_MAGIC, None)
    ipython.magics_manager.registry.pop(VoidboxMagics.__name__, None)
