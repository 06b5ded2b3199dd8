"""A module as it was before others had it in hand: modes, tensors, parts, put back by reference.

Nothing is copied, so what is written into a weight in place cannot be undone; it is noticed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_TABLES = ("_modules", "_parameters", "_buffers")
_MISSING = object()


class Custody:
    """What a module was when it was lent.

    Args:
        module: in whose forward no other thread is.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts = list(module.modules())
        self._tables = [
            (table, dict(table)) for part in self._parts for table in _tables(part) if table
        ]
        self._marks = [(part, _marks(part)) for part in self._parts]
        self._weights = [
            (weight, weight.data, weight.requires_grad, weight.grad)
            for weight in module.parameters()
        ]
        self._versions = self._read_versions()

    def put_back(self) -> list[str]:
        """Undo what has changed since; returns words for it, once each."""
        found: dict[str, None] = {}
        for table, before in self._tables:
            if table.keys() != before.keys() or any(
                table[name] is not value for name, value in before.items()
            ):
                table.clear()
                table.update(before)
                found["parts or tensors of the model"] = None
        for part, before in self._marks:
            for name, value in _marks(part).items():
                if value is before[name]:
                    continue
                found["the model's train mode" if name == "training" else f"its {name}"] = None
                if before[name] is _MISSING:
                    delattr(part, name)
                else:
                    setattr(part, name, before[name])
        for weight, data, requires_grad, grad in self._weights:
            if not _same(weight.data, data):
                weight.data = data
                found["the model's dtype or device"] = None
            if weight.requires_grad is not requires_grad:
                weight.requires_grad_(requires_grad)
                found["requires_grad"] = None
            if weight.grad is not grad:
                weight.grad = grad
                found["gradients of weights"] = None
        return list(found)

    def written(self) -> list[str]:
        """Names of tensors that were written to in place: perhaps to the values they had."""
        now = self._read_versions()
        return [name for name, version in self._versions.items() if now.get(name) != version]

    def _read_versions(self) -> dict[str, int]:
        return {
            name: tensor._version
            for named in (self._module.named_parameters(), self._module.named_buffers())
            for name, tensor in named
            if not tensor.is_inference()
        }


def _tables(part: nn.Module) -> list[dict[str, Any]]:
    return [vars(part)[name] for name in _TABLES]


def _marks(part: nn.Module) -> dict[str, object]:
    known = vars(part)
    return {name: known.get(name, _MISSING) for name in ("training", "fused_attn", "forward")}


def _same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
    )
