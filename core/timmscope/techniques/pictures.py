"""Makes a tensor of a picture: as a model takes it, or else at its own size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timmscope.images import array_to_rgb, open_image, to_rgb
from timmscope.models import HookedModel
from timmscope_registry import ImageError


def pictures_of(model: HookedModel | None, source: Any) -> Tensor:
    """Return images `(B, C, H, W)` in [0, 1]: as the model takes them, or else at their own size.

    Raises:
        ImageError: an image cannot be read, or is not RGB in [0, 1].
    """
    if model is not None:
        return model.images(source).detach()
    if isinstance(source, Tensor):
        batch = source.detach() if source.ndim == 4 else source.detach()[None]
        if batch.ndim != 4 or batch.shape[1] != 3 or not batch.is_floating_point():
            raise ImageError(
                f"images are {source.dtype} of shape {tuple(source.shape)}; expected float in "
                "[0, 1], (B, 3, H, W) or (3, H, W)"
            )
        low, high = (float(value) for value in torch.aminmax(batch))
        if not 0 <= low <= high <= 1:
            raise ImageError(f"images span {low:.3g} to {high:.3g}; expected [0, 1]")
        return batch.float().cpu()
    if isinstance(source, Image.Image):
        picture = to_rgb(source)
    elif isinstance(source, np.ndarray):
        picture = array_to_rgb(source)
    elif isinstance(source, str | Path):
        picture = open_image(source)
    else:
        raise ImageError(
            f"cannot make an image of {type(source).__name__}: pass a path, PIL picture, "
            "array (H, W, 3) or tensor (3, H, W)"
        )
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1)[None].contiguous()
