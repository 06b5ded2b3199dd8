"""Values that were written past torch's counters are found, wherever they are in a weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from timmscope_registry.hooks import ModelHooks


def swap(weight: Tensor, axis: int) -> None:
    weight.data.copy_(weight.data.flip(axis))


WRITES: dict[str, Callable[[Tensor], object]] = {
    "all": lambda weight: weight.data.mul_(1.5),
    "one number": lambda weight: weight.data[(7, *[-1] * (weight.ndim - 1))].add_(1),
    "rows change places": lambda weight: swap(weight, 0),
    "columns change places": lambda weight: swap(weight, 1),
    "NaN": lambda weight: weight.data[0].fill_(float("nan")),
    "the sign of zero": lambda weight: weight.data[3, 5].mul_(-1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 8), (300, 200), (61, 64, 3, 3)])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_past_the_counters_is_found(write, shape, dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(shape).to(dtype))
    if len(shape) == 4:
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    layer.weight.data[3, 5] = 0.0
    module.add_module("layer", layer)
    hooks = ModelHooks(module, torch.zeros(1, 3, 4, 4))
    snapshot = hooks.snapshot()
    assert snapshot.written() == []
    version = layer.weight._version
    WRITES[write](layer.weight)
    assert layer.weight._version == version
    assert snapshot.written() == ["layer.weight"]


def test_a_write_through_numpy_is_found_in_a_buffer_of_whole_numbers():
    module = nn.Conv2d(3, 2, 1)
    module.register_buffer("index", torch.arange(40_000))
    snapshot = ModelHooks(module, torch.zeros(1, 3, 4, 4)).snapshot()
    module.index.numpy()[-1] = 0
    module.bias.detach().numpy()[1] += 1
    assert snapshot.written() == ["bias", "index"]


def test_tensors_without_bytes_are_passed_over():
    module = nn.Conv2d(3, 2, 1)
    module.register_buffer("nowhere", torch.empty(3, device="meta"))
    module.register_buffer("sparse", torch.eye(3).to_sparse())
    module.register_buffer("none", torch.empty(0))
    assert ModelHooks(module, torch.zeros(1, 3, 4, 4)).snapshot().written() == []
