"""Decodes a store's images again, as the model received them, in bounded memory."""

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
    """The images of a store by id, resized and cropped as in the pass; a few threads decode them.

    Args:
        store: the store.
        images: where its images are now; by default where they were during the pass.

    Attributes:
        lost: ids of requested images that can no longer be read.

    Raises:
        ImageError: the images are no longer there.
        StoreError: the images were in memory, and `images` is missing.
    """

    def __init__(self, store: Store, images: Images | None = None) -> None:
        from timmscope.models import Preprocessing

        self._source = store.source(images)
        self._preprocessing = Preprocessing.restored(store.manifest.model.preprocessing)
        self.lost: set[int] = set()

    def batches(self, ids: npt.ArrayLike) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Yield ids `(n,)` and images `(n, C, H, W)` in [0, 1], without images that are lost.

        Raises:
            ImageError: none of them can be read.
        """
        wanted = np.asarray(ids, np.int64)
        lost = 0
        for part, places, pictures in self._found(wanted.tolist()):
            lost += len(part) - len(places)
            if places:
                yield np.asarray(part, np.int64)[places], torch.stack(pictures)
        if lost and lost == len(wanted):
            raise ImageError(
                f"none of the {lost} images of the store can be read any more: say where they "
                "are now: location= in Python, --images on the command line"
            )

    def whole(self, ids: npt.ArrayLike) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Yield ids and images as `batches` does, but leave none out.

        Raises:
            ImageError: one of them can no longer be read.
        """
        for part, pictures in self._load(np.asarray(ids, np.int64).tolist(), self._read):
            yield np.asarray(part, np.int64), torch.stack(pictures)

    def thumbnails(self, ids: npt.ArrayLike, size: int = 128) -> Tensor:
        """Return small RGB pictures `(n, 3, size, size)` in [0, 1]; grey where an image is lost.

        Args:
            ids: `(n,)`; an id may occur more than once.
            size: side in pixels; every pixel is the mean of the area that it covers. A picture of
                one channel is repeated on all three.
        """
        distinct, inverse = np.unique(np.asarray(ids, np.int64), return_inverse=True)
        small = torch.full((len(distinct), 3, size, size), MISSING)
        done = 0
        for part, places, pictures in self._found(distinct.tolist()):
            if places:  # all at once: torch's threads cost more than the pixels of one image
                shrunk = functional.interpolate(torch.stack(pictures), (size, size), mode="area")
                small[[done + place for place in places]] = shrunk
            done += len(part)
        return small[torch.from_numpy(inverse.reshape(-1))]

    def _found(self, ids: Sequence[int]) -> Iterator[tuple[Sequence[int], list[int], list[Tensor]]]:
        """Yield runs of ids, the places in each run that can be read, and the images there."""
        for part, pictures in self._load(ids, self._read_or_none):
            found = {at: picture for at, picture in enumerate(pictures) if picture is not None}
            yield part, list(found), list(found.values())

    def _load(
        self, ids: Sequence[int], load: Callable[[int], T]
    ) -> Iterator[tuple[Sequence[int], list[T]]]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(ids), _BATCH):
                part = ids[start : start + _BATCH]
                yield part, list(pool.map(load, part))

    def _read(self, image_id: int) -> Tensor:
        picture, _ = self._preprocessing.load(self._source, image_id)
        return picture.clamp(0, 1)

    def _read_or_none(self, image_id: int) -> Tensor | None:
        try:
            return self._read(image_id)
        except ImageError:
            self.lost.add(image_id)
            return None
