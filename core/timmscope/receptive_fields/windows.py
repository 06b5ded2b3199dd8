"""Operations whose window moves over the grid: convolutions, pooling, folding, resampling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from timmscope.receptive_fields.dependency_boxes import NONE, PLANES
from timmscope.receptive_fields.elementwise_ops import extended
from timmscope.receptive_fields.op import Op, everything, joined, lengthened, union


def convolution(op: Op) -> Tensor | None:
    """All channels of a group, within the window."""
    shadow, groups = op.shadow("input"), op.given["groups"]
    weight = op.given["weight"]
    outputs = op.outputs[0]
    found: Tensor | None = None
    if shadow is not None:
        inputs = _by_group(shadow, groups)  # (8, B, G, …)
        count = weight.ndim - 2
        kernel, dilation = list(weight.shape[2:]), _all(op.given["dilation"], count)
        stride, padding = _all(op.given["stride"], count), _all(op.given["padding"], count)
        if op.given["transposed"]:
            # Zeros between the cells, then a plain convolution of stride 1.
            inputs = _spread(inputs, stride)
            pairs = zip(kernel, dilation, padding, strict=True)
            padding = [d * (k - 1) - p for k, d, p in pairs]
            stride = [1] * count
        found = window(inputs, kernel, stride, padding, dilation, outputs.shape[2:], op.image)
    if (dynamic := op.shadows.of(weight)) is not None:
        own = dynamic.flatten(2).amax(2)  # (8, C_out): filters computed from the image
        if op.given["transposed"]:
            own = own.amax(1, keepdim=True).expand(PLANES, groups)
        own = own.reshape(PLANES, 1, groups, -1).amax(3)
        found = union(found, own.view(PLANES, 1, groups, *[1] * (weight.ndim - 2)))
    if found is None:
        return op.shadow("bias")
    if groups == 1:
        return found
    channels, sizes = outputs.shape[1] // groups, outputs.shape[2:]
    found = found.expand(PLANES, len(outputs), groups, *sizes)
    return found.repeat_interleave(channels, 2) if channels > 1 else found


def _by_group(shadow: Tensor, groups: int) -> Tensor:
    batch, channels, *sizes = shadow.shape[1:]
    return shadow.reshape(PLANES, batch, groups, channels // groups, *sizes).amax(3)


def _spread(shadow: Tensor, stride: Sequence[int]) -> Tensor:
    sizes = [(n - 1) * s + 1 for n, s in zip(shadow.shape[3:], stride, strict=True)]
    wide = shadow.new_full((*shadow.shape[:3], *sizes), NONE)
    places = wide
    for dim, step in enumerate(stride, start=3):
        places = _every(places, dim, step)
    places.copy_(shadow)
    return wide


def pooled(op: Op) -> Tensor | None:
    """Maximum and average pooling."""
    shadow = op.shadow("self")
    if shadow is None:
        return None
    count = _rank(op)
    kernel = _all(op.given["kernel_size"], count)
    stride = _all(op.given.get("stride") or kernel, count)
    padding = _all(op.given["padding"], count)
    dilation = _all(op.given.get("dilation", 1), count)
    sizes = op.outputs[0].shape[-count:]
    return window(shadow, kernel, stride, padding, dilation, sizes, op.image)


def window(
    shadow: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    sizes: Sequence[int],
    image: tuple[int, int],
) -> Tensor:
    """What a window sees at each of its `sizes` places; the last dimensions are the grid."""
    for axis, (k, s, p, d, n) in enumerate(
        zip(kernel, stride, padding, dilation, sizes, strict=True)
    ):
        dim = shadow.ndim - len(kernel) + axis
        reach = (n - 1) * s + (k - 1) * d + 1
        shadow = extended(shadow, dim, p, reach - p - shadow.shape[dim], image)
        if k == 1 and s == 1:
            continue
        steps = [shadow.narrow(dim, i * d, (n - 1) * s + 1) for i in range(k)]
        parts = [_every(step, dim, s) for step in steps]
        total = parts[0]
        for part in parts[1:]:
            total = torch.maximum(total, part)
        shadow = total
    return shadow


def _every(shadow: Tensor, dim: int, stride: int) -> Tensor:
    return shadow[(*[slice(None)] * dim, slice(None, None, stride))]


def _rank(op: Op) -> int:
    return next((rank for rank in (1, 2, 3) if f"{rank}d" in op.name), 1)


def adaptive(op: Op) -> Tensor | None:
    """Pooling to a given size: window i goes from floor(i n / m) to ceil((i + 1) n / m)."""
    shadow = op.shadow("self")
    if shadow is None:
        return None
    for dim in range(shadow.ndim - _rank(op), shadow.ndim):
        size = op.outputs[0].shape[dim - 1]
        shadow = _adapted(op, shadow, dim, size)
    return shadow


def _adapted(op: Op, shadow: Tensor, dim: int, size: int) -> Tensor:
    given = shadow.shape[dim]
    if size == 1:
        total = joined(op, [(shadow, [dim - 1])])
        assert total is not None
        return total
    edges = [(i * given // size, -(-(i + 1) * given // size)) for i in range(size)]
    parts = [shadow.narrow(dim, a, b - a).amax(dim, keepdim=True) for a, b in edges]
    return torch.cat(parts, dim)


def resampled(op: Op) -> Tensor | None:
    """Interpolation: whatever has a weight, found from what it makes of an identity matrix."""
    shadow = op.shadow("self")
    if shadow is None or op.outputs[0].ndim != 4:
        return everything(op)
    for axis, dim in ((0, shadow.ndim - 2), (1, shadow.ndim - 1)):
        given, wanted = shadow.shape[dim], op.outputs[0].shape[dim - 1]
        if given == wanted:
            continue
        weights = _weights(op, axis, given, wanted)  # (wanted, given)
        moved = shadow.movedim(dim, -1)
        rows = [moved[..., row].amax(-1) for row in weights]
        shadow = torch.stack(rows, -1).movedim(-1, dim)
    return shadow


def _weights(op: Op, axis: int, given: int, wanted: int) -> Tensor:
    """Which of the given cells enter each of those wanted, bool (wanted, given)."""
    unit = torch.eye(given).view(1, given, *((given, 1) if axis == 0 else (1, given)))
    size = [1, 1]
    size[axis] = wanted
    still = "scales_h" if axis else "scales_w"  # of the axis of size 1
    out = op.function(**{**op.given, "self": unit, "output_size": size, still: None})
    entered: Tensor = out.view(given, wanted).T != 0
    return entered


def folded(op: Op) -> Tensor | None:
    """`col2im`: the sum of overlapping windows."""
    shadow = op.shadow("self")
    if shadow is None:
        return None
    kernel, stride, padding, dilation = (
        _all(op.given[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    shadow = lengthened(shadow, 4)
    high, wide = op.outputs[0].shape[-2:]
    tall, broad = high + 2 * padding[0], wide + 2 * padding[1]
    rows = (tall - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (broad - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    batch = shadow.shape[1]
    parts = shadow.reshape(PLANES, batch, -1, kernel[0], kernel[1], rows, columns)
    total = shadow.new_full((PLANES, batch, parts.shape[2], tall, broad), NONE)
    for y, x in product(range(kernel[0]), range(kernel[1])):
        place = (
            ...,
            slice(y * dilation[0], y * dilation[0] + (rows - 1) * stride[0] + 1, stride[0]),
            slice(x * dilation[1], x * dilation[1] + (columns - 1) * stride[1] + 1, stride[1]),
        )
        total[place] = torch.maximum(total[place], parts[:, :, :, y, x])
    total = total[..., padding[0] : padding[0] + high, padding[1] : padding[1] + wide]
    return total.reshape(PLANES, *op.outputs[0].shape)


def _all(value: int | Sequence[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
