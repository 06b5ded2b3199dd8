"""A quilt of blocks of a source image, and the search for the next block.

The squared error of every window of the source is a correlation, which an FFT computes for all
windows at once: `Σ (s - q)² = Σ s² - 2 Σ s·q + Σ q²`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope_style.minimum_cut import cut_error, minimum_cut, straight_error

Array = npt.NDArray[np.float64]


def overlap_of(block: int) -> int:
    """Return the overlap of two blocks in pixels: a sixth of their side, as in the paper."""
    return max(1, round(block / 6))


def starts(length: int, block: int) -> range:
    """Return where blocks begin so that they cover a length, with their overlaps."""
    overlap = overlap_of(block)
    return range(0, max(length - overlap, 1), block - overlap)


@dataclass(frozen=True)
class Quilt:
    """A canvas on which blocks are placed in raster order.

    Attributes:
        pixels: `(H, W, C)`, as large as whole blocks need.
        origin: `(2, H, W)` row and column in the source of each pixel.
        block: side of a block in pixels.
    """

    pixels: Array
    origin: npt.NDArray[np.int64]
    block: int

    @classmethod
    def empty(cls, height: int, width: int, channels: int, block: int) -> Quilt:
        """Return a canvas for `height × width` pixels."""
        rows, columns = (starts(side, block)[-1] + block for side in (height, width))
        pixels = np.zeros((rows, columns, channels))
        return cls(pixels, np.zeros((2, rows, columns), np.int64), block)

    def continuations(self, at: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the windows that continue the block on the left, or the one above, in the source.

        Args:
            at: row and column of a place.

        Returns:
            Row and column of each window, which may be outside the source.
        """
        top, left = at
        half, found = self.block // 2, []
        if left:
            row, column = self.origin[:, top + half, left].tolist()
            found.append((row - half, column))
        if top:
            row, column = self.origin[:, top, left + half].tolist()
            found.append((row, column - half))
        return found

    def place(
        self, source: Array, window: tuple[int, int], at: tuple[int, int]
    ) -> Iterator[tuple[float, float]]:
        """Join a block of the source to the blocks above and on the left, along the best cuts.

        Args:
            source: `(h, w, C)`.
            window: row and column of the block in the source.
            at: row and column of its place.

        Yields:
            Squared error of each cut, and of the best straight seam in its place.
        """
        block, overlap = self.block, overlap_of(self.block)
        (row, column), (top, left) = window, at
        new = source[row : row + block, column : column + block]
        here = (slice(top, top + block), slice(left, left + block))
        errors = np.square(self.pixels[here] - new).sum(2)
        is_new = np.ones((block, block), bool)
        lines = np.arange(overlap)
        if left:
            across = errors[:, :overlap]
            path = minimum_cut(across)
            is_new[:, :overlap] &= lines >= path[:, None]
            yield cut_error(across, path), straight_error(across)
        if top:
            down = errors[:overlap].T
            path = minimum_cut(down)
            is_new[:overlap] &= (lines >= path[:, None]).T
            yield cut_error(down, path), straight_error(down)
        self.pixels[here][is_new] = new[is_new]
        places = np.mgrid[row : row + block, column : column + block]
        self.origin[(slice(None), *here)][:, is_new] = places[:, is_new]


class Windows:
    """All windows of a source, to be compared with what a block should be.

    Args:
        source: `(h, w, C)`.
        block: side of a window.
    """

    def __init__(self, source: Array, block: int) -> None:
        self._block = block
        self._sides = source.shape[0], source.shape[1]
        self._shape = _fast_length(self._sides[0]), _fast_length(self._sides[1])
        self._source = np.moveaxis(source, 2, 0)
        self._spectrum = self._transform(self._source)

    def products(self, wanted: Array) -> Array:
        """Return `Σ wanted · s` for each window s.

        Args:
            wanted: `(block, block, C)`.

        Returns:
            `(h - block + 1, w - block + 1)`, by the row and column of the window.
        """
        spectrum = self._transform(np.moveaxis(wanted, 2, 0)).conj()
        return self._windows((spectrum * self._spectrum).sum(0))

    def energies(self, weights: Array) -> Array:
        """Return `Σ weights · s²` for each window s; the same shape as `products`.

        Args:
            weights: `(block, block)`.
        """
        squares = self._transform(np.square(self._source).sum(0))
        return self._windows(self._transform(weights).conj() * squares)

    def _transform(self, values: Array) -> Any:
        """Return the real FFT over the last two axes, of rows before columns.

        A block has few rows, and `rfft` skips the rows that padding would add.
        """
        rows = np.fft.rfft(values, self._shape[1], axis=-1)
        return np.fft.fft(rows, self._shape[0], axis=-2)

    def _windows(self, spectrum: Any) -> Array:
        rows, columns = (side - self._block + 1 for side in self._sides)
        # Only the rows of windows are needed, so the inverse along columns comes first.
        along = np.fft.ifft(spectrum, axis=-2)[:rows]
        values: Array = np.fft.irfft(along, self._shape[1], axis=-1)[:, :columns]
        return values


def _fast_length(least: int) -> int:
    """Return the next length whose only prime factors are 2, 3 and 5, which an FFT likes."""
    for length in range(least, 2 * least + 1):
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
    raise AssertionError("a power of two lies between every number and its double")
