"""`ImageSet` loads images one at a time, from a folder or another source, or from a tensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from timmscope.images import Images, ImageSource, open_images
from timmscope.models import HookedModel
from timmscope_registry import ImageError


@dataclass(frozen=True)
class SetImage:
    """One preprocessed image, `(3, H, W)` in [0, 1], and its original size (width, height)."""

    image: Tensor
    size: tuple[int, int]


class ImageSet:
    """Images by number, with their names.

    Args:
        model: the model whose preprocessing is used.
        images: anything that `open_images` takes, or a tensor `(B, 3, H, W)` in [0, 1], which is
            not preprocessed.

    Raises:
        ImageError: there are no images.
    """

    def __init__(self, model: HookedModel, images: Images | Tensor) -> None:
        self._model = model
        self._tensor: Tensor | None = None
        self._source: ImageSource | None = None
        if isinstance(images, Tensor):
            self._tensor = model.images(images).detach()
            self.names = [str(number) for number in range(len(self._tensor))]
        else:
            self._source = open_images(images)
            self.names = list(self._source.paths)
        if not self.names:
            raise ImageError(f"{images!r} holds no image; name at least one")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> list[str | None] | None:
        """Label of every image; None if there are none."""
        labels = None if self._source is None else self._source.labels
        return None if labels is None else list(labels)

    @property
    def location(self) -> str:
        """Text that opens the images again; empty for a tensor or a source in memory."""
        return "" if self._source is None else self._source.location

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each preprocessed image."""
        if self._tensor is None:
            return self._model.input_size
        channels, height, width = self._tensor.shape[1:]
        return channels, height, width

    @property
    def pixels(self) -> int:
        """Number of pixels of each preprocessed image."""
        return self.shape[1] * self.shape[2]

    def load(self, number: int) -> SetImage:
        """Return one image.

        Raises:
            ImageError: it cannot be read.
        """
        if self._source is None:
            assert self._tensor is not None
            image = self._tensor[number]
            return SetImage(image, (image.shape[2], image.shape[1]))
        image, size = self._model.preprocessing.load(self._source, number)
        return SetImage(image.to(self._model.device), size)

    def fingerprint(self) -> str:
        """Return a digest of the images."""
        if self._source is not None:
            return self._source.fingerprint()
        assert self._tensor is not None
        values = self._tensor.cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(values).hexdigest()
