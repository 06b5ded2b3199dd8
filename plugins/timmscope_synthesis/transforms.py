"""Random views: an image is shifted, scaled and rotated a little before the model sees it.

Without them, gradient ascent ends in patterns tied to the exact pixel grid (Olah, Mordvintsev &
Schubert, Distill 2017, "transformation robustness"). Lucid pads, jitters, scales, rotates and
jitters again, and resamples each time; here the five steps are composed into one affine map, and
the image is sampled once. Each image of a batch has its own view.

In Lucid a scaled image has another size, which its network accepts. Resizing it back to the model's
input would undo the scaling; so here a view is a window of constant size, and scaling zooms the
image inside the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

REFERENCE_PX = 224
"""Image side that distances in pixels refer to; they scale with the image."""

_DRAWS = 6  # jitter y, x; scale; angle; fine jitter y, x
_GREY = 0.5


@dataclass(frozen=True)
class RandomViews:
    """Pad with grey, jitter, scale, rotate, jitter, crop, and resize to the image's size.

    Attributes:
        pad_px: grey border on each side.
        jitter_px: width of the range of the first shift; the view is smaller by as much.
        scale: largest relative change of size; 0.1 means factors from 0.9 to 1.1.
        rotate_deg: largest angle to either side.
        fine_jitter_px: as `jitter_px`, after scaling and rotating.
    """

    pad_px: float = 12
    jitter_px: float = 8
    scale: float = 0.1
    rotate_deg: float = 10
    fine_jitter_px: float = 4

    @property
    def identity(self) -> bool:
        """Whether every view is the image itself."""
        return not any(
            (self.pad_px, self.jitter_px, self.scale, self.rotate_deg, self.fine_jitter_px)
        )

    def draw(self, steps: int, size: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
        """Affine maps `(steps, B, 2, 3)` for `functional.affine_grid`, with one generator per
        image."""
        draws = [torch.rand(steps, _DRAWS, generator=generator) for generator in generators]
        return self.matrices(torch.stack(draws, dim=1) * 2 - 1, size)

    def matrices(self, draws: Tensor, size: tuple[int, int]) -> Tensor:
        """Affine maps `(…, 2, 3)` from draws `(…, 6)` in [-1, 1].

        A map takes a position in the view to the position in the image that it shows, both relative
        to the centre in units of half the image's height and width, x first.
        """
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


def view(images: Tensor, matrices: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` resampled by affine maps `(B, 2, 3)`; grey beyond their borders."""
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    sampled = functional.grid_sample(
        images - _GREY, grid, padding_mode="zeros", align_corners=False
    )
    return sampled + _GREY
