"""A module as it was before others had it in hand, put back by reference.

Nothing is copied but the numbers of buffers, so what is written in place cannot be undone; it is
noticed. torch counts writes, but not those of batch norms into their running statistics. All that
is asked of a module before and after is asked in a few lists, since this happens at every call of a
technique: a loop over parts that does more for each takes longer than some models' layers.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from timmscope_registry.hooks.foreign_hooks import KINDS, HookKeys, hooks_of, remove_new
from timmscope_registry.hooks.forward_pass import Scope

_MARKS = ("training", "fused_attn", "forward")
_TABLES = ("_modules", "_parameters", "_buffers")
_MISSING = object()
_REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Inventory:
    """What a module consists of: its parts and tensors. It stays true until they are others.

    Args:
        module: to list.

    Attributes:
        module: it.
        parts: the module and all below it.
        known: what each of them holds by name.
        weights: parameters.
        tensors: parameters and buffers by name.
        buffers: those of real numbers by name, all on one device.
    """

    def __init__(self, module: nn.Module) -> None:
        named = list(module.named_modules())
        self.module = module
        self.parts = [part for _, part in named]
        self.known = [vars(part) for part in self.parts]
        self._tables: list[dict[str, Any]] = [
            known[kind] for known in self.known for kind in _TABLES
        ]
        self._contents = [dict(table) for table in self._tables]
        self._keys = [*chain.from_iterable(self._contents)]
        self._lengths = [*map(len, self._contents)]
        self._values = [*chain.from_iterable(map(dict.values, self._contents))]
        self.weights: list[nn.Parameter] = [
            weight
            for known in self.known
            for weight in known["_parameters"].values()
            if weight is not None
        ]
        self.tensors: list[tuple[str, Tensor]] = [
            (f"{path}.{name}" if path else name, tensor)
            for (path, _), known in zip(named, self.known, strict=True)
            for kind in ("_parameters", "_buffers")
            for name, tensor in known[kind].items()
            if tensor is not None and not tensor.is_inference()
        ]
        buffers = {id(tensor) for known in self.known for tensor in known["_buffers"].values()}
        real = [
            (name, tensor)
            for name, tensor in self.tensors
            if id(tensor) in buffers and tensor.dtype in _REAL
        ]
        self.buffers = [each for each in real if each[1].device == real[0][1].device]

    def has_parts(self) -> bool:
        """Whether the module has these parts and tensors still, and no other."""
        tables = self._tables
        return (
            [*map(len, tables)] == self._lengths
            and [*chain.from_iterable(tables)] == self._keys
            and all(map(is_, chain.from_iterable(map(dict.values, tables)), self._values))
        )

    def restore_parts(self) -> None:
        """Give the module its parts and tensors again."""
        for table, content in zip(self._tables, self._contents, strict=True):
            table.clear()
            table.update(content)


class ModuleSnapshot:
    """What a module was when it was lent.

    Args:
        inventory: of the module, in whose forward no other thread is.
        contexts: of this thread that were open on it.
    """

    def __init__(self, inventory: Inventory, contexts: tuple[Scope, ...]) -> None:
        self._inventory = inventory
        self.contexts = contexts
        self._marks = _marks(inventory.known)
        self._data = [weight.data for weight in inventory.weights]
        self._stores = _stores(inventory.weights)
        self._requires_grad = [weight.requires_grad for weight in inventory.weights]
        self._grads = [weight.grad for weight in inventory.weights]
        self._versions = [tensor._version for _, tensor in inventory.tensors]
        self._numbers = _numbers(inventory)
        self._hooks: HookKeys = hooks_of(inventory.module) if _hooked(inventory) else {}

    def restore(self) -> tuple[list[str], list[str]]:
        """Undo what has changed since.

        Returns:
            Whose hooks were removed, a name for each hook; words for what else was put back.
        """
        inventory, found = self._inventory, []
        if not inventory.has_parts():
            inventory.restore_parts()
            found.append("parts or tensors of the model")
        hooked = self._hooks or _hooked(inventory)
        removed = remove_new(inventory.module, self._hooks) if hooked else []
        for name, marks, now in zip(_MARKS, self._marks, _marks(inventory.known), strict=True):
            if not all(map(is_, marks, now)):
                _restore(inventory.parts, name, marks)
                found.append(f"the model's {'train mode' if name == 'training' else name}")
        weights = inventory.weights
        if _stores(weights) != self._stores:
            for weight, data in zip(weights, self._data, strict=True):
                weight.data = data
            found.append("the model's dtype or device")
        if [weight.requires_grad for weight in weights] != self._requires_grad:
            for weight, requires_grad in zip(weights, self._requires_grad, strict=True):
                weight.requires_grad_(requires_grad)
            found.append("requires_grad")
        if not all(map(is_, [weight.grad for weight in weights], self._grads)):
            for weight, grad in zip(weights, self._grads, strict=True):
                weight.grad = grad
            found.append("gradients of weights")
        return removed, found

    def written(self) -> list[str]:
        """Names of tensors that were written to in place: perhaps to the values they had."""
        inventory = self._inventory
        found = [
            name
            for (name, tensor), version in zip(inventory.tensors, self._versions, strict=True)
            if tensor._version != version
        ]
        before, now = self._numbers, _numbers(inventory)
        if before.shape != now.shape:
            found.append("buffers of another size")
        elif not torch.equal(before, now):
            sizes = [tensor.numel() for _, tensor in inventory.buffers]
            each = zip(inventory.buffers, before.split(sizes), now.split(sizes), strict=True)
            found += [name for (name, _), old, new in each if not torch.equal(old, new)]
        return found


@torch.no_grad()
def _numbers(inventory: Inventory) -> Tensor:
    """What buffers hold, in one row: to compare one after another would take twice as long."""
    buffers = [tensor.flatten() for _, tensor in inventory.buffers]
    return torch.cat(buffers) if buffers else torch.empty(0)


def _marks(known: list[dict[str, Any]]) -> list[list[object]]:
    return [[each.get(name, _MISSING) for each in known] for name in _MARKS]


def _restore(parts: list[nn.Module], name: str, marks: list[object]) -> None:
    for part, mark in zip(parts, marks, strict=True):
        if mark is not _MISSING:
            setattr(part, name, mark)
        elif name in vars(part):
            delattr(part, name)


def _stores(weights: list[nn.Parameter]) -> list[object]:
    """Where the numbers of weights lie, and as what."""
    return [
        [weight.data_ptr() for weight in weights],
        [weight.dtype for weight in weights],
        [weight.device for weight in weights],
        [weight.shape for weight in weights],
    ]


def _hooked(inventory: Inventory) -> bool:
    """Whether there may be any hook on the module, its parts or weights, or on all modules."""
    return (
        any(vars(torch_modules)[f"_global{kind}"] for kind in KINDS)
        or any(any(known.get(kind) for known in inventory.known) for kind in KINDS)
        or any(weight._backward_hooks for weight in inventory.weights)
        or any(weight._post_accumulate_grad_hooks for weight in inventory.weights)
    )
