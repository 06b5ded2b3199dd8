"""Models with random weights, and two slow, independent ways to find receptive fields."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel
from timmscope_registry.hooks import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402

Box = tuple[int, int, int, int]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because threads slow down small convolutions on shared processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hooked(name: str, size: tuple[int, int] | None = None, **options: object) -> HookedModel:
    """A timm model whose residual branches and gates all have non-zero weights."""
    torch.manual_seed(0)
    module = timm.create_model(name, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.abs().max() <= 1e-3:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return HookedModel(module, input_size=None if size is None else (3, *size))


def plain(module: nn.Module, size: tuple[int, int]) -> HookedModel:
    """Any module over RGB images, without normalisation."""
    return HookedModel(module, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, *size))


@dataclass(frozen=True)
class Window:
    """A convolution or pooling along one axis; padding None means TensorFlow's "same"."""

    kernel: int
    stride: int
    padding: int | None
    dilation: int = 1


def window_of(module: nn.Module) -> Window:
    """The window of a convolution or pooling module."""

    def one(value: int | tuple[int, ...]) -> int:
        return value if isinstance(value, int) else value[0]

    return Window(
        one(module.kernel_size), one(module.stride), one(module.padding), one(module.dilation)
    )


def arithmetic(windows: Iterable[Window], image: int) -> tuple[int, int, int, int]:
    """Size, stride, left edge of the first field, and number of cells, along one axis.

    r += (k - 1) d j;  start -= p j;  j *= s   (Araujo, Norris and Sim, Distill 2019).
    """
    size, jump, start, cells = 1, 1, 0, image
    for window in windows:
        reach = (window.kernel - 1) * window.dilation + 1
        before = after = window.padding
        if window.padding is None:
            outputs = math.ceil(cells / window.stride)
            total = max(0, (outputs - 1) * window.stride + reach - cells)
            before, after = total // 2, total - total // 2
        start -= before * jump
        size += (reach - 1) * jump
        cells = (cells + before + after - reach) // window.stride + 1
        jump *= window.stride
    return size, jump, start, cells


def gradient_box(model: HookedModel, layer: str, cell: tuple[int, int], tries: int = 3) -> Box:
    """The box of pixels with a gradient on several random images; the model must be float64.

    Maxima are replaced by means, whose gradient reaches the whole window.
    """
    reached = torch.zeros(model.input_size[1:], dtype=torch.bool)
    for seed in range(tries):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, *model.input_size, generator=generator, dtype=torch.float64)
        image.requires_grad_()
        with patch.object(nn.functional, "max_pool2d", mean_pool), model.record(layer) as recording:
            model(image)
        units = model.layers[layer].spatial(recording[layer])[0, :, cell[0], cell[1]]
        weights = torch.rand(units.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((units * weights).sum(), image)
        reached |= (gradient[0] != 0).any(0)
    return box_of(reached)


def mean_pool(x, kernel_size, stride, padding=0, dilation=1, ceil_mode=False, **_):
    """Average over the window of a max pooling."""
    assert dilation == 1
    return nn.functional.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)


def box_of(mask: Tensor) -> Box:
    """The smallest box around the true elements of a mask `(H, W)`."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def positive(model: HookedModel) -> HookedModel:
    """Make weights float64 and positive and masks infinite: no gradient vanishes or leaks."""
    model.module.double()
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim > 1:
                weight.copy_(weight.abs() + 0.01)
        for buffer in model.module.buffers():
            if buffer.is_floating_point() and float(buffer.min()) == -100:
                buffer[buffer == -100] = -math.inf
    return model
