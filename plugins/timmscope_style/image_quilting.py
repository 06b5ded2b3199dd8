"""Image quilting: textures, and pictures made of a texture, stitched from blocks of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from timmscope import ParameterError, StyleOutcome, StyleTechnique, image_generators
from timmscope_style.quilt import Array, Quilt, Windows, overlap_of, starts

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (Rec. 601)."""
_EXACT = 1e-9
"""Errors up to this share of the largest are taken for zero, since an FFT rounds."""


class ImageQuilting(StyleTechnique):
    """Image quilting stitches blocks of a texture, each chosen to fit its neighbours.

    Blocks are placed in raster order with an overlap. A block is drawn at random from those whose
    squared error in the overlap is at most `(1 + t)` times the least, and joined along the cut of
    least error: `E_ij = e_ij + min(E_i-1,j-1, E_i-1,j, E_i-1,j+1)`. With a content image, blocks
    must also resemble it: `error = α · overlap + (1 - α) · (luminance difference)²`, in several
    passes with `α_i = 0.8 (i - 1) / (N - 1) + 0.1` and blocks smaller by a third each. The
    content's luminance gets the mean and deviation of the style's first. No model is used. Every
    pixel of the result is a pixel of the style image, and the result says which.

    Paper:
        Efros & Freeman, "Image Quilting for Texture Synthesis and Transfer", SIGGRAPH 2001.

    Raises:
        ImageError: the images are neither RGB nor grey, or not in [0, 1].
        ParameterError: a parameter is out of range, the style image is smaller than a block, or
            there are several style images.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"content", "styles"})

    size: int = Field(256, ge=16, le=8192)
    """Height and width of a texture in pixels; the shorter side of a content image."""
    block_px: int = Field(36, ge=4, le=512)
    """Side of a block in pixels, of the first pass; as large as the largest feature of the
    texture."""
    tolerance: float = Field(0.1, ge=0)
    """A block is drawn from those with an error up to `1 + tolerance` times the least."""
    passes: int = Field(3, ge=1, le=8)
    """Number of passes over a content image; a texture needs one."""

    def stylize(
        self, model: Any, content: Tensor | None, styles: list[Tensor], weights: list[float]
    ) -> StyleOutcome:
        """Return the quilt and the source of each of its pixels.

        Raises:
            ParameterError: the style image is smaller than a block, or there are several.
        """
        if len(styles) != 1:
            raise ParameterError(
                f"{self.title()} takes one style image, not {len(styles)}", parameter="styles"
            )
        source = styles[0][0].permute(1, 2, 0).double().numpy()
        if min(source.shape[:2]) < self.block_px:
            raise ParameterError(
                f"the style image has {source.shape[1]}×{source.shape[0]} px, less than a block of "
                f"{self.block_px} px: give a larger image or a smaller block",
                parameter="block_px",
            )
        picture = None if content is None else self._scaled(content)
        height, width = (self.size, self.size) if picture is None else picture.shape[:2]
        (generator,) = image_generators(1)
        plans = [(self.block_px, 1.0)] if picture is None else list(self._plans())
        places = [
            (block, alpha, top, left)
            for block, alpha in plans
            for top in starts(height, block)
            for left in starts(width, block)
        ]
        before: Quilt | None = None
        quilt: Quilt | None = None
        for block, alpha, top, left in self.track(places, "quilting"):
            if (top, left) == (0, 0):
                before, quilt = quilt, Quilt.empty(height, width, source.shape[2], block)
                search = _Search(source, picture, block, alpha)
            assert quilt is not None
            errors = search.errors(quilt, before, (top, left))
            copies = quilt.continuations((top, left))
            window = _drawn(errors, copies, self.tolerance, generator)
            for _ in quilt.place(source, window, (top, left)):
                pass
        assert quilt is not None
        origin = torch.from_numpy(quilt.origin[:, :height, :width])
        image = styles[0][:, :, origin[0], origin[1]]
        copied = torch.cat([torch.zeros(1, height, width, dtype=torch.long), origin])
        return StyleOutcome(images=image, copied_from=copied[None])

    def _plans(self) -> Iterator[tuple[int, float]]:
        """Yield the side of a block and α of each pass over a content image."""
        for number in range(self.passes):
            alpha = 0.8 * number / (self.passes - 1) + 0.1 if self.passes > 1 else 0.1
            yield max(4, round(self.block_px * (2 / 3) ** number)), alpha

    def _scaled(self, content: Tensor) -> Array:
        height, width = content.shape[2:]
        scale = self.size / min(height, width)
        shape = (max(round(height * scale), self.size), max(round(width * scale), self.size))
        resized = torch.nn.functional.interpolate(
            content, shape, mode="bicubic", antialias=True, align_corners=False
        )
        return resized[0].clamp(0, 1).permute(1, 2, 0).double().numpy()


class _Search:
    """The errors of all windows for a place of the quilt, in one pass.

    Args:
        source: `(h, w, 3)`.
        picture: content `(H, W, 3)`, or None for a texture.
        block: side of a block.
        alpha: weight of the overlap beside the content.
    """

    def __init__(self, source: Array, picture: Array | None, block: int, alpha: float) -> None:
        self._windows, self._block = Windows(source, block), block
        self._energies: dict[tuple[bool, bool, bool], Array] = {}
        self._share, self._light_share = 1.0, 0.0
        if picture is not None:
            self._share, self._light_share = alpha / source.shape[2], 1 - alpha
            light = source @ _LUMA
            self._light = Windows(light[..., None], block).energies(np.ones((block, block)))
            short = [(0, starts(side, block)[-1] + block - side) for side in picture.shape[:2]]
            self._wanted = np.pad(_at_level_of(picture @ _LUMA, light), short, mode="edge")

    def errors(self, quilt: Quilt, before: Quilt | None, at: tuple[int, int]) -> Array:
        """Return the error of each window `(h - block + 1, w - block + 1)` at a place."""
        here = tuple(slice(start, start + self._block) for start in at)
        shared = self._shared(at)
        fitted = [(shared, quilt.pixels[here])]
        if before is not None:
            fitted.append((np.ones_like(shared), _cut_out(before.pixels, here)))
        linear = self._share * np.sum([w[..., None] * pixels for w, pixels in fitted], axis=0)
        constant = sum(float((w[..., None] * np.square(x)).sum()) for w, x in fitted)
        errors = self._share * (self._energy(at, fitted) + constant)
        if self._light_share:
            wanted = self._wanted[here]
            errors = errors + self._light_share * (self._light + float(np.square(wanted).sum()))
            linear = linear + self._light_share * wanted[..., None] * _LUMA
        return errors - 2 * self._windows.products(linear)

    def _shared(self, at: tuple[int, int]) -> Array:
        """Return 1 where a block overlaps those that are placed, else 0."""
        overlap = overlap_of(self._block)
        shared = np.zeros((self._block, self._block))
        shared[: overlap * (at[0] > 0)] = 1
        shared[:, : overlap * (at[1] > 0)] = 1
        return shared

    def _energy(self, at: tuple[int, int], fitted: list[tuple[Array, Array]]) -> Array:
        """Return the weighted squares of each window, which depend on the kind of place only."""
        kind = (at[0] > 0, at[1] > 0, len(fitted) > 1)
        if kind not in self._energies:
            weights = sum(weights for weights, _ in fitted)
            self._energies[kind] = self._windows.energies(np.asarray(weights))
        return self._energies[kind]


def _at_level_of(wanted: Array, light: Array) -> Array:
    """Return luminances with the mean and deviation of the source's.

    Without this, a dark picture in a light texture would have no contrast (Hertzmann et al., "Image
    Analogies", SIGGRAPH 2001, section 3.4).
    """
    scale = light.std() / max(float(wanted.std()), 1e-6)
    levelled: Array = (wanted - wanted.mean()) * scale + light.mean()
    return levelled


def _cut_out(pixels: Array, here: tuple[slice, ...]) -> Array:
    """Return a part of an image; beyond its edge, the pixels at the edge."""
    rows, columns = (
        np.minimum(np.arange(part.start, part.stop), side - 1)
        for part, side in zip(here, pixels.shape[:2], strict=True)
    )
    part: Array = pixels[rows[:, None], columns]
    return part


def _drawn(
    errors: Array, copies: list[tuple[int, int]], tolerance: float, generator: torch.Generator
) -> tuple[int, int]:
    """Draw a window from those with nearly the least error; return its row and column.

    The windows that continue a neighbour in the source always fit without an error. They may be
    drawn, but the least error is that of the others, or else the source would be copied whole.
    """
    others = errors.copy()
    for row, column in copies:
        if 0 <= row < len(others) and 0 <= column < others.shape[1]:
            others[row, column] = np.inf
    least = max(float(others.min()), 0.0) if np.isfinite(others).any() else 0.0
    limit = (1 + tolerance) * least + _EXACT * float(errors.max())
    candidates = np.flatnonzero(errors <= limit)
    chosen = int(torch.randint(len(candidates), (1,), generator=generator))
    row, column = divmod(int(candidates[chosen]), errors.shape[1])
    return row, column
