"""Rules for operations that copy, reorder, pad or combine tensors element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import (
    ARITHMETIC,
    EXACT,
    MAX_COORDINATE,
    NO_PIXEL,
    PLANES,
)
from timmscope.receptive_fields.op import Op, all_inputs, union, with_ndim

HIDDEN = -50.0
"""A constant of at most this, added before a softmax, is a mask that hides (Swin adds -100)."""


def elementwise(op: Op) -> Tensor | None:
    """Each result depends on the elements that are combined in it."""
    if op.name in ("add", "sub"):
        _record_mask(op)
    return union(*[op.dependencies.of(tensor) for _, tensor in op.tensors()])


def _record_mask(op: Op) -> None:
    """Record which results a constant hides, or were hidden in an operand before."""
    one, other = op.arguments.get("self"), op.arguments.get("other")
    for value, bias in ((one, other), (other, one)):
        if not (isinstance(value, Tensor) and isinstance(bias, Tensor)):
            continue
        mask = op.dependencies.mask_of(value)
        if mask is not None:
            op.dependencies.set_mask(op.outputs[0], mask.expand(op.outputs[0].shape))
        elif bias.ndim >= 2 and bias.is_floating_point() and op.dependencies.of(bias) is None:
            hidden = bias <= HIDDEN
            if bool(hidden.any()):
                op.dependencies.set_mask(op.outputs[0], hidden.expand(op.outputs[0].shape))


def first_input(op: Op) -> Tensor | None:
    """Each result depends on the element of the first tensor at the same position."""
    return op.dependencies.of(next(tensor for _, tensor in op.tensors()))


def copy(op: Op) -> Tensor | None:
    """`copy_`: results depend on the source, not on the overwritten values."""
    return op.boxes("src") if "src" in op.arguments else op.boxes("other")


def constant(op: Op) -> Tensor | None:
    """`fill_`, `zero_` and operations that create tensors: only a fill value can have boxes."""
    return op.boxes("value")


def select(op: Op) -> Tensor | None:
    """`where` and `masked_fill`: a constant condition selects one of two; else both count."""
    condition = op.arguments.get("condition", op.arguments.get("mask"))
    one, other = ("self", "other") if op.name == "where" else ("value", "self")
    if not isinstance(condition, Tensor) or op.dependencies.of(condition) is not None:
        return union(*[op.dependencies.of(tensor) for _, tensor in op.tensors()])
    return torch.where(condition, _expanded(op.boxes(one), op), _expanded(op.boxes(other), op))


def _expanded(boxes: Tensor | None, op: Op) -> Tensor:
    """Expand boxes to the shape of the output."""
    shape = op.outputs[0].shape
    if boxes is None:
        return torch.full(
            (PLANES, *shape), NO_PIXEL, dtype=torch.int16, device=op.outputs[0].device
        )
    return with_ndim(boxes, len(shape) + 1).expand(PLANES, *shape)


def rearrange(op: Op) -> list[Tensor | None]:
    """Operations that only move elements: apply the same operation to each plane of boxes."""
    for _, tensor in op.tensors():
        if not tensor.is_floating_point() and op.dependencies.of(tensor) is not None:
            return [all_inputs(op)] * len(op.outputs)  # the indices depend on the image

    def plane(value: Any, number: int) -> Any:
        if isinstance(value, list | tuple):
            return [plane(item, number) for item in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        boxes = op.dependencies.of(value)
        if boxes is None:
            return torch.zeros(value.shape, device=value.device)
        return boxes[number].float() - NO_PIXEL  # shifted, because such operations fill with zeros

    results: list[list[Tensor]] = []
    for number in range(PLANES):
        out = op.function(**{name: plane(value, number) for name, value in op.arguments.items()})
        results.append([out] if isinstance(out, Tensor) else list(out))
    return [(torch.stack(parts) + NO_PIXEL).to(torch.int16) for parts in zip(*results, strict=True)]


def index_put(op: Op) -> list[Tensor | None]:
    """Assignment at constant indices; if values are accumulated, every result has all inputs."""
    return [all_inputs(op)] if op.arguments.get("accumulate") else rearrange(op)


def pad(op: Op) -> Tensor | None:
    """Padding of any kind: zeros depend on no pixel, mirrored and repeated elements do."""
    boxes = op.boxes("self")
    if boxes is None:
        return None
    amounts = list(op.arguments["pad" if "pad" in op.arguments else "padding"])
    result = boxes
    for axis in range(len(amounts) // 2):
        before, after = amounts[2 * axis : 2 * axis + 2]
        result = extend(result, result.ndim - 1 - axis, before, after, op.image)
    if op.name != "constant_pad_nd":
        mirrored = rearrange(op)[0]
        assert mirrored is not None
        result = torch.cat([mirrored[EXACT], result[ARITHMETIC]])
    return result


def extend(boxes: Tensor, dim: int, before: int, after: int, image: tuple[int, int]) -> Tensor:
    """Extend boxes at both ends of a dimension; negative numbers crop.

    In the exact planes the new elements depend on no pixel. In the arithmetic planes the boxes
    continue with the step between the last two elements.
    """
    size = boxes.shape[dim]
    start, stop = max(0, -before), size - max(0, -after)
    boxes = boxes.narrow(dim, start, max(0, stop - start))
    before, after, size = max(0, before), max(0, after), boxes.shape[dim]
    if not (before or after) or not size:
        return boxes
    shape = list(boxes.shape)
    shape[dim] = before + size + after
    result = boxes.new_full(shape, NO_PIXEL)
    result.narrow(dim, before, size).copy_(boxes)
    arithmetic = boxes[ARITHMETIC].int()
    for count, edge, inner, start in (
        (before, 0, 1, 0),
        (after, size - 1, size - 2, before + size),
    ):
        if not count:
            continue
        end = arithmetic.narrow(dim, edge, 1)
        if size > 1:
            step = end - arithmetic.narrow(dim, inner, 1)
        else:
            step = _step_of_one_cell(arithmetic, dim, image) * (-1 if edge == start else 1)
        distance = torch.arange(1, count + 1, device=boxes.device, dtype=torch.int32)
        if start == 0:
            distance = distance.flip(0)
        distance = distance.view(*[1] * dim, count, *[1] * (boxes.ndim - 1 - dim))
        moved = (end + distance * step).clamp(-MAX_COORDINATE, MAX_COORDINATE)
        new = torch.where(end == NO_PIXEL, end, moved)
        result[ARITHMETIC].narrow(dim, start, count).copy_(new)
    return result


def _step_of_one_cell(boxes: Tensor, dim: int, image: tuple[int, int]) -> Tensor:
    """The step from a single cell to the next, which is the whole image."""
    height, width = image
    steps = {boxes.ndim - 1: [-width, width, 0, 0], boxes.ndim - 2: [0, 0, -height, height]}
    step = torch.tensor(steps.get(dim, [0] * 4), dtype=torch.int32, device=boxes.device)
    return step.view(4, *[1] * (boxes.ndim - 1))
