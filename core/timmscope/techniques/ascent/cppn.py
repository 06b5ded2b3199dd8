"""Images as a network from coordinates to colours (a compositional pattern-producing network)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from timmscope.techniques.ascent.parameterisation import Parameterisation
from timmscope_registry import ParameterError

_HALF = math.sqrt(3)
"""Coordinates go from -√3 to √3, and so have a deviation of 1."""


class CppnParameterisation(Parameterisation):
    """The variable holds the weights of a small network from a position to a colour.

    `layers` 1×1 convolutions of `width` channels, each followed by `atan(x) / 0.67` and
    `atan(x)² / 0.6` side by side; the last one gives the latent image. Images have smooth, sharp
    shapes at any size (Mordvintsev, Pezzotti, Schubert & Olah, "Differentiable Image
    Parameterizations", Distill 2018). The image cannot be turned back into weights.

    Args:
        size: height and width in pixels.
        channels: number of channels.
        layers: number of hidden layers.
        width: number of channels of each.
    """

    def __init__(
        self, size: tuple[int, int], *, channels: int = 3, layers: int = 8, width: int = 24
    ) -> None:
        super().__init__(size, decorrelate=False, channels=channels)
        inputs = [2] + [2 * width] * layers
        outputs = [width] * layers + [channels]
        self._shapes = list(zip(outputs, inputs, strict=True))
        rows = torch.linspace(-_HALF, _HALF, size[0])
        columns = torch.linspace(-_HALF, _HALF, size[1])
        self._grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[[1, 0]]  # x, y

    def shape(self) -> tuple[int, ...]:
        """`(number of weights and biases,)`."""
        return (sum(out * (inputs + 1) for out, inputs in self._shapes),)

    def start(self, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Weights N(0, 1/√in), biases 0; the last layer is 0, which is a grey image."""
        rows = []
        for own in generators:
            parts = []
            for number, (out, inputs) in enumerate(self._shapes):
                scale = 0.0 if number == len(self._shapes) - 1 else inputs**-0.5
                parts.append(torch.randn(out * inputs, generator=own) * scale)
                parts.append(torch.zeros(out))
            rows.append(torch.cat(parts))
        return torch.stack(rows).to(like)

    def latent(self, variable: Tensor) -> Tensor:
        """The networks' outputs at all positions."""
        count, (height, width) = len(variable), self.size
        x = self._grid.to(variable).expand(count, -1, -1, -1).flatten(2)
        used = 0
        for number, (out, inputs) in enumerate(self._shapes):
            weight = variable[:, used : used + out * inputs].reshape(count, out, inputs)
            used += out * inputs
            bias = variable[:, used : used + out, None]
            used += out
            x = torch.baddbmm(bias, weight, x)
            if number < len(self._shapes) - 1:
                bent = x.atan()
                x = torch.cat((bent / 0.67, bent.square() / 0.6), dim=1)
        return x.reshape(count, self.channels, height, width)

    def from_latent(self, latent: Tensor) -> Tensor:
        """Refuse: a network that draws a given image is not known.

        Raises:
            ParameterError: always.
        """
        raise ParameterError(
            "images of the parameterisation cppn cannot start from an image: leave init unset, or "
            "choose another parameterisation",
            parameter="parameterisation",
        )
