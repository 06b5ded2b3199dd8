"""Rules for operations that slide a window: convolution, pooling, folding, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import NO_PIXEL, PLANES
from timmscope.receptive_fields.elementwise_ops import extend
from timmscope.receptive_fields.op import Op, all_inputs, combine, union, with_ndim


def convolution(op: Op) -> Tensor | None:
    """A convolution combines all channels of a group within the window."""
    boxes, groups = op.boxes("input"), op.arguments["groups"]
    weight = op.arguments["weight"]
    output = op.outputs[0]
    total: Tensor | None = None
    if boxes is not None:
        inputs = _by_group(boxes, groups)  # (8, B, G, …)
        count = weight.ndim - 2
        kernel, dilation = list(weight.shape[2:]), _all(op.arguments["dilation"], count)
        stride, padding = _all(op.arguments["stride"], count), _all(op.arguments["padding"], count)
        if op.arguments["transposed"]:
            # Insert zeros between the cells, then convolve with stride 1.
            inputs = _dilated(inputs, stride)
            pairs = zip(kernel, dilation, padding, strict=True)
            padding = [d * (k - 1) - p for k, d, p in pairs]
            stride = [1] * count
        total = window(inputs, kernel, stride, padding, dilation, output.shape[2:], op.image)
    if (dynamic := op.dependencies.of(weight)) is not None:
        filters = dynamic.flatten(2).amax(2)  # (8, C_out): filters computed from the image
        if op.arguments["transposed"]:
            filters = filters.amax(1, keepdim=True).expand(PLANES, groups)
        filters = filters.reshape(PLANES, 1, groups, -1).amax(3)
        total = union(total, filters.view(PLANES, 1, groups, *[1] * (weight.ndim - 2)))
    if total is None:
        return op.boxes("bias")
    if groups == 1:
        return total
    channels, sizes = output.shape[1] // groups, output.shape[2:]
    total = total.expand(PLANES, len(output), groups, *sizes)
    return total.repeat_interleave(channels, 2) if channels > 1 else total


def _by_group(boxes: Tensor, groups: int) -> Tensor:
    batch, channels, *sizes = boxes.shape[1:]
    return boxes.reshape(PLANES, batch, groups, channels // groups, *sizes).amax(3)


def _dilated(boxes: Tensor, stride: Sequence[int]) -> Tensor:
    """Insert elements that depend on no pixel between those of the last dimensions."""
    sizes = [(n - 1) * s + 1 for n, s in zip(boxes.shape[3:], stride, strict=True)]
    dilated = boxes.new_full((*boxes.shape[:3], *sizes), NO_PIXEL)
    originals = dilated
    for dim, step in enumerate(stride, start=3):
        originals = _every(originals, dim, step)
    originals.copy_(boxes)
    return dilated


def pooling(op: Op) -> Tensor | None:
    """Maximum and average pooling combine the positions of a window."""
    boxes = op.boxes("self")
    if boxes is None:
        return None
    count = _rank(op)
    kernel = _all(op.arguments["kernel_size"], count)
    stride = _all(op.arguments.get("stride") or kernel, count)
    padding = _all(op.arguments["padding"], count)
    dilation = _all(op.arguments.get("dilation", 1), count)
    sizes = op.outputs[0].shape[-count:]
    return window(boxes, kernel, stride, padding, dilation, sizes, op.image)


def window(
    boxes: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    sizes: Sequence[int],
    image: tuple[int, int],
) -> Tensor:
    """Combine the boxes inside a window at each of its positions.

    Args:
        boxes: boxes whose last dimensions are the grid.
        kernel: size of the window in each dimension of the grid.
        stride: step of the window.
        padding: padding before the grid.
        dilation: distance of the window's elements.
        sizes: number of positions of the window.
        image: height and width of the image.
    """
    for axis, (k, s, p, d, n) in enumerate(
        zip(kernel, stride, padding, dilation, sizes, strict=True)
    ):
        dim = boxes.ndim - len(kernel) + axis
        reach = (n - 1) * s + (k - 1) * d + 1
        boxes = extend(boxes, dim, p, reach - p - boxes.shape[dim], image)
        if k == 1 and s == 1:
            continue
        shifted = [boxes.narrow(dim, i * d, (n - 1) * s + 1) for i in range(k)]
        parts = [_every(part, dim, s) for part in shifted]
        boxes = parts[0]
        for part in parts[1:]:
            boxes = torch.maximum(boxes, part)
    return boxes


def _every(boxes: Tensor, dim: int, stride: int) -> Tensor:
    """Every `stride`-th element of a dimension."""
    return boxes[(*[slice(None)] * dim, slice(None, None, stride))]


def _rank(op: Op) -> int:
    """Number of dimensions of the grid, by the operation's name."""
    return next((rank for rank in (1, 2, 3) if f"{rank}d" in op.name), 1)


def adaptive_pooling(op: Op) -> Tensor | None:
    """Pooling n cells to m: window i goes from floor(i n / m) to ceil((i + 1) n / m)."""
    boxes = op.boxes("self")
    if boxes is None:
        return None
    for dim in range(boxes.ndim - _rank(op), boxes.ndim):
        boxes = _adaptive_pooling_1d(op, boxes, dim, op.outputs[0].shape[dim - 1])
    return boxes


def _adaptive_pooling_1d(op: Op, boxes: Tensor, dim: int, size: int) -> Tensor:
    count = boxes.shape[dim]
    if size == 1:
        total = combine(op, [(boxes, [dim - 1])])
        assert total is not None
        return total
    edges = [(i * count // size, -(-(i + 1) * count // size)) for i in range(size)]
    parts = [boxes.narrow(dim, a, b - a).amax(dim, keepdim=True) for a, b in edges]
    return torch.cat(parts, dim)


def interpolation(op: Op) -> Tensor | None:
    """Interpolation combines the cells that have a weight."""
    boxes = op.boxes("self")
    if boxes is None or op.outputs[0].ndim != 4:
        return all_inputs(op)
    for axis, dim in ((0, boxes.ndim - 2), (1, boxes.ndim - 1)):
        count, new_count = boxes.shape[dim], op.outputs[0].shape[dim - 1]
        if count == new_count:
            continue
        weights = _weights(op, axis, count, new_count)  # (new_count, count)
        last = boxes.movedim(dim, -1)
        rows = [last[..., row].amax(-1) for row in weights]
        boxes = torch.stack(rows, -1).movedim(-1, dim)
    return boxes


def _weights(op: Op, axis: int, count: int, new_count: int) -> Tensor:
    """Cells with a weight in each result, bool (new_count, count), found with unit vectors."""
    unit = torch.eye(count).view(1, count, *((count, 1) if axis == 0 else (1, count)))
    size = [1, 1]
    size[axis] = new_count
    unchanged = "scales_h" if axis else "scales_w"  # the scale of the axis of size 1
    out = op.function(**{**op.arguments, "self": unit, "output_size": size, unchanged: None})
    weighted: Tensor = out.view(count, new_count).T != 0
    return weighted


def col2im(op: Op) -> Tensor | None:
    """`col2im` sums overlapping windows."""
    boxes = op.boxes("self")
    if boxes is None:
        return None
    kernel, stride, padding, dilation = (
        _all(op.arguments[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    boxes = with_ndim(boxes, 4)
    height, width = op.outputs[0].shape[-2:]
    padded_height, padded_width = height + 2 * padding[0], width + 2 * padding[1]
    rows = (padded_height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (padded_width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    batch = boxes.shape[1]
    parts = boxes.reshape(PLANES, batch, -1, kernel[0], kernel[1], rows, columns)
    total = boxes.new_full((PLANES, batch, parts.shape[2], padded_height, padded_width), NO_PIXEL)
    for y, x in product(range(kernel[0]), range(kernel[1])):
        cells = (
            ...,
            slice(y * dilation[0], y * dilation[0] + (rows - 1) * stride[0] + 1, stride[0]),
            slice(x * dilation[1], x * dilation[1] + (columns - 1) * stride[1] + 1, stride[1]),
        )
        total[cells] = torch.maximum(total[cells], parts[:, :, :, y, x])
    total = total[..., padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return total.reshape(PLANES, *op.outputs[0].shape)


def _all(value: int | Sequence[int], count: int) -> list[int]:
    """A setting for each of `count` dimensions; one value serves all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
