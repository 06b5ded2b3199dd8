"""Computes a layer's pooled activations of images, as a store holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from .hooked_model import HookedModel

_BATCH = 32


def pooled_features(
    model: HookedModel,
    images: Tensor,
    layer: str,
    *,
    precision: str = "float32",
    batch_size: int = _BATCH,
) -> npt.NDArray[np.float32]:
    """Average a layer's activation over its grid, `(B, C)` float32, as mining does.

    Args:
        model: the model.
        images: `(B, C, H, W)` in [0, 1].
        layer: name of the layer.
        precision: `float32` or `bfloat16`, as the store was mined.
        batch_size: images per forward.

    Raises:
        LayerNotFound: the model has no such layer.
        VectorIndexError: a feature is NaN or infinite.
    """
    point = model.layers[layer]
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        its_rows = image_rows(range(start, start + len(part)))
        with torch.inference_mode(), half, its_rows, model.record(point.name) as recording:
            model(part)
            parts.append(point.pooled(recording[point.name].float()).cpu().numpy())
    rows: npt.NDArray[np.float32] = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise VectorIndexError(
            f"{len(bad)} of {len(rows)} images have NaN or infinite features at {layer!r}, "
            f"the first is {bad[0]}"
        )
    return rows
