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


class TwoClasses(nn.Module):
    """`logits = (0, w·x + b)`: the decision is a hyperplane."""

    num_classes = 2

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(3 * size * size, generator=torch.Generator().manual_seed(8))
        )
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.fixture
def plane(images) -> HookedModel:
    """A hyperplane between the images' centre and them, in double precision."""
    model = HookedModel(TwoClasses().double(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    with torch.no_grad():
        model.module.bias.copy_(-(images.double().flatten(1) @ model.module.weight).mean())
    return model


def distances(model, images) -> tuple[Tensor, Tensor]:
    """L2 and L∞ distance of each image to the hyperplane."""
    weight = model.module.weight.detach()
    margin = (images.flatten(1) @ weight + model.module.bias.detach()).abs()
    return margin / weight.norm(), margin / weight.abs().sum()
