"""Views of an image as a camera may see it: turned, zoomed, lit, or printed and photographed.

Expectation over transformation averages gradients over such views. Each image has a view of its
own, drawn from its own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import gaussian_blur, noise_like, technique
from timmscope_attack.view_gradient import View

Views = Literal["identity", "camera", "print"]
"""`identity`, the image itself; `camera`, it is turned, zoomed, shifted and lit; `print`, it is
printed and photographed."""

_GREY = 0.5
"""What lies beyond the borders of an image."""
_GAMUT = (0.04, 0.96)
"""Darkest and brightest value that a printer reaches."""
_REFERENCE_PX = 224
"""Side of the images that lengths in pixels refer to; they grow with the image."""


def draw_views(kind: Views, images: Tensor, generators: list[torch.Generator]) -> View:
    """Draw one view for each image.

    - `camera` (Athalye, Engstrom, Ilyas & Kwok, ICML 2018, arXiv:1707.07397): a zoom of 0.9 to 1.4,
      a rotation of up to 22.5° and a shift of up to 10 % of the side; then up to 0.05 more or less
      light, and normal noise of standard deviation 0 to 0.1.
    - `print` (after Kurakin, Goodfellow & Bengio, ICLR Workshop 2017, arXiv:1607.02533, who
      photographed prints): values are clipped to what a printer reaches, with a gamma of 0.8 to
      1.2; each channel is brighter or darker by up to 10 %; the corners move by up to 10 % of the
      side, as in a photograph from an angle; a blur of up to 1 px (at 224×224); a photograph of 50
      to 100 % of the resolution; noise of standard deviation 0 to 0.03; JPEG of quality 50 to 95,
      through which the gradient passes unchanged.

    Args:
        kind: which views.
        images: `(B, C, H, W)`, of which only size and dtype matter.
        generators: one for each image.

    Returns:
        A function from images `(B, C, H, W)` in [0, 1] to their views, of the same shape and in
        [0, 1]; differentiable.
    """
    return _KINDS[kind](images, generators)


def _identity(images: Tensor, generators: list[torch.Generator]) -> View:
    return lambda seen: seen


def _camera(images: Tensor, generators: list[torch.Generator]) -> View:
    numbers = torch.stack([torch.rand(6, generator=each) for each in generators])  # (B, 6)
    signed = 2 * numbers - 1
    zoom, angle = 0.9 + 0.5 * numbers[:, 0], math.radians(22.5) * signed[:, 1]
    height, width = images.shape[2:]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    shift = 0.2 * signed[:, 2:4]  # in units of half a side
    maps = torch.stack(
        [
            torch.stack([cos, -sin * height / width, shift[:, 0]], 1),
            torch.stack([sin * width / height, cos, shift[:, 1]], 1),
        ],
        1,
    )
    light = (0.05 * signed[:, 4]).view(-1, 1, 1, 1).to(images)
    noise = noise_like(images, "normal", generators)
    noise = noise * (0.1 * numbers[:, 5]).view(-1, 1, 1, 1).to(images)
    grid = functional.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return lambda seen: (_sampled(seen, grid) + light + noise).clamp(0, 1)


def _print(images: Tensor, generators: list[torch.Generator]) -> View:
    drawn = [_one_print(image[None], each) for image, each in zip(images, generators, strict=True)]

    def view(seen: Tensor) -> Tensor:
        pairs = zip(seen, drawn, strict=True)
        return torch.cat([printed(image[None]) for image, printed in pairs])

    return view


def _one_print(image: Tensor, generator: torch.Generator) -> View:
    """Draw a print and its photograph for an image `(1, C, H, W)`."""
    channels, height, width = image.shape[1:]
    gamma, blur, share, sd, quality = torch.rand(5, generator=generator).tolist()
    colour = torch.rand(channels, generator=generator)
    corners = torch.rand(4, 2, generator=generator)
    noise = noise_like(image, "normal", [generator]) * (0.03 * sd)
    gain = (0.9 + 0.2 * colour).view(1, -1, 1, 1).to(image)
    grid = _homography(2 * corners - 1, (height, width)).to(image)
    sigma = blur * min(height, width) / _REFERENCE_PX
    small = [max(1, round(side * (0.5 + 0.5 * share))) for side in (height, width)]
    make: Any = technique("timmscope:jpeg")
    jpeg = make(quality=50 + round(45 * quality))

    def view(seen: Tensor) -> Tensor:
        printed = seen.clamp(*_GAMUT).pow(0.8 + 0.4 * gamma) * gain
        photo = _sampled(printed, grid)
        photo = gaussian_blur(photo, sigma) if sigma > 0 else photo
        photo = functional.interpolate(photo, small, mode="bilinear", antialias=True)
        photo = functional.interpolate(photo, [height, width], mode="bilinear")
        photo = (photo + noise).clamp(0, 1)
        kept = photo.detach()
        compressed: Tensor = jpeg.transform(kept, [generator])
        straight: Tensor = photo + (compressed - kept)
        return straight

    return view


def _homography(moves: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the grid `(1, H, W, 2)` of a plane whose corners move, each by at most 10 %.

    Args:
        moves: `(4, 2)` in [-1, 1], x and y of the move of each corner.
        size: height and width.
    """
    seen = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    shown = seen + 0.2 * moves.double()  # in units of half a side
    equations, values = [], []
    for (x, y), (u, v) in zip(seen.tolist(), shown.tolist(), strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solved = torch.linalg.solve(
        torch.tensor(equations, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    )
    plane = torch.cat([solved, solved.new_ones(1)]).view(3, 3)
    height, width = size
    steps = (torch.arange(side, dtype=torch.float64) for side in size)
    down, across = ((2 * step + 1) / side - 1 for step, side in zip(steps, size, strict=True))
    points = torch.stack(
        [
            across.expand(height, width),
            down[:, None].expand(height, width),
            torch.ones(height, width, dtype=torch.float64),
        ],
        -1,
    )
    mapped = points @ plane.T
    return (mapped[..., :2] / mapped[..., 2:])[None]


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Return images at the places of a grid; grey beyond their borders."""
    sampled = functional.grid_sample(
        images - _GREY, grid, padding_mode="zeros", align_corners=False
    )
    return sampled + _GREY


_KINDS: dict[str, Callable[[Tensor, list[torch.Generator]], View]] = {
    "identity": _identity,
    "camera": _camera,
    "print": _print,
}
