"""Hooks that others put on a module: which there are, and taking new ones away.

They may be on its parts, on its parameters, or on all modules of the process.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules import module as torch_modules

HookKeys = Mapping[object, Mapping[str, frozenset[int]]]
"""Keys of hooks by whose they are and kind; whoever has none, and kinds without any, are left out.
"""

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_KINDS_OF_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_MARKS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
"""What is noted of some hooks of modules beside the hooks themselves."""


def hooks_of(module: nn.Module) -> HookKeys:
    """List the hooks that are on a module, its parts and parameters, and on all modules."""
    found: dict[object, dict[str, frozenset[int]]] = {}
    for kind in KINDS:
        if hooks := vars(torch_modules)[f"_global{kind}"]:
            found.setdefault(torch_modules, {})[f"_global{kind}"] = frozenset(hooks)
    for part in module.modules():
        known = vars(part)
        for kind in KINDS:
            if hooks := known.get(kind):
                found.setdefault(part, {})[kind] = frozenset(hooks)
        for parameter in known["_parameters"].values():
            if parameter is not None:
                for kind in _KINDS_OF_PARAMETERS:
                    if hooks := getattr(parameter, kind):
                        found.setdefault(parameter, {})[kind] = frozenset(hooks)
    return found


def remove_new(module: nn.Module, before: HookKeys) -> list[str]:
    """Remove the hooks that were not there before; returns the name of their owner for each."""
    now = hooks_of(module)
    if now == before:
        return []
    names: dict[object, str] = {torch_modules: "all modules"}
    names |= {parameter: name for name, parameter in module.named_parameters()}
    names |= {part: name or "the model" for name, part in module.named_modules()}
    removed = []
    for owner, kinds in now.items():
        for kind, keys in kinds.items():
            for key in keys - before.get(owner, {}).get(kind, frozenset()):
                getattr(owner, kind).pop(key)
                _forget(owner, key)
                removed.append(names[owner])
    return removed


def _forget(owner: object, key: int) -> None:
    """Take away what a module, or all of them, noted of a hook beside the hook."""
    known, prefix = vars(owner), "_global" if owner is torch_modules else ""
    for mark in _MARKS:
        known.get(prefix + mark, {}).pop(key, None)
