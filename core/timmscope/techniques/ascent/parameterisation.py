"""Parameterisations of an image: the variables that gradient ascent optimises.

The result of gradient ascent depends on the space of the variables. Ascent on pixels mostly adds
high frequencies. Ascent on Fourier coefficients, scaled like the spectrum of photographs (1/f), in
colours that are uncorrelated in photographs, finds shapes (Olah, Mordvintsev & Schubert, Distill
2017, "preconditioning"). Both spaces describe the same images; only the metric differs. A sigmoid
keeps every pixel within (0, 1). Further spaces are beside this module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

INITIAL_DEVIATION = 0.01
"""Standard deviation of the initial noise on the variables."""

FOURIER_GAIN = 0.25
"""Lucid's factor between the scaled spectrum and the latent image."""

REFERENCE_PX = 224
"""Side of the images for which the step sizes were tuned."""

# Square root of the covariance of RGB values over ImageNet (Lucid); rows are R, G, B.
_COLOUR_ROOT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))

# Initial images are clamped away from 0 and 1, whose logits are infinite.
_INIT_MARGIN = 0.01


def colour_matrix(like: Tensor) -> Tensor:
    """Matrix `(3, 3)` from uncorrelated colours to RGB, with its longest column of length 1."""
    root = torch.tensor(_COLOUR_ROOT, dtype=like.dtype, device=like.device)
    longest = root.square().sum(0).sqrt().amax()
    return root / longest


class Parameterisation(ABC):
    """Images `(B, C, H, W)` in (0, 1) as a function of a variable, and back.

    Args:
        size: height and width in pixels.
        decorrelate: the variable's three channels are uncorrelated colours, not RGB; without effect
            on images of another number of channels.
        channels: number of channels.
    """

    def __init__(self, size: tuple[int, int], *, decorrelate: bool, channels: int = 3) -> None:
        self.size = size
        self.channels = channels
        self.decorrelate = decorrelate and channels == 3

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the variable of one image."""

    def start(self, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        """Variables `(B, …)` to start from without an image, one per generator.

        Args:
            generators: draw the noise, so that an image does not depend on the others.
            like: a tensor on the device.
        """
        rows = [torch.randn(self.shape(), generator=own) for own in generators]
        return torch.stack(rows).to(like) * INITIAL_DEVIATION

    @abstractmethod
    def latent(self, variable: Tensor) -> Tensor:
        """The image `(B, C, H, W)` before colours and sigmoid; linear in the variable."""

    @abstractmethod
    def from_latent(self, latent: Tensor) -> Tensor:
        """The variable whose `latent` this is."""

    def image(self, variable: Tensor) -> Tensor:
        """Images `(B, C, H, W)` in (0, 1)."""
        latent = self.latent(variable)
        if self.decorrelate:
            latent = mixed(latent, colour_matrix(latent))
        return latent.sigmoid()

    def variable(self, images: Tensor) -> Tensor:
        """The variable of given images `(B, C, h, w)`, resized and clamped to [0.01, 0.99]."""
        images = resized(images, self.size)
        latent = images.clamp(_INIT_MARGIN, 1 - _INIT_MARGIN).logit()
        if self.decorrelate:
            latent = mixed(latent, torch.linalg.inv(colour_matrix(latent)))
        return self.from_latent(latent)


class PixelParameterisation(Parameterisation):
    """The variable is the image itself, before the sigmoid."""

    def shape(self) -> tuple[int, ...]:
        """`(C, H, W)`."""
        return (self.channels, *self.size)

    def latent(self, variable: Tensor) -> Tensor:
        """The variable."""
        return variable

    def from_latent(self, latent: Tensor) -> Tensor:
        """The latent image."""
        return latent


class FourierParameterisation(Parameterisation):
    """The variable holds Fourier coefficients, divided by their amplitude in photographs.

    `latent = gain · irfft2(variable · max(f, 1/max(H, W))^-decay_power)` with an orthonormal
    transform, `f` in cycles per pixel and `gain = ¼ · (224 / max(H, W))^(decay_power - 1)`: a step
    then changes the coarsest waves as much in a small image as in a large one. With a decay of 1
    this is Lucid's parameterisation.

    Args:
        size: height and width in pixels; either may be odd.
        decorrelate: see `Parameterisation`.
        decay_power: exponent of the amplitude's fall with frequency; 1 for photographs, larger for
            smoother images.
        channels: number of channels.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        decorrelate: bool,
        decay_power: float = 1.0,
        channels: int = 3,
    ) -> None:
        super().__init__(size, decorrelate=decorrelate, channels=channels)
        height, width = size
        vertical = torch.fft.fftfreq(height)[:, None]
        horizontal = torch.fft.rfftfreq(width)[None]
        frequency = (vertical.square() + horizontal.square()).sqrt()
        self.scale = frequency.clamp(min=1 / max(size)) ** -decay_power  # (H, W // 2 + 1)
        self.gain: float = FOURIER_GAIN * (REFERENCE_PX / max(size)) ** (decay_power - 1)

    def shape(self) -> tuple[int, ...]:
        """`(C, H, W // 2 + 1, 2)`, real and imaginary parts last."""
        height, width = self.size
        return (self.channels, height, width // 2 + 1, 2)

    def latent(self, variable: Tensor) -> Tensor:
        """Inverse transform of the scaled coefficients."""
        spectrum = torch.view_as_complex(variable) * self.scale.to(variable)
        image: Tensor = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return image * self.gain

    def from_latent(self, latent: Tensor) -> Tensor:
        """Transform, divided by the scale."""
        spectrum = torch.fft.rfft2(latent / self.gain, norm="ortho")
        variable: Tensor = torch.view_as_real(spectrum / self.scale.to(latent))
        return variable


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `(B, C, H, W)` at a size in pixels, by antialiased bilinear interpolation."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return functional.interpolate(
        images, size, mode="bilinear", antialias=True, align_corners=False
    )


def mixed(latent: Tensor, matrix: Tensor) -> Tensor:
    """Images `(B, C, H, W)` with their colours mixed by a matrix `(C, C)`."""
    colours: Tensor = torch.einsum("bchw,rc->brhw", latent, matrix)
    return colours
