"""A snapshot of a module, from which it is restored after other code has used it.

Tensors are restored by reference: only the values of buffers are copied. A write in place can
therefore not be undone, but it is detected. torch counts such writes, except those of batch norms
to their running statistics, hence the copies.

A snapshot is taken at every call of a technique, so all checks work on a few flat lists: a loop
with more work per module would take longer than some models' layers.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from timmscope_registry.hooks.foreign_hooks import KINDS, HookKeys, hooks_of, remove_new
from timmscope_registry.hooks.forward_pass import Context

_WATCHED = ("training", "fused_attn", "forward")
"""Attributes of modules that are compared and restored."""
_TABLES = ("_modules", "_parameters", "_buffers")
_MISSING = object()
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Inventory:
    """The parts and tensors of a module; valid until one of them is replaced.

    Args:
        module: the module to list.

    Attributes:
        module: the module.
        parts: the module and all modules below it.
        attributes: the attributes of each part, by name.
        weights: all parameters.
        tensors: all parameters and buffers, with their names.
        buffers: the buffers of floating-point numbers with their names, all on one device.
    """

    def __init__(self, module: nn.Module) -> None:
        named = list(module.named_modules())
        self.module = module
        self.parts = [part for _, part in named]
        self.attributes = [vars(part) for part in self.parts]
        self._tables: list[dict[str, Any]] = [
            attributes[kind] for attributes in self.attributes for kind in _TABLES
        ]
        self._contents = [dict(table) for table in self._tables]
        self._keys = [*chain.from_iterable(self._contents)]
        self._lengths = [*map(len, self._contents)]
        self._values = [*chain.from_iterable(map(dict.values, self._contents))]
        self.weights: list[nn.Parameter] = [
            weight
            for attributes in self.attributes
            for weight in attributes["_parameters"].values()
            if weight is not None
        ]
        self.tensors: list[tuple[str, Tensor]] = [
            (f"{path}.{name}" if path else name, tensor)
            for (path, _), attributes in zip(named, self.attributes, strict=True)
            for kind in ("_parameters", "_buffers")
            for name, tensor in attributes[kind].items()
            if tensor is not None and not tensor.is_inference()
        ]
        buffers = {
            id(tensor)
            for attributes in self.attributes
            for tensor in attributes["_buffers"].values()
        }
        floats = [
            (name, tensor)
            for name, tensor in self.tensors
            if id(tensor) in buffers and tensor.dtype in _FLOATS
        ]
        self.buffers = [item for item in floats if item[1].device == floats[0][1].device]

    def has_parts(self) -> bool:
        """Whether the module still has exactly these parts and tensors."""
        tables = self._tables
        return (
            [*map(len, tables)] == self._lengths
            and [*chain.from_iterable(tables)] == self._keys
            and all(map(is_, chain.from_iterable(map(dict.values, tables)), self._values))
        )

    def restore_parts(self) -> None:
        """Give the module these parts and tensors again."""
        for table, content in zip(self._tables, self._contents, strict=True):
            table.clear()
            table.update(content)


class ModuleSnapshot:
    """The state of a module before it is passed to other code.

    Args:
        inventory: inventory of the module; no other thread may be in the module's forward.
        contexts: the contexts that are open on the module in this thread.
    """

    def __init__(self, inventory: Inventory, contexts: tuple[Context, ...]) -> None:
        self._inventory = inventory
        self.contexts = contexts
        self._watched = _watched(inventory.attributes)
        self._data = [weight.data for weight in inventory.weights]
        self._storages = _storages(inventory.weights)
        self._requires_grad = [weight.requires_grad for weight in inventory.weights]
        self._grads = [weight.grad for weight in inventory.weights]
        self._versions = [tensor._version for _, tensor in inventory.tensors]
        self._buffer_values = _buffer_values(inventory)
        self._hooks: HookKeys = hooks_of(inventory.module) if _may_have_hooks(inventory) else {}

    def restore(self) -> tuple[list[str], list[str]]:
        """Undo the changes made since.

        Returns:
            For each removed hook the name of its owner; a phrase for each other thing restored.
        """
        inventory, restored = self._inventory, []
        if not inventory.has_parts():
            inventory.restore_parts()
            restored.append("parts or tensors of the model")
        hooked = self._hooks or _may_have_hooks(inventory)
        removed = remove_new(inventory.module, self._hooks) if hooked else []
        now = _watched(inventory.attributes)
        for name, before, after in zip(_WATCHED, self._watched, now, strict=True):
            if not all(map(is_, before, after)):
                _set_attribute(inventory.parts, name, before)
                restored.append(f"the model's {'train mode' if name == 'training' else name}")
        weights = inventory.weights
        if _storages(weights) != self._storages:
            for weight, data in zip(weights, self._data, strict=True):
                weight.data = data
            restored.append("the model's dtype or device")
        if [weight.requires_grad for weight in weights] != self._requires_grad:
            for weight, requires_grad in zip(weights, self._requires_grad, strict=True):
                weight.requires_grad_(requires_grad)
            restored.append("requires_grad")
        if not all(map(is_, [weight.grad for weight in weights], self._grads)):
            for weight, grad in zip(weights, self._grads, strict=True):
                weight.grad = grad
            restored.append("gradients of weights")
        return removed, restored

    def written(self) -> list[str]:
        """Return the names of tensors written to in place, even if the values did not change."""
        inventory = self._inventory
        names = [
            name
            for (name, tensor), version in zip(inventory.tensors, self._versions, strict=True)
            if tensor._version != version
        ]
        before, now = self._buffer_values, _buffer_values(inventory)
        if before.shape != now.shape:
            names.append("buffers of another size")
        elif not torch.equal(before, now):
            sizes = [tensor.numel() for _, tensor in inventory.buffers]
            pairs = zip(inventory.buffers, before.split(sizes), now.split(sizes), strict=True)
            names += [name for (name, _), old, new in pairs if not torch.equal(old, new)]
        return names


@torch.no_grad()
def _buffer_values(inventory: Inventory) -> Tensor:
    """All buffers in one vector; comparing them one by one would take twice as long."""
    buffers = [tensor.flatten() for _, tensor in inventory.buffers]
    return torch.cat(buffers) if buffers else torch.empty(0)


def _watched(attributes: list[dict[str, Any]]) -> list[list[object]]:
    return [[each.get(name, _MISSING) for each in attributes] for name in _WATCHED]


def _set_attribute(parts: list[nn.Module], name: str, values: list[object]) -> None:
    for part, value in zip(parts, values, strict=True):
        if value is not _MISSING:
            setattr(part, name, value)
        elif name in vars(part):
            delattr(part, name)


def _storages(weights: list[nn.Parameter]) -> list[object]:
    """Address, dtype, device and shape of each weight."""
    return [
        [weight.data_ptr() for weight in weights],
        [weight.dtype for weight in weights],
        [weight.device for weight in weights],
        [weight.shape for weight in weights],
    ]


def _may_have_hooks(inventory: Inventory) -> bool:
    """Whether any hook may be on the module, its parts or weights, or on all modules."""
    return (
        any(vars(torch_modules)[f"_global{kind}"] for kind in KINDS)
        or any(any(each.get(kind) for each in inventory.attributes) for kind in KINDS)
        or any(weight._backward_hooks for weight in inventory.weights)
        or any(weight._post_accumulate_grad_hooks for weight in inventory.weights)
    )
