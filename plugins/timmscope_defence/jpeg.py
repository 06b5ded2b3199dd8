"""JPEG compression before the model."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from timmscope import DefenceTechnique, UnsupportedModel


class JPEG(DefenceTechnique):
    """JPEG compresses an image and decodes it again, which removes small changes.

    `x' = decode(encode(round(255 · x))) / 255`. Pillow encodes and decodes, with the chroma at half
    the resolution (4:2:0), as in most files, and the result is Pillow's, byte for byte. Values
    outside [0, 1] are clipped first. A gradient passes unchanged (straight-through), because
    rounding has no useful gradient of its own; an attack that follows this gradient breaks the
    defence (Athalye, Carlini & Wagner, ICML 2018, arXiv:1802.00420). Cost: about 2 ms per image of
    224×224.

    Paper:
        Guo, Rana, Cissé & van der Maaten, "Countering Adversarial Images using Input
        Transformations", ICLR 2018, arXiv:1711.00117.

    Raises:
        ImageError: the images are not in [0, 1].
        ObjectiveError: the model has no class of a label's name or index, or has no classes.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the images are changed in shape or leave [0, 1].
        UnsupportedModel: the model takes other than 1 or 3 channels.
    """

    backward = "identity"

    quality: int = Field(default=75, ge=1, le=100)
    """JPEG quality; the paper uses 75."""

    def transform(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Encode and decode each image `(C, H, W)`."""
        if images.shape[1] not in (1, 3):
            raise UnsupportedModel(
                f"jpeg compresses images of 1 or 3 channels, and these have {images.shape[1]}: use "
                "another defence"
            )
        levels = (images.float().clamp(0, 1) * 255).round().byte()
        pixels = levels.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
        decoded = np.stack([self._compressed(each) for each in pixels])
        return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images) / 255

    def _compressed(self, pixels: np.ndarray) -> np.ndarray:
        """Encode and decode an image `(H, W, C)` uint8."""
        file = io.BytesIO()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        picture.save(file, "JPEG", quality=self.quality)
        with Image.open(file) as read:
            return np.asarray(read).reshape(pixels.shape)
