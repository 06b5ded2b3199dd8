"""Rules for operations that combine many elements: sums, norms, matrix products, attention."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import NO_PIXEL, PLANES
from timmscope.receptive_fields.elementwise_ops import HIDDEN
from timmscope.receptive_fields.op import Op, combine, union


def reduction(op: Op) -> list[Tensor | None] | None:
    """Sums, means, variances, norms and extremes along dimensions."""
    boxes = op.boxes("self")
    if boxes is None:
        return None
    dims = op.dims()
    total = combine(op, [(boxes, dims)])
    assert total is not None
    return [_without_dims(total, output, dims) for output in op.outputs]


def _without_dims(total: Tensor, output: Tensor, dims: list[int]) -> Tensor:
    """Drop the reduced dimensions of size 1 if the output does not keep them."""
    if total.ndim == output.ndim + 1:
        return total
    kept = [d + 1 for d in range(total.ndim - 1) if d not in dims]
    return total.reshape(PLANES, *[total.shape[d] for d in kept])


def scan(op: Op) -> Tensor | None:
    """Operations that keep the size and combine along a dimension: cumulative sums, sorting."""
    boxes = op.boxes("self")
    return None if boxes is None else union(boxes, combine(op, [(boxes, op.dims())]))


def softmax(op: Op) -> Tensor | None:
    """Softmax combines the scores along a dimension that no mask hides; hidden ones become 0."""
    boxes, scores = op.boxes("self"), op.arguments["self"]
    if boxes is None:
        return None
    hidden = scores == float("-inf")
    masked = op.dependencies.mask_of(scores)
    if masked is not None:
        hidden = hidden | masked
    if not bool(hidden.any()):
        return scan(op)
    boxes = torch.where(hidden, NO_PIXEL, boxes)
    result = union(boxes, combine(op, [(boxes, op.dims())]))
    assert result is not None
    return torch.where(hidden, NO_PIXEL, result)


def layer_norm(op: Op) -> list[Tensor | None]:
    """Layer norm and RMS norm combine the last dimensions."""
    boxes = op.boxes("input")
    if boxes is None:
        return [op.boxes("weight")] + [None] * (len(op.outputs) - 1)
    count = len(op.arguments["normalized_shape"])
    dims = list(range(boxes.ndim - 1 - count, boxes.ndim - 1))
    statistics = combine(op, [(boxes, dims)])
    return [union(boxes, statistics)] + [statistics] * (len(op.outputs) - 1)


def group_norm(op: Op) -> list[Tensor | None]:
    """Group norm combines the channels of a group over all positions."""
    boxes = op.boxes("input")
    if boxes is None:
        return [None] * len(op.outputs)
    batch = op.arguments["N"]
    grouped = boxes.reshape(PLANES, batch, op.arguments["group"], -1)
    statistics = combine(op, [(grouped, [2])])
    result = union(grouped, statistics)
    assert result is not None
    assert statistics is not None
    return [result.reshape(boxes.shape), *[statistics[..., 0]] * (len(op.outputs) - 1)]


def batch_norm(op: Op) -> list[Tensor | None]:
    """Batch norm is elementwise with fixed statistics; else it combines all positions."""
    boxes = op.boxes("input")
    rest: list[Tensor | None] = [None] * (len(op.outputs) - 1)
    if boxes is None or not op.arguments.get("training", False):
        return [boxes, *rest]
    dims = [d for d in range(boxes.ndim - 1) if d != 1]
    return [union(boxes, combine(op, [(boxes, dims)])), *rest]


_HIDDEN_WEIGHT = 1e-20
"""A smaller attention weight that depends on no pixel was hidden by a mask (e^-100)."""

_OPERANDS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "addmm": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "linear": ("input", "weight"),
}


def matmul(op: Op) -> Tensor | None:
    """A matrix product combines the rows of one operand with the columns of the other."""
    one, other = (op.arguments[name] for name in _OPERANDS[op.name])
    a, b = op.dependencies.of(one), op.dependencies.of(other)
    if op.name == "linear" and b is not None:
        b = b.transpose(-1, -2)
    added = op.boxes("bias" if op.name == "linear" else "self") if "add" in op.name else None
    return union(_product(op, one, other, a, b), added)


def _product(
    op: Op, one: Tensor, other: Tensor, a: Tensor | None, b: Tensor | None
) -> Tensor | None:
    if a is not None and b is not None and one.ndim == other.ndim == 3:
        hidden = (a == NO_PIXEL).all(0) & (one.abs() < _HIDDEN_WEIGHT)  # (B, n, k)
        if bool(hidden.any()):
            return _hidden_product(a, b, hidden)
    parts: list[tuple[Tensor | None, list[int]]] = []
    if a is not None:
        rows = a.unsqueeze(-1) if other.ndim > 1 else a  # (8, …, n, k, 1)
        parts.append((rows, [one.ndim - 1]))
    if b is not None:
        columns = b.unsqueeze(-3) if other.ndim > 1 else b  # (8, …, 1, k, m)
        parts.append((columns, [columns.ndim - 1 - (2 if other.ndim > 1 else 1)]))
    total = combine(op, parts)
    if total is None:
        return None
    dim = total.ndim - (2 if other.ndim > 1 else 1)
    return total.squeeze(dim)


def _hidden_product(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """Boxes (8, B, n, m) of a product in which some weights of the rows are constant zeros.

    All columns get the same boxes, because attention combines whole tokens.
    """
    tokens = b.amax(-1).unsqueeze(2)  # (8, B, 1, k)
    seen = torch.stack([torch.where(hidden, NO_PIXEL, plane).amax(-1) for plane in tokens])
    return torch.maximum(a.amax(-1), seen).unsqueeze(-1)


def attention(op: Op) -> list[Tensor | None]:
    """Fused attention combines a query with all keys and values that no mask hides from it."""
    query, key, value = (op.boxes(name) for name in ("query", "key", "value"))
    bias = op.arguments.get("attn_mask", op.arguments.get("attn_bias"))
    rest: list[Tensor | None] = [None] * (len(op.outputs) - 1)
    tokens = union(
        *[boxes.amax(-1, keepdim=True) for boxes in (key, value) if boxes is not None]
    )  # (8, B, heads, k, 1)
    if query is not None:
        query = query.amax(-1, keepdim=True)
    if tokens is None:
        return [query, *rest]
    repeat = op.arguments["query"].shape[1] // tokens.shape[2] if tokens.ndim == 5 else 1
    if repeat > 1:  # grouped queries
        tokens = tokens.repeat_interleave(repeat, 2)
    hidden = _hidden(op, bias)
    if hidden is not None and bool((hidden == hidden[..., :1, :]).all()):
        # Hidden from every query, like padding: attention combines all the others.
        tokens = torch.where(hidden[..., :1, :].transpose(-1, -2), NO_PIXEL, tokens)
    elif hidden is not None:
        rows = tokens.transpose(-1, -2)  # (8, B, heads, 1, k); plane by plane to save memory
        seen = [torch.where(hidden, NO_PIXEL, plane).amax(-1, keepdim=True) for plane in rows]
        return [union(query, torch.stack(seen)), *rest]
    return [combine(op, [(query, []), (tokens, [tokens.ndim - 3])]), *rest]


def _hidden(op: Op, bias: Tensor | None) -> Tensor | None:
    """Keys that a constant mask hides from each query, bool (…, q, k); None if there are none."""
    if op.arguments.get("is_causal"):
        query, keys = op.arguments["query"], op.arguments["key"].shape[-2]
        return torch.ones(query.shape[-2], keys, dtype=torch.bool, device=query.device).triu(1)
    if bias is None or op.dependencies.of(bias) is not None:
        return None
    hidden = ~bias if bias.dtype == torch.bool else bias <= HIDDEN
    return hidden if bool(hidden.any()) else None


def recurrent(op: Op) -> list[Tensor | None]:
    """A recurrent layer over (T, B, C) or (B, T, C) is assumed to combine all steps.

    That is exact if it runs in both directions.
    """
    boxes = op.boxes("input")
    rest: list[Tensor | None] = [None] * (len(op.outputs) - 1)
    if boxes is None:
        return [None, *rest]
    tokens = boxes.amax(-1, keepdim=True)
    steps = 1 if op.arguments.get("batch_first") else 0
    return [union(tokens, combine(op, [(tokens, [steps])])), *rest]
