"""The images of an evaluation, from a folder or from memory, one at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from timmscope.images import Images, ImageSource, open_images
from timmscope.models import HookedModel
from timmscope_registry import ImageError


@dataclass(frozen=True)
class Subject:
    """One image as the model sees it, `(3, H, W)`, and its size before that, (width, height)."""

    image: Tensor
    size: tuple[int, int]


class Subjects:
    """Images by number, with their names.

    Args:
        model: whose preprocessing they go through.
        images: what `open_images` takes, or a tensor `(B, 3, H, W)` in [0, 1] taken as it is.

    Raises:
        ImageError: there are none.
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
    def pixels(self) -> int:
        """Pixels of each image as the model sees it."""
        if self._tensor is not None:
            return self._tensor.shape[2] * self._tensor.shape[3]
        return self._model.input_size[1] * self._model.input_size[2]

    def load(self, number: int) -> Subject:
        """One image.

        Raises:
            ImageError: it cannot be read.
        """
        if self._source is None:
            assert self._tensor is not None
            image = self._tensor[number]
            return Subject(image, (image.shape[2], image.shape[1]))
        picture = self._source.load(number)
        image = self._model.preprocess(picture).to(self._model.device)
        return Subject(image, picture.size)

    def fingerprint(self) -> str:
        """Changes when the images do."""
        if self._source is not None:
            return self._source.fingerprint()
        assert self._tensor is not None
        values = self._tensor.cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(values).hexdigest()
