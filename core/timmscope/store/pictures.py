"""A store's images as the model saw them, decoded again by a few threads, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from timmscope_registry import ImageError

if TYPE_CHECKING:
    from timmscope.images import Images

    from .store import Store

T = TypeVar("T")

_BATCH = 32
MISSING = 0.5
"""Grey value of an image that can no longer be read."""


class StorePictures:
    """The images of a store by id, resized and cropped as in the pass.

    Args:
        store: the store.
        images: where its images are now; by default where they were.

    Attributes:
        lost: ids of images that were asked for and could no longer be read.

    Raises:
        ImageError: the images are no longer there.
        StoreError: they were in memory, and `images` is missing.
    """

    def __init__(self, store: Store, images: Images | None = None) -> None:
        from timmscope.models import Preprocessing

        self._source = store.source(images)
        self._prepare = Preprocessing.restored(store.manifest.model.preprocessing)
        self.lost: set[int] = set()

    def batches(self, ids: npt.ArrayLike) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Yield ids `(n,)` and images `(n, C, H, W)` in [0, 1]; those that are lost are left out.

        Raises:
            ImageError: none of them can be read.
        """
        wanted = np.asarray(ids, np.int64)
        lost = 0
        for part, pictures in self._load(wanted.tolist(), self._picture):
            found = [at for at, picture in enumerate(pictures) if picture is not None]
            lost += len(part) - len(found)
            if found:
                images = torch.stack([picture for picture in pictures if picture is not None])
                yield np.asarray(part, np.int64)[found], images
        if lost and lost == len(wanted):
            raise ImageError(
                f"none of the {lost} images of the store can be read any more: say where they "
                "are now: location= in Python, --images on the command line"
            )

    def whole(self, ids: npt.ArrayLike) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Yield ids `(n,)` and images `(n, C, H, W)` in [0, 1] as `batches` does, but all of them.

        Raises:
            ImageError: one of them can no longer be read.
        """
        for part, pictures in self._load(np.asarray(ids, np.int64).tolist(), self._opened):
            yield np.asarray(part, np.int64), torch.stack(pictures)

    def thumbnails(self, ids: npt.ArrayLike, size: int = 128) -> Tensor:
        """Small RGB pictures `(n, 3, size, size)` in [0, 1]; grey where an image is lost.

        Args:
            ids: `(n,)`; an id may come twice.
            size: side in pixels; every pixel is the mean of the area that it covers.
        """
        wanted = np.asarray(ids, np.int64)
        distinct, back = np.unique(wanted, return_inverse=True)
        small = torch.full((len(distinct), 3, size, size), MISSING)
        place = 0
        for _, pictures in self._load(distinct.tolist(), self._picture):
            found = [at for at, picture in enumerate(pictures) if picture is not None]
            if found:
                images = torch.stack([picture for picture in pictures if picture is not None])
                small[[place + at for at in found]] = _shrunk(images, size)
            place += len(pictures)
        return small[torch.from_numpy(back.reshape(-1))]

    def _load(
        self, ids: Sequence[int], load: Callable[[int], T]
    ) -> Iterator[tuple[Sequence[int], list[T]]]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(ids), _BATCH):
                part = ids[start : start + _BATCH]
                yield part, list(pool.map(load, part))

    def _opened(self, number: int) -> Tensor:
        picture: Tensor = self._prepare(self._source.load(number))
        return picture.clamp(0, 1)

    def _picture(self, number: int) -> Tensor | None:
        try:
            return self._opened(number)
        except ImageError:
            self.lost.add(number)
            return None


def _shrunk(images: Tensor, size: int) -> Tensor:
    """Images `(n, C, H, W)` at `size` pixels a side; one channel becomes three by assignment.

    Many at once: torch's threads cost more than one image's pixels do.
    """
    return functional.interpolate(images, (size, size), mode="area")
