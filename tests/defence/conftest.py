"""Defences with known values, and small models behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from timmscope import DefenceTechnique, HookedModel


class Halved(DefenceTechnique):
    """Half of each value, with an exact gradient."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return images / 2


class Negative(DefenceTechnique):
    """The negative."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return 1 - images


class Levels(DefenceTechnique):
    """Few levels, passed straight through."""

    backward = "identity"
    steps: int = 3
    """Number of steps between levels."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return (images * self.steps).round() / self.steps


class Opaque(Levels):
    """Few levels, without a gradient."""

    backward = "none"


class Flip(DefenceTechnique):
    """At random the image or its negative."""

    random = True
    share: float = 0.5
    """Probability of the negative."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        drawn = torch.stack([torch.rand((), generator=generator) for generator in generators])
        return torch.where((drawn < self.share)[:, None, None, None], 1 - images, images)


class Noise(DefenceTechnique):
    """Gaussian noise of 0.1, clipped."""

    random = True

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        drawn = [torch.randn(images.shape[1:], generator=generator) for generator in generators]
        return (images + 0.1 * torch.stack(drawn).to(images)).clamp(0, 1)


def returning(function: Callable[[Tensor], Any]) -> DefenceTechnique:
    """A defence that returns what a function does."""

    class Returns(DefenceTechnique):
        """Returns anything."""

        backward = "identity"

        def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
            return function(images)  # type: ignore[no-any-return]

    Returns.__qualname__ = "Returns"
    return Returns()


class Linear(nn.Module):
    """Three logits that are linear in the pixels of 4×4 images."""

    num_classes = 3

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 48, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def linear(seed: int = 0, **settings: Any) -> HookedModel:
    given = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 4, 4), **settings}
    return HookedModel(Linear(seed), **given)


@pytest.fixture
def model() -> HookedModel:
    """A linear classifier of 4×4 images without normalisation."""
    return linear()


@pytest.fixture
def images() -> Tensor:
    """Six 4×4 images."""
    return 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(3))
