"""Images that lie nowhere."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from timmscope import ImageError, ImageSource

SIDE = 32


class Gradients(ImageSource):
    """Drawn ramps: image i runs from left to right in channel i modulo 3, labelled by its name."""

    def __init__(self, location: str) -> None:
        if not location.isdecimal() or not int(location):
            raise ImageError(f"gradients:{location}: say how many, as in gradients:24")
        self._count = int(location)
        self.location = f"gradients:{location}"

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Image.Image:
        """Draw one."""
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[:, :, index % 3] = np.linspace(0, 255 - index % 64, SIDE).astype(np.uint8)
        return Image.fromarray(pixels)

    @property
    def paths(self) -> Sequence[str]:
        """Names by number."""
        return [f"gradient-{number:05d}" for number in range(self._count)]

    @property
    def labels(self) -> Sequence[str | None]:
        """The channel that runs."""
        return [("red", "green", "blue")[number % 3] for number in range(self._count)]

    def fingerprint(self) -> str:
        """The number is all there is."""
        return f"gradients-{self._count}-{SIDE}"
