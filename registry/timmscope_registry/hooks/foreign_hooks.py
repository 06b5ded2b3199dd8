"""Lists the hooks that other code registered on a module, and removes those that are new.

The hooks may be on the module's parts, on its parameters, or global for all modules.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules import module as torch_modules

from timmscope_registry.hooks.forward_count import ForwardCount

HookKeys = Mapping[object, Mapping[str, frozenset[int]]]
"""Keys of hooks by owner (module, parameter or, for global hooks, `torch_modules`) and by kind.

Owners and kinds without hooks are left out.
"""

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_KINDS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OPTIONS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
"""Dictionaries in which torch keeps options of module hooks, under the hook's key."""


def hooks_of(module: nn.Module) -> HookKeys:
    """List the hooks on a module, its parts and parameters, and on all modules."""
    hooks_by_owner: dict[object, dict[str, frozenset[int]]] = {}
    for kind in KINDS:
        if hooks := vars(torch_modules)[f"_global{kind}"]:
            hooks_by_owner.setdefault(torch_modules, {})[f"_global{kind}"] = frozenset(hooks)
    for part in module.modules():
        attributes = vars(part)
        for kind in KINDS:
            if hooks := attributes.get(kind):
                keys = {key for key, hook in hooks.items() if not isinstance(hook, ForwardCount)}
                if keys:
                    hooks_by_owner.setdefault(part, {})[kind] = frozenset(keys)
        for parameter in attributes["_parameters"].values():
            if parameter is not None:
                for kind in _PARAMETER_KINDS:
                    if hooks := getattr(parameter, kind):
                        hooks_by_owner.setdefault(parameter, {})[kind] = frozenset(hooks)
    return hooks_by_owner


def remove_new(module: nn.Module, before: HookKeys) -> list[str]:
    """Remove the hooks that `before` lacks; returns the name of the owner of each."""
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
                _remove_options(owner, key)
                removed.append(names[owner])
    return removed


def _remove_options(owner: object, key: int) -> None:
    """Remove the options that torch keeps for a hook."""
    prefix = "_global" if owner is torch_modules else ""
    for options in _OPTIONS:
        vars(owner).get(prefix + options, {}).pop(key, None)
