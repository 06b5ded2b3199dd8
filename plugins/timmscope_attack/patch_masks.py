"""Shapes of adversarial patches, at a given number of pixels, and the places that they may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Shape = Literal["disc", "square", "eyeglasses", "stickers"]
"""`disc` and `square`, anywhere in the image; `eyeglasses`, frames where the eyes of an aligned
face are; `stickers`, two bars above and below the middle, as on a sign."""
Form = Shape | Literal["own"]
"""`own` is a mask that the user has drawn, where it was drawn."""


@dataclass(frozen=True)
class _Form:
    """A shape and how it may be placed.

    Attributes:
        covers: whether a place (x, y) in units of the shape's size is covered.
        reach: largest x and y that are covered.
        turn_deg: largest rotation to either side.
        smallest: smallest scale; the largest is 1.
        home: x and y of the centre in [-1, 1]; None for anywhere in the image.
        jitter: largest shift from there, in units of half a side.
    """

    covers: Callable[[Tensor, Tensor], Tensor]
    reach: tuple[float, float]
    turn_deg: float
    smallest: float
    home: tuple[float, float] | None
    jitter: float = 0.05


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return x**2 + y**2 <= 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() <= 1) & (y.abs() <= 1)


def _eyeglasses(x: Tensor, y: Tensor) -> Tensor:
    radius = ((x.abs() - 1.25) ** 2 + y**2).sqrt()
    rims = (radius <= 1) & (radius >= 0.72)
    bridge = (x.abs() <= 0.45) & (y.abs() <= 0.14)
    temples = (x.abs() >= 2.1) & (x.abs() <= 2.9) & (y.abs() <= 0.14)
    return rims | bridge | temples


def _stickers(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() <= 2) & ((y.abs() - 1.2).abs() <= 0.5)


_FORMS: dict[str, _Form] = {
    "disc": _Form(_disc, (1.0, 1.0), 45.0, 0.7, None),
    "square": _Form(_square, (1.0, 1.0), 22.5, 0.7, None),
    "eyeglasses": _Form(_eyeglasses, (2.9, 1.0), 5.0, 0.95, (0.0, -0.25)),
    "stickers": _Form(_stickers, (2.0, 1.7), 5.0, 0.95, (0.0, 0.0)),
    "own": _Form(_square, (1.0, 1.0), 5.0, 0.95, (0.0, 0.0)),
}


def patch_mask(shape: Shape, size: tuple[int, int], pixels: int) -> Tensor:
    """Return 1 where a shape in the middle of an image covers it, `(1, H, W)`.

    It is as large as fits into the image and covers at most `pixels` pixels.
    """
    form, (height, width) = _FORMS[shape], size
    y = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
    x = (torch.arange(width) - (width - 1) / 2).expand(height, width)
    low, high = 0.0, min(width / 2 / form.reach[0], height / 2 / form.reach[1])
    covered = form.covers(x / high, y / high)
    if int(covered.sum()) > pixels:
        covered = torch.zeros(height, width, dtype=torch.bool)
        for _ in range(40):
            middle = (low + high) / 2
            tried = form.covers(x / middle, y / middle)
            if int(tried.sum()) <= pixels:
                low, covered = middle, tried
            else:
                high = middle
    return covered.float()[None]


def patch_places(
    shape: Form,
    mask: Tensor,
    generators: list[torch.Generator],
    *,
    scale: float | None = None,
) -> Tensor:
    """Draw a place for each image: maps `(B, 2, 3)` for `functional.affine_grid`.

    Args:
        shape: the shape.
        mask: `(1, H, W)`, the shape in the middle of an image.
        generators: one for each image.
        scale: side of the shape as a share of its own; by default it is drawn too.
    """
    form, (height, width) = _FORMS[shape], mask.shape[1:]
    rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    half_y = max(1.0, float(rows.max() - rows.min() + 1) / 2) if len(rows) else 1.0
    half_x = max(1.0, float(columns.max() - columns.min() + 1) / 2) if len(columns) else 1.0
    numbers = torch.stack([torch.rand(4, generator=each) for each in generators]).double()
    scales = form.smallest + (1 - form.smallest) * numbers[:, 0]
    if scale is not None:
        scales = torch.full_like(scales, scale)
    angle = math.radians(form.turn_deg) * (2 * numbers[:, 1] - 1)
    cos, sin = angle.cos(), angle.sin()
    if form.home is None:
        # As far from the middle as the turned shape fits into the image.
        room_x = (width / 2 - scales * (half_x * cos.abs() + half_y * sin.abs())).clamp(min=0)
        room_y = (height / 2 - scales * (half_x * sin.abs() + half_y * cos.abs())).clamp(min=0)
        at_x, at_y = (2 * numbers[:, 2] - 1) * room_x, (2 * numbers[:, 3] - 1) * room_y
    else:
        at_x = (form.home[0] + form.jitter * (2 * numbers[:, 2] - 1)) * width / 2
        at_y = (form.home[1] + form.jitter * (2 * numbers[:, 3] - 1)) * height / 2
    # From the image, in pixels from the middle, to the patch: R(-angle) (p - at) / scale.
    cos, sin = cos / scales, sin / scales
    x_row = torch.stack([cos, sin * height / width, -(cos * at_x + sin * at_y) / (width / 2)], 1)
    y_row = torch.stack([-sin * width / height, cos, (sin * at_x - cos * at_y) / (height / 2)], 1)
    return torch.stack([x_row, y_row], 1).float()


def pasted(images: Tensor, patch: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """Return images with a patch at a place each; differentiable in the patch.

    Args:
        images: `(B, C, H, W)` in [0, 1].
        patch: `(C, H, W)`, 0 where the mask is 0.
        mask: `(1, H, W)`.
        places: `(B, 2, 3)`.
    """
    layers = torch.cat([patch, mask.to(patch)])
    grid = functional.affine_grid(
        places.to(images), [len(images), len(layers), *images.shape[2:]], align_corners=False
    )
    placed = functional.grid_sample(
        layers.expand(len(images), -1, -1, -1), grid, padding_mode="zeros", align_corners=False
    )
    covered = placed[:, -1:].clamp(0, 1)
    return (images * (1 - covered) + placed[:, :-1]).clamp(0, 1)
