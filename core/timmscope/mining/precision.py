"""How far a pass in lower precision is from float32, measured on images of the data set itself.

Before a pass in bfloat16 begins, its first images go through the model in both precisions. What
the store will keep of them is compared layer by layer, and the error is written into the manifest:
a number that a reader of the store can weigh, and that another run finds again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from timmscope.images import ImageSource
from timmscope.store.manifest import PrecisionError

from .batch import reduce_batch
from .plan import PRECISION, Plan

if TYPE_CHECKING:
    from timmscope.models import HookedModel

IMAGES = 32
"""Images compared, at most."""


def precision_error(model: HookedModel, plan: Plan, source: ImageSource) -> PrecisionError | None:
    """Measure the error of a plan's precision against float32 on the first images.

    For each layer and kind of row the root of the mean squared difference, divided by the root of
    the mean squared value in float32: 0.01 is an error of 1 %, as large in all rows together.
    Values that are not finite in float32 are left out; None stands where one is finite there and
    not in the lower precision.

    Args:
        model: the model.
        plan: what to compute, in the precision to judge.
        source: the images; of the first 32, or of the first batch if that is smaller, those count
            that can be read.

    Returns:
        None where the plan's precision is float32, or none of those images can be read.
    """
    if plan.precision == PRECISION:
        return None
    count = min(IMAGES, plan.batch_size, len(source))
    pixels = []
    for image_id in range(count):
        with suppress(Exception):  # the pass itself says which image cannot be read, and why
            pixels.append(model.preprocess(source.load(image_id)))
    if not pixels:
        return None
    images = torch.stack(pixels)
    run = plan.folded or model
    low = reduce_batch(run, plan, images)
    full = reduce_batch(run, replace(plan, precision=PRECISION), images)
    return PrecisionError(
        images=len(images),
        layers={
            layer: {
                kind: relative_error(low[layer][kind], rows)
                for kind, rows in kinds.items()
                if rows.dtype.kind == "f"
            }
            for layer, kinds in full.items()
        },
    )


def relative_error(values: np.ndarray, exact: np.ndarray) -> float | None:
    """Root mean square of the difference over that of the exact values; None where it overflows."""
    finite = np.isfinite(exact)
    wanted, got = exact[finite].astype(np.float64), values[finite].astype(np.float64)
    size, difference = (
        np.sqrt(np.mean([wanted**2, (got - wanted) ** 2], axis=1)) if len(got) else (0, 0)
    )
    if not np.isfinite(difference) or (difference and not size):
        return None
    return float(difference / size) if size else 0.0
