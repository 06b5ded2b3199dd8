"""Small classifiers to attack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from timmscope import HookedModel


class Curved(nn.Module):
    """Two linear layers and a tanh: gradients change along the way."""

    def __init__(self, classes: int = 4, size: int = 4) -> None:
        super().__init__()
        self.num_classes = classes
        self.broken = False
        self.forwards = 0
        generator = torch.Generator().manual_seed(11)
        self.first = nn.Linear(3 * size * size, 16)
        self.norm = nn.BatchNorm1d(16)
        self.last = nn.Linear(16, classes)
        for weight in (self.first.weight, self.last.weight, self.last.bias):
            weight.data = torch.randn(weight.shape, generator=generator) / 3

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        x = self.norm(self.first(x.flatten(1))).tanh()
        if self.broken:
            raise RuntimeError("lost in mid-forward")
        return self.last(x)


@pytest.fixture
def curved() -> HookedModel:
    """A small smooth classifier over 4×4 images, normalised inside."""
    return HookedModel(Curved(), mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))


@pytest.fixture
def images() -> Tensor:
    """Eight 4×4 images well inside the box."""
    noise = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return 0.3 + 0.4 * noise
