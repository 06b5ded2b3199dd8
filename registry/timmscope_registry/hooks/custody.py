"""A module as it was before others had it in hand: modes, tensors, parts, put back by reference.

Nothing is copied, so what is written into a weight in place cannot be undone; it is noticed.
"""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor, nn

_MARKS = ("training", "fused_attn", "forward")
_MISSING = object()


class Custody:
    """What a module was when it was lent.

    Args:
        module: in whose forward no other thread is.
    """

    def __init__(self, module: nn.Module) -> None:
        self._empty: list[dict[str, Any]] = []
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._marks: list[tuple[nn.Module, tuple[object, ...]]] = []
        self._weights: list[tuple[Tensor, Tensor, bool, Tensor | None]] = []
        self._written: list[tuple[str, str, Tensor, int]] = []
        for path, part in module.named_modules():
            known = vars(part)
            self._marks.append((part, _marks(known)))
            for kind in ("_modules", "_parameters", "_buffers"):
                table = known[kind]
                if not table:
                    self._empty.append(table)
                    continue
                self._tables.append((table, dict(table)))
                if kind == "_modules":
                    continue
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    if not tensor.is_inference():
                        self._written.append((path, name, tensor, tensor._version))
                    if kind == "_parameters":
                        grad = tensor.grad
                        self._weights.append((tensor, tensor.data, tensor.requires_grad, grad))

    def put_back(self) -> list[str]:
        """Undo what has changed since; returns words for it, once each."""
        found: dict[str, None] = {}
        if any(self._empty):
            for table in self._empty:
                table.clear()
            found["parts or tensors of the model"] = None
        for table, before in self._tables:
            if table.keys() != before.keys() or not all(map(is_, table.values(), before.values())):
                table.clear()
                table.update(before)
                found["parts or tensors of the model"] = None
        for part, marks in self._marks:
            now = _marks(vars(part))
            if all(map(is_, now, marks)):
                continue
            for name, mark, new in zip(_MARKS, marks, now, strict=True):
                if new is mark:
                    continue
                found[f"the model's {'train mode' if name == 'training' else name}"] = None
                if mark is _MISSING:
                    delattr(part, name)
                else:
                    setattr(part, name, mark)
        for weight, data, requires_grad, grad in self._weights:
            if not _same(weight, data):
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
        return [
            f"{path}.{name}" if path else name
            for path, name, tensor, version in self._written
            if tensor._version != version
        ]


def _marks(known: dict[str, Any]) -> tuple[object, ...]:
    get = known.get
    return get("training"), get("fused_attn", _MISSING), get("forward", _MISSING)


def _same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
    )
