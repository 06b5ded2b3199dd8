"""Operations that combine many elements: sums, norms, products of matrices, attention."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import NONE, PLANES
from timmscope.receptive_fields.elementwise_ops import HIDDEN
from timmscope.receptive_fields.op import Op, joined, union


def reduced(op: Op) -> list[Tensor | None] | None:
    """Sums, means, variances, norms, extremes along dimensions."""
    shadow = op.shadow("self")
    if shadow is None:
        return None
    dims = op.dims()
    total = joined(op, [(shadow, dims)])
    assert total is not None
    return [_shaped(total, output, dims) for output in op.outputs]


def _shaped(total: Tensor, output: Tensor, dims: list[int]) -> Tensor:
    if total.ndim == output.ndim + 1:
        return total
    kept = [1, *[d + 1 for d in range(total.ndim - 1) if d not in dims]]
    return total.reshape(PLANES, *[total.shape[d] for d in kept[1:]])


def along(op: Op) -> Tensor | None:
    """What keeps its size and mixes along a dimension: cumulative sums, sorting."""
    shadow = op.shadow("self")
    return None if shadow is None else union(shadow, joined(op, [(shadow, op.dims())]))


def softmax(op: Op) -> Tensor | None:
    """All scores along a dimension but those that a mask hides; hidden ones become zeros."""
    shadow, scores = op.shadow("self"), op.given["self"]
    if shadow is None:
        return None
    hidden = scores == float("-inf")
    masked = op.shadows.masked(scores)
    if masked is not None:
        hidden = hidden | masked
    if not bool(hidden.any()):
        return along(op)
    shadow = torch.where(hidden, NONE, shadow)
    result = union(shadow, joined(op, [(shadow, op.dims())]))
    assert result is not None
    return torch.where(hidden, NONE, result)


def layer_norm(op: Op) -> list[Tensor | None]:
    """Layer and RMS norm over the last dimensions."""
    shadow = op.shadow("input")
    if shadow is None:
        return [op.shadow("weight")] + [None] * (len(op.outputs) - 1)
    count = len(op.given["normalized_shape"])
    dims = list(range(shadow.ndim - 1 - count, shadow.ndim - 1))
    statistics = joined(op, [(shadow, dims)])
    return [union(shadow, statistics)] + [statistics] * (len(op.outputs) - 1)


def group_norm(op: Op) -> list[Tensor | None]:
    """Statistics over the channels of a group and all positions."""
    shadow = op.shadow("input")
    if shadow is None:
        return [None] * len(op.outputs)
    batch = op.given["N"]
    grouped = shadow.reshape(PLANES, batch, op.given["group"], -1)
    statistics = joined(op, [(grouped, [2])])
    result = union(grouped, statistics)
    assert result is not None
    assert statistics is not None
    return [result.reshape(shadow.shape), *[statistics[..., 0]] * (len(op.outputs) - 1)]


def batch_norm(op: Op) -> list[Tensor | None]:
    """Element by element with fixed statistics, else (instance norm) over all positions."""
    shadow = op.shadow("input")
    others: list[Tensor | None] = [None] * (len(op.outputs) - 1)
    if shadow is None or not op.given.get("training", False):
        return [shadow, *others]
    dims = [d for d in range(shadow.ndim - 1) if d != 1]
    return [union(shadow, joined(op, [(shadow, dims)])), *others]


_NOTHING = 1e-20
"""A weight that depends on no pixel and is as small as this was hidden by a mask (e^-100)."""

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


def product(op: Op) -> Tensor | None:
    """A product of matrices: the rows of one, the columns of the other."""
    one, other = (op.given[name] for name in _OPERANDS[op.name])
    a, b = op.shadows.of(one), op.shadows.of(other)
    if op.name == "linear" and b is not None:
        b = b.transpose(-1, -2)
    added = op.shadow("bias" if op.name == "linear" else "self") if "add" in op.name else None
    return union(_product(op, one, other, a, b), added)


def _product(
    op: Op, one: Tensor, other: Tensor, a: Tensor | None, b: Tensor | None
) -> Tensor | None:
    if a is not None and b is not None and one.ndim == other.ndim == 3:
        hidden = (a == NONE).all(0) & (one.abs() < _NOTHING)  # (B, n, k)
        if bool(hidden.any()):
            return _hidden_product(a, b, hidden)
    parts: list[tuple[Tensor | None, list[int]]] = []
    if a is not None:
        rows = a.unsqueeze(-1) if other.ndim > 1 else a  # (8, …, n, k, 1)
        parts.append((rows, [one.ndim - 1]))
    if b is not None:
        columns = b.unsqueeze(-3) if other.ndim > 1 else b  # (8, …, 1, k, m)
        parts.append((columns, [columns.ndim - 1 - (2 if other.ndim > 1 else 1)]))
    total = joined(op, parts)
    if total is None:
        return None
    dim = total.ndim - (2 if other.ndim > 1 else 1)
    return total.squeeze(dim)


def _hidden_product(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """The product (8, B, n, m) where some of the rows' weights are constant zeros.

    Columns that see different things are taken together: attention mixes whole tokens.
    """
    tokens = b.amax(-1).unsqueeze(2)  # (8, B, 1, k)
    seen = torch.stack([torch.where(hidden, NONE, plane).amax(-1) for plane in tokens])
    return torch.maximum(a.amax(-1), seen).unsqueeze(-1)


def attention(op: Op) -> list[Tensor | None]:
    """Fused attention: a query, and all keys and values that no mask hides from it."""
    query, key, value = (op.shadow(name) for name in ("query", "key", "value"))
    bias = op.given.get("attn_mask", op.given.get("attn_bias"))
    rest: list[Tensor | None] = [None] * (len(op.outputs) - 1)
    tokens = union(
        *[shadow.amax(-1, keepdim=True) for shadow in (key, value) if shadow is not None]
    )  # (8, B, heads, k, 1)
    if query is not None:
        query = query.amax(-1, keepdim=True)
    if tokens is None:
        return [query, *rest]
    repeat = op.given["query"].shape[1] // tokens.shape[2] if tokens.ndim == 5 else 1
    if repeat > 1:  # grouped queries
        tokens = tokens.repeat_interleave(repeat, 2)
    hidden = _hidden(op, bias)
    if hidden is not None and bool((hidden == hidden[..., :1, :]).all()):
        # Hidden from every query, as padding is: attention over all the others.
        tokens = torch.where(hidden[..., :1, :].transpose(-1, -2), NONE, tokens)
    elif hidden is not None:
        rows = tokens.transpose(-1, -2)  # (8, B, heads, 1, k); a plane at a time to save memory
        seen = [torch.where(hidden, NONE, plane).amax(-1, keepdim=True) for plane in rows]
        return [union(query, torch.stack(seen)), *rest]
    return [joined(op, [(query, []), (tokens, [tokens.ndim - 3])]), *rest]


def _hidden(op: Op, bias: Tensor | None) -> Tensor | None:
    """Where a constant mask hides a key from a query, bool (…, q, k); None if nowhere."""
    if op.given.get("is_causal"):
        count, keys = op.given["query"].shape[-2], op.given["key"].shape[-2]
        return torch.ones(count, keys, dtype=torch.bool).triu(1)
    if bias is None or op.shadows.of(bias) is not None:
        return None
    hidden = ~bias if bias.dtype == torch.bool else bias <= HIDDEN
    return hidden if bool(hidden.any()) else None


def recurrent(op: Op) -> list[Tensor | None]:
    """A recurrent layer over (T, B, C) or (B, T, C): each step sees the steps before.

    Taken to see all steps, as it does in both directions together.
    """
    shadow = op.shadow("input")
    rest: list[Tensor | None] = [None] * (len(op.outputs) - 1)
    if shadow is None:
        return [None, *rest]
    tokens = shadow.amax(-1, keepdim=True)
    steps = 1 if op.given.get("batch_first") else 0
    return [union(tokens, joined(op, [(tokens, [steps])])), *rest]
