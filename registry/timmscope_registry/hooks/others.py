"""Hooks that others put on a module's parts: which there are, and taking new ones away."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

HookKeys = Mapping[nn.Module, Mapping[str, frozenset[int]]]
"""Keys of hooks by module and kind; modules and kinds without any are left out."""

_MARKS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
"""What modules note of some hooks beside the hooks themselves."""

_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(module: nn.Module) -> HookKeys:
    """List the hooks that are on a module and its parts."""
    found: dict[nn.Module, dict[str, frozenset[int]]] = {}
    for part in module.modules():
        known = vars(part)
        for kind in _KINDS:
            if hooks := known.get(kind):
                found.setdefault(part, {})[kind] = frozenset(hooks)
    return found


def remove_new(module: nn.Module, before: HookKeys) -> list[str]:
    """Remove the hooks that were not there before; returns the name of a module for each."""
    now = hooks_of(module)
    if now == before:
        return []
    names = {part: name for name, part in module.named_modules()}
    removed = []
    for part, kinds in now.items():
        for kind, keys in kinds.items():
            for key in keys - before.get(part, {}).get(kind, frozenset()):
                vars(part)[kind].pop(key)
                for mark in _MARKS:
                    vars(part)[mark].pop(key, None)
                removed.append(names[part] or "the model")
    return removed
