"""Operations that copy, reorder, pad or combine numbers one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import EXACT, FURTHEST, NONE, PLANES
from timmscope.receptive_fields.op import Op, everything, lengthened, union

HIDDEN = -50.0
"""A constant as low as this, added before a softmax, hides what it is added to (Swin: -100)."""


def elementwise(op: Op) -> Tensor | None:
    """Each result depends on the elements it is made of."""
    if op.name in ("add", "sub"):
        _note_mask(op)
    return union(*[op.shadows.of(tensor) for _, tensor in op.tensors()])


def _note_mask(op: Op) -> None:
    """Remember where a constant hides elements, and where something hidden goes."""
    one, other = op.given.get("self"), op.given.get("other")
    for value, bias in ((one, other), (other, one)):
        if not (isinstance(value, Tensor) and isinstance(bias, Tensor)):
            continue
        before = op.shadows.masked(value)
        if before is not None:
            op.shadows.mask(op.outputs[0], before.expand(op.outputs[0].shape))
        elif bias.ndim >= 2 and bias.is_floating_point() and op.shadows.of(bias) is None:
            hidden = bias <= HIDDEN
            if bool(hidden.any()):
                op.shadows.mask(op.outputs[0], hidden.expand(op.outputs[0].shape))


def first(op: Op) -> Tensor | None:
    """A result depends on the element of the first argument at its place: copies, batch norm."""
    return op.shadows.of(next(tensor for _, tensor in op.tensors()))


def copied(op: Op) -> Tensor | None:
    """`copy_`: what was there before does not matter."""
    return op.shadow("src") if "src" in op.given else op.shadow("other")


def constant(op: Op) -> Tensor | None:
    """`fill_`, `zero_` and what makes new tensors: no pixel, unless the value has some."""
    return op.shadow("value")


def chosen(op: Op) -> Tensor | None:
    """`where` and `masked_fill`: by a constant condition the one or the other, else both."""
    condition = op.given.get("condition", op.given.get("mask"))
    one, other = ("self", "other") if op.name == "where" else ("value", "self")
    if not isinstance(condition, Tensor) or op.shadows.of(condition) is not None:
        return union(*[op.shadows.of(tensor) for _, tensor in op.tensors()])
    return torch.where(condition, _whole(op.shadow(one), op), _whole(op.shadow(other), op))


def _whole(shadow: Tensor | None, op: Op) -> Tensor:
    shape = op.outputs[0].shape
    if shadow is None:
        return torch.full((PLANES, *shape), NONE, dtype=torch.int16, device=op.outputs[0].device)
    return lengthened(shadow, len(shape) + 1).expand(PLANES, *shape)


def moved(op: Op) -> list[Tensor | None]:
    """Anything that only moves numbers: the same operation on each plane of the shadows."""
    for _, tensor in op.tensors():
        if not tensor.is_floating_point() and op.shadows.of(tensor) is not None:
            return [everything(op)] * len(op.outputs)  # where to is for the image to say

    def plane(value: Any, number: int) -> Any:
        if isinstance(value, list | tuple):
            return [plane(item, number) for item in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        shadow = op.shadows.of(value)
        if shadow is None:
            return torch.zeros(value.shape, device=value.device)
        return shadow[number].float() - NONE  # what such operations fill up is zero: no pixel

    results: list[list[Tensor]] = []
    for number in range(PLANES):
        out = op.function(**{name: plane(value, number) for name, value in op.given.items()})
        results.append([out] if isinstance(out, Tensor) else list(out))
    return [(torch.stack(parts) + NONE).to(torch.int16) for parts in zip(*results, strict=True)]


def placed(op: Op) -> list[Tensor | None]:
    """Assignment to places that constants name; added up, all may depend on all."""
    return [everything(op)] if op.given.get("accumulate") else moved(op)


def padded(op: Op) -> Tensor | None:
    """Padding of any kind: zeros depend on no pixel, mirrored and repeated ones on some."""
    shadow = op.shadow("self")
    if shadow is None:
        return None
    amounts = list(op.given["pad" if "pad" in op.given else "padding"])
    result = shadow
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place : 2 * place + 2]
        result = extended(result, result.ndim - 1 - place, before, after, op.image)
    if op.name != "constant_pad_nd":
        mirrored = moved(op)[0]
        assert mirrored is not None
        result = torch.cat([mirrored[EXACT], result[4:]])
    return result


def extended(shadow: Tensor, dim: int, before: int, after: int, image: tuple[int, int]) -> Tensor:
    """A shadow longer at both ends of a dimension; negative numbers crop.

    The exact planes say that the new places depend on nothing. The arithmetic ones go on as they
    began: a cell's box moves by the same step from each to the next.
    """
    size = shadow.shape[dim]
    start, stop = max(0, -before), size - max(0, -after)
    shadow = shadow.narrow(dim, start, max(0, stop - start))
    before, after, size = max(0, before), max(0, after), shadow.shape[dim]
    if not (before or after) or not size:
        return shadow
    shape = list(shadow.shape)
    shape[dim] = before + size + after
    result = shadow.new_full(shape, NONE)
    result.narrow(dim, before, size).copy_(shadow)
    known = shadow[4:].int()
    for count, edge, inner, place in (
        (before, 0, 1, 0),
        (after, size - 1, size - 2, before + size),
    ):
        if not count:
            continue
        end = known.narrow(dim, edge, 1)
        if size > 1:
            step = end - known.narrow(dim, inner, 1)
        else:
            step = _step_of_one_cell(known, dim, image) * (-1 if edge == place else 1)
        far = torch.arange(1, count + 1, device=shadow.device, dtype=torch.int32)
        if place == 0:
            far = far.flip(0)
        far = far.view(*[1] * dim, count, *[1] * (shadow.ndim - 1 - dim))
        new = torch.where(end == NONE, end, (end + far * step).clamp(-FURTHEST, FURTHEST))
        result[4:].narrow(dim, place, count).copy_(new)
    return result


def _step_of_one_cell(known: Tensor, dim: int, image: tuple[int, int]) -> Tensor:
    """From a single cell to the next there is the whole image."""
    height, width = image
    steps = {known.ndim - 1: [-width, width, 0, 0], known.ndim - 2: [0, 0, -height, height]}
    step = torch.tensor(steps.get(dim, [0] * 4), dtype=torch.int32, device=known.device)
    return step.view(4, *[1] * (known.ndim - 1))
