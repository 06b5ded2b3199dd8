"""A module as it was before others had it in hand: modes, tensors, parts, put back by reference.

Nothing is copied, so what is written into a weight in place cannot be undone; it is noticed.
"""

from __future__ import annotations

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
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._marks: list[tuple[nn.Module, list[object]]] = []
        self._weights: list[tuple[Tensor, Tensor, bool, Tensor | None]] = []
        self._written: list[tuple[str, str, Tensor, int]] = []
        for path, part in module.named_modules():
            known = vars(part)
            self._marks.append((part, [known.get(name, _MISSING) for name in _MARKS]))
            for kind in ("_modules", "_parameters", "_buffers"):
                table = known[kind]
                self._tables.append((table, dict(table)))
                if kind != "_modules":
                    self._written += [
                        (path, name, tensor, tensor._version)
                        for name, tensor in table.items()
                        if tensor is not None and not tensor.is_inference()
                    ]
            self._weights += [
                (weight, weight.data, weight.requires_grad, weight.grad)
                for weight in known["_parameters"].values()
                if weight is not None
            ]

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
        for part, marks in self._marks:
            known = vars(part)
            for name, mark in zip(_MARKS, marks, strict=True):
                if known.get(name, _MISSING) is not mark:
                    found["the model's train mode" if name == "training" else f"its {name}"] = None
                    if mark is _MISSING:
                        delattr(part, name)
                    else:
                        setattr(part, name, mark)
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
        return [
            f"{path}.{name}" if path else name
            for path, name, tensor, version in self._written
            if tensor._version != version
        ]


def _same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
    )
