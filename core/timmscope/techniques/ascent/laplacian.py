"""Images as a sum of levels, each half as fine as the one before: a Laplacian pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timmscope.techniques.ascent.parameterisation import Parameterisation, resized


class LaplacianParameterisation(Parameterisation):
    """The variable holds the levels of a pyramid; the image is the sum of all, enlarged.

    A step then changes coarse shapes as much as fine ones (Mordvintsev, Olah & Tyka's "Laplacian
    gradient normalisation", as a space instead of a filter). `from_latent` puts into each level
    what the coarser ones lack, so that the sum is exact.

    Args:
        size: height and width in pixels.
        decorrelate: see `Parameterisation`.
        levels: number of levels; level k has sides divided by 2^k, at least one pixel.
        channels: number of channels.
    """

    def __init__(
        self, size: tuple[int, int], *, decorrelate: bool, levels: int = 5, channels: int = 3
    ) -> None:
        super().__init__(size, decorrelate=decorrelate, channels=channels)
        self.sizes = [
            (max(size[0] >> level, 1), max(size[1] >> level, 1)) for level in range(levels)
        ]

    def shape(self) -> tuple[int, ...]:
        """`(C · Σ h · w,)`, the levels from fine to coarse behind each other."""
        return (self.channels * sum(height * width for height, width in self.sizes),)

    def levels(self, variable: Tensor) -> list[Tensor]:
        """The levels `(B, C, h, w)`, from fine to coarse."""
        parts = variable.split([self.channels * h * w for h, w in self.sizes], dim=1)
        return [
            part.reshape(len(variable), self.channels, *size)
            for part, size in zip(parts, self.sizes, strict=True)
        ]

    def latent(self, variable: Tensor) -> Tensor:
        """The sum of the enlarged levels."""
        first, *coarser = self.levels(variable)
        for level in coarser:
            first = first + resized(level, self.size)
        return first

    def from_latent(self, latent: Tensor) -> Tensor:
        """The levels whose sum is the latent image."""
        parts = []
        for size in reversed(self.sizes):
            part = resized(latent, size)
            parts.append(part.flatten(1))
            latent = latent - resized(part, self.size)
        return torch.cat(parts[::-1], dim=1)

    def start(self, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Noise on every level, so that the sum has the deviation of the other spaces."""
        noise: Tensor = super().start(generators, like) / len(self.sizes) ** 0.5
        return noise
