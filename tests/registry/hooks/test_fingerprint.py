"""Every kind of change that a technique could leave shows in the fingerprint."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from timmscope_registry.hooks import fingerprint


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused_attn = True


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), Attention())


def grow_gradient(m: nn.Sequential) -> None:
    m[0].weight.grad = torch.ones_like(m[0].weight)


def poke(m: nn.Sequential) -> None:
    m[1].running_mean.data[2] += 1e-7


CHANGES: dict[str, tuple[Callable[[nn.Sequential], object], str]] = {
    "forward hook": (lambda m: m[0].register_forward_hook(lambda *_: None), "0: forward_hooks"),
    "pre-hook": (lambda m: m[0].register_forward_pre_hook(print), "0: forward_pre_hooks"),
    "backward hook": (lambda m: m[2].register_full_backward_hook(print), "2: backward_hooks"),
    "tensor hook": (lambda m: m[0].weight.register_hook(print), "0.weight: tensor hooks"),
    "mode": (lambda m: m[1].eval(), "1: training: True -> False"),
    "requires_grad": (lambda m: m[0].bias.requires_grad_(False), "0.bias: requires_grad"),
    "gradient": (grow_gradient, "0.weight: grad: None ->"),
    "buffer": (poke, "1.running_mean: value"),
    "fused attention": (lambda m: setattr(m[3], "fused_attn", False), "3: fused_attn: True ->"),
    "forward": (lambda m: setattr(m[2], "forward", abs), "2: own forward: absent ->"),
    "submodule": (lambda m: m.__setitem__(2, nn.GELU()), "2: identity: ReLU"),
    "torch generator": (lambda m: torch.rand(1), "torch random state"),
    "NumPy generator": (lambda m: np.random.rand(), "NumPy random state"),  # noqa: NPY002
    "Python generator": (lambda m: random.random(), "Python random state"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_found_and_named(model: nn.Sequential, name: str) -> None:
    change, line = CHANGES[name]
    before = fingerprint(model)
    assert before == fingerprint(model)
    change(model)
    after = fingerprint(model)
    assert before != after
    assert any(found.startswith(line) for found in before.difference(after))
    assert all(found.partition(":")[0] for found in before.difference(after))


def test_grad_mode_is_part_of_the_fingerprint(model: nn.Sequential) -> None:
    before = fingerprint(model)
    with torch.no_grad():
        assert before.difference(fingerprint(model)) == ["grad mode: True -> False"]
