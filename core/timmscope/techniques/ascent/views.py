"""Random views of an image, so that ascent does not end in patterns tied to the pixel grid.

Lucid pads, jitters, scales, rotates and jitters again, and resamples each time (Olah, Mordvintsev &
Schubert, Distill 2017, "transformation robustness"); here the five steps are composed into one
affine map, and the image is sampled once. MACO shows crops that become smaller, and noise.

In Lucid a scaled image has another size, which its network accepts. Resizing it back to the model's
input would undo the scaling; so here a view is a window of constant size, and scaling zooms the
image inside the window.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

REFERENCE_PX = 224
"""Image side that distances in pixels refer to; they scale with the image."""

_DRAWS = 6  # jitter y, x; scale; angle; fine jitter y, x
_GREY = 0.5


class Views(ABC):
    """Which views of an image the model sees at each step."""

    number: int = 1
    """Number of views of an image at each step."""
    normal_noise: float = 0.0
    """Standard deviation of the normal noise that is added to a view."""
    uniform_noise: float = 0.0
    """Largest uniform noise that is added to a view, to either side."""

    @property
    def identity(self) -> bool:
        """Whether every view is the image itself."""
        return False

    @abstractmethod
    def draw(self, steps: int, size: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
        """Affine maps `(steps, B, number, 2, 3)`, with one generator per image.

        A map takes a position in the view to the position in the image that it shows, both relative
        to the centre in units of half the height and width, x first.

        Args:
            steps: number of steps.
            size: height and width of the images in pixels.
            generators: one per image.
        """

    def noise(self, shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor | float:
        """Noise `(B · number, C, H, W)` of the views of a step, or 0.

        Args:
            shape: `(C, H, W)` of a view.
            generators: one per image.
        """
        total: Tensor | float = 0.0
        for scale, draw in ((self.normal_noise, _normal), (self.uniform_noise, _signed)):
            if scale:
                parts = [draw((self.number, *shape), own) for own in generators]
                total = total + scale * torch.cat(parts)
        return total


@dataclass(frozen=True)
class RandomViews(Views):
    """Pad with grey, jitter, scale, rotate, jitter, crop, and resize to the image's size.

    Attributes:
        pad_px: grey border on each side.
        jitter_px: width of the range of the first shift; the view is smaller by as much.
        scale: largest relative change of size; 0.1 means factors from 0.9 to 1.1.
        rotate_deg: largest angle to either side.
        fine_jitter_px: as `jitter_px`, after scaling and rotating.
        number: number of views of an image at each step.
    """

    pad_px: float = 12
    jitter_px: float = 8
    scale: float = 0.1
    rotate_deg: float = 10
    fine_jitter_px: float = 4
    number: int = 1

    @property
    def identity(self) -> bool:
        """Whether every view is the image itself."""
        return not any(
            (self.pad_px, self.jitter_px, self.scale, self.rotate_deg, self.fine_jitter_px)
        )

    def draw(self, steps: int, size: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
        """Affine maps `(steps, B, number, 2, 3)`."""
        shape = (steps, self.number, _DRAWS)
        draws = [torch.rand(shape, generator=generator) for generator in generators]
        return self.matrices(torch.stack(draws, dim=1) * 2 - 1, size)

    def matrices(self, draws: Tensor, size: tuple[int, int]) -> Tensor:
        """Affine maps `(…, 2, 3)` from draws `(…, 6)` in [-1, 1]; see `draw`."""
        height, width = size
        unit = min(size) / REFERENCE_PX
        factor = 1 + self.scale * draws[..., 2]
        angle = math.radians(self.rotate_deg) * draws[..., 3]
        first = draws[..., 0:2] * (self.jitter_px * unit / 2)  # y, x in pixels
        second = draws[..., 4:6] * (self.fine_jitter_px * unit / 2)
        # The padded image after both crops is resized to the image's size.
        border_px = (2 * self.pad_px - self.jitter_px - self.fine_jitter_px) * unit
        cos, sin = angle.cos() / factor, angle.sin() / factor
        half_height, half_width = height / 2, width / 2
        # In pixels from the centre:
        # image = rotation / factor · (view · window / side + second) + first
        y_zoom, x_zoom = (height + border_px) / height, (width + border_px) / width
        x_row = torch.stack(
            (
                cos * x_zoom,
                -sin * y_zoom * half_height / half_width,
                (cos * second[..., 1] - sin * second[..., 0] + first[..., 1]) / half_width,
            ),
            dim=-1,
        )
        y_row = torch.stack(
            (
                sin * x_zoom * half_width / half_height,
                cos * y_zoom,
                (sin * second[..., 1] + cos * second[..., 0] + first[..., 0]) / half_height,
            ),
            dim=-1,
        )
        return torch.stack((x_row, y_row), dim=-2)


@dataclass(frozen=True)
class CropViews(Views):
    """Square crops at random places, whose size shrinks over the steps, with noise.

    Attributes:
        number: number of crops of an image at each step.
        first_size: mean size of a crop at the first step, as a share of the image.
        last_size: the same at the last step.
        size_deviation: standard deviation of the size.
        size_range: largest further change of the size, uniform, to either side.
        centre_deviation: standard deviation of the centre from the middle, as a share.
        normal_noise: standard deviation of normal noise.
        uniform_noise: largest uniform noise, to either side.
    """

    number: int = 32
    first_size: float = 0.5
    last_size: float = 0.05
    size_deviation: float = 0.05
    size_range: float = 0.0
    centre_deviation: float = 0.15
    normal_noise: float = 0.08
    uniform_noise: float = 0.04

    def draw(self, steps: int, size: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
        """Affine maps `(steps, B, number, 2, 3)`; every crop lies within the image."""
        shape = (steps, self.number, 3)
        draws = torch.stack([torch.randn(shape, generator=own) for own in generators], dim=1)
        share = torch.linspace(self.first_size, self.last_size, steps)[:, None, None]
        share = share + self.size_deviation * draws[..., 0]
        if self.size_range:
            uniform = [_signed(shape[:2], own) for own in generators]
            share = share + self.size_range * torch.stack(uniform, dim=1)
        share = share.clamp(0.02, 1.0)
        room = (1 - share)[..., None]
        centre = (2 * self.centre_deviation * draws[..., 1:]).clamp(-room, room)
        zero = torch.zeros_like(share)
        x_row = torch.stack((share, zero, centre[..., 1]), dim=-1)
        y_row = torch.stack((zero, share, centre[..., 0]), dim=-1)
        return torch.stack((x_row, y_row), dim=-2)


def view(images: Tensor, matrices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Images `(B, C, H, W)` resampled by affine maps `(B, 2, 3)`; grey beyond their borders.

    Args:
        images: the images.
        matrices: one map per image; see `Views.draw`.
        size: height and width of the views in pixels; by default those of the images.
    """
    shape = [*images.shape[:2], *(images.shape[2:] if size is None else size)]
    grid = functional.affine_grid(matrices, shape, align_corners=False)
    sampled = functional.grid_sample(
        images - _GREY, grid, padding_mode="zeros", align_corners=False
    )
    return sampled + _GREY


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _signed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [-1, 1)."""
    return torch.rand(shape, generator=generator) * 2 - 1
