"""A snapshot of a module, from which it is restored after other code has used it.

Tensors are restored by reference, so a write in place cannot be undone, but it is detected. torch
counts such writes, except those through `.data`, through NumPy, and of batch norms to their running
statistics. A digest of all values finds these too: the bytes of small tensors, and sums of the
bits of large ones, which read the weights once.

A snapshot is taken at every call of a technique, so all checks work on a few flat lists: a loop
with more work per module would take longer than some models' layers.
"""

from __future__ import annotations

from collections.abc import Mapping
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
_ROW = 1021
"""Length of a sum in 64-bit words. It is prime, so that sums do not end where the rows and channels
of a weight do, and channels that change places change a sum."""
_SMALL = 16 * _ROW
"""Bytes up to which a tensor is copied instead."""


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
        values: those of them whose values are compared, with their names.
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
        self.values: list[tuple[str, Tensor]] = [
            (f"{path}.{name}" if path else name, tensor)
            for (path, _), attributes in zip(named, self.attributes, strict=True)
            for kind in ("_parameters", "_buffers")
            for name, tensor in attributes[kind].items()
            if tensor is not None and _has_bytes(tensor)
        ]

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
        self._digests = _digests(inventory)
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
        """Return the names of tensors written to in place or with other values than before."""
        inventory = self._inventory
        names = [
            name
            for (name, tensor), version in zip(inventory.tensors, self._versions, strict=True)
            if tensor._version != version
        ]
        return list(dict.fromkeys([*names, *_differing(self._digests, _digests(inventory))]))


_Digest = tuple[list[tuple[str, int]], Tensor]
"""Names and sizes in bytes of the pieces of a digest, and the pieces in one vector."""


def _has_bytes(tensor: Tensor) -> bool:
    """Whether the values of a tensor are in its memory; quantised ones count as their integers."""
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_complex()
        and tensor.numel() > 0
    )


@torch.no_grad()
def _digests(inventory: Inventory) -> dict[torch.device, _Digest]:
    """A digest of all values on each device, in one vector: comparing pieces would take longer."""
    pieces: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in inventory.values:
        found = pieces.setdefault(tensor.device, [])
        found += [(name, piece) for piece in _pieces(tensor)]
    return {
        device: (
            [(name, len(piece)) for name, piece in found],
            torch.cat([piece for _, piece in found]),
        )
        for device, found in pieces.items()
    }


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Bytes of a small tensor, or of sums over the bits of a large one and of what is left over."""
    if tensor.ndim == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)  # contiguous if the weight is in channels last
    flat = tensor.reshape(-1)
    size = flat.element_size()
    if len(flat) * size <= _SMALL:
        return [flat.view(torch.uint8)]
    if flat.storage_offset() * size % 8:
        flat = flat.clone()
    whole = len(flat) * size // (8 * _ROW) * (8 * _ROW) // size
    sums = flat[:whole].view(torch.int64).view(-1, _ROW).sum(1)
    return [sums.view(torch.uint8), flat[whole:].view(torch.uint8)]


def _differing(
    before: Mapping[torch.device, _Digest], now: Mapping[torch.device, _Digest]
) -> list[str]:
    """Names of the tensors whose digests differ."""
    names: list[str] = []
    nothing: _Digest = ([], torch.empty(0))
    for device in {**before, **now}:
        pieces, old = before.get(device, nothing)
        others, new = now.get(device, nothing)
        if pieces != others:
            names += [name for name, _ in {*pieces} ^ {*others}]
        elif not torch.equal(old, new):
            sizes = [size for _, size in pieces]
            pairs = zip(pieces, old.split(sizes), new.split(sizes), strict=True)
            names += [name for (name, _), one, two in pairs if not torch.equal(one, two)]
    return names


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
