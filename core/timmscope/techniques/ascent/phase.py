"""Images of a given spectrum, of which only the phase is free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from timmscope.techniques.ascent.parameterisation import (
    Parameterisation,
    colour_matrix,
    mixed,
)

_STEADY = 1e-4
"""Added to a deviation that values are divided by."""


class PhaseParameterisation(Parameterisation):
    """The variable holds the phase of each wave; the magnitudes stay as they are.

    `latent = irfft2(magnitude · exp(i · phase))`, orthonormal. With `standardise`, phase and latent
    image have mean 0 and deviation 1 first, as in MACO (Fel et al., NeurIPS 2023,
    arXiv:2306.06805); without, a photograph's magnitude and phase give back the photograph.

    Args:
        size: height and width in pixels.
        magnitude: `(C, H, W // 2 + 1)` for all images, or `(B, C, H, W // 2 + 1)` for each.
        decorrelate: see `Parameterisation`; the magnitude is of such colours.
        standardise: whether to standardise phase and latent image.
    """

    def __init__(
        self,
        size: tuple[int, int],
        magnitude: Tensor,
        *,
        decorrelate: bool,
        standardise: bool = True,
    ) -> None:
        super().__init__(size, decorrelate=decorrelate, channels=magnitude.shape[-3])
        self.magnitude = magnitude
        self._standardise = standardise

    def shape(self) -> tuple[int, ...]:
        """`(C, H, W // 2 + 1)`."""
        return tuple(self.magnitude.shape[-3:])

    def start(self, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Random phases."""
        rows = [torch.randn(self.shape(), generator=own) for own in generators]
        return torch.stack(rows).to(like)

    def latent(self, variable: Tensor) -> Tensor:
        """The inverse transform of the spectrum."""
        phase = _standardised(variable) if self._standardise else variable
        magnitude = self.magnitude.to(phase)
        spectrum = torch.polar(magnitude.expand_as(phase).contiguous(), phase)
        latent: Tensor = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return _standardised(latent) if self._standardise else latent

    def from_latent(self, latent: Tensor) -> Tensor:
        """The phases of a latent image."""
        phase: Tensor = torch.fft.rfft2(latent, norm="ortho").angle()
        return phase


def mean_spectrum(images: Iterable[Tensor], size: tuple[int, int], *, decorrelate: bool) -> Tensor:
    """Mean magnitude `(C, H, W // 2 + 1)` of the waves of photographs, orthonormal.

    It is measured at the images' own size, and a wave of the result has the magnitude of the wave
    of as many pixels: photographs have the same spectrum at every scale (Field, JOSA A 1987).

    Args:
        images: images `(C, h, w)` in [0, 1], all of one size.
        size: height and width of the result in pixels.
        decorrelate: whether to measure colours that are uncorrelated in photographs, not RGB.

    Raises:
        ValueError: there is no image.
    """
    total, count, width = torch.zeros(()), 0, 0
    for image in images:
        picture = image[None].float()
        if decorrelate and picture.shape[1] == 3:
            picture = mixed(picture, torch.linalg.inv(colour_matrix(picture)))
        total = total + torch.fft.rfft2(picture, norm="ortho").abs().double()[0].cpu()
        count, width = count + 1, image.shape[2]
    if not count:
        raise ValueError("there is no image to measure a spectrum of")
    return _at_size((total / count).float(), width, size)


def _at_size(magnitude: Tensor, width: int, size: tuple[int, int]) -> Tensor:
    """Magnitudes `(C, h, w // 2 + 1)` of images of a width, at the frequencies of another size."""
    height = magnitude.shape[1]
    if (height, width) == tuple(size):
        return magnitude
    magnitude = magnitude.clone()
    magnitude[:, 0, 0] = magnitude[:, 0, 1]  # the mean colour is no wave
    ordered = torch.fft.fftshift(magnitude, dim=1)  # row height // 2 is frequency 0
    rows = torch.fft.fftfreq(size[0]) * height + height // 2
    columns = torch.fft.rfftfreq(size[1]) * width
    y = rows / (height - 1) * 2 - 1
    x = columns / (magnitude.shape[2] - 1) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    found: Tensor = functional.grid_sample(
        ordered.clamp(min=1e-12).log()[None], grid[None], padding_mode="border", align_corners=True
    )[0]
    return found.exp()


def falling_spectrum(size: tuple[int, int], channels: int = 3) -> Tensor:
    """Magnitudes `(C, H, W // 2 + 1)` that fall as 1/f, as they do in photographs on average."""
    vertical = torch.fft.fftfreq(size[0])[:, None]
    horizontal = torch.fft.rfftfreq(size[1])[None]
    frequency = (vertical.square() + horizontal.square()).sqrt()
    falling: Tensor = 1 / frequency.clamp(min=1 / max(size))
    return falling.expand(channels, -1, -1)


def _standardised(values: Tensor) -> Tensor:
    """The values of each image with mean 0 and deviation 1."""
    axes = tuple(range(1, values.ndim))
    centred = values - values.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + _STEADY)
