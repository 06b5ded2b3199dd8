"""Measures the error of a pass in lower precision against float32, on the data set's own images.

Before a pass in bfloat16 begins, its first images go through the model in both precisions. The rows
that the store keeps are compared layer by layer, and the manifest records the error, so that a
reader of the store can judge it and another run can reproduce it.
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

MAX_IMAGES = 32
"""Largest number of images that are compared."""


def precision_error(model: HookedModel, plan: Plan, source: ImageSource) -> PrecisionError | None:
    """Measure the error of a plan's precision against float32 on the first images.

    The error of a layer and kind of row is the root mean square of the difference, over all rows,
    divided by that of the values in float32: 0.01 means an error of 1 %. Values that are not finite
    in float32 are left out; the error is None if a value overflows only in the lower precision.

    Args:
        model: the model.
        plan: what to compute, in the precision to measure.
        source: the images; readable ones among the first 32, or the first batch if it is smaller,
            are compared.

    Returns:
        None if the plan's precision is float32, or if none of those images can be read.
    """
    if plan.precision == PRECISION:
        return None
    count = min(MAX_IMAGES, plan.batch_size, len(source))
    pixels = []
    for image_id in range(count):
        with suppress(Exception):  # the pass itself reports which image cannot be read, and why
            pixels.append(model.preprocessing.load(source, image_id)[0])
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
    """Return the RMS of the difference divided by that of `exact`; None if `values` overflow."""
    finite = np.isfinite(exact)
    wanted, got = exact[finite].astype(np.float64), values[finite].astype(np.float64)
    size, difference = (
        np.sqrt(np.mean([wanted**2, (got - wanted) ** 2], axis=1)) if len(got) else (0, 0)
    )
    if not np.isfinite(difference) or (difference and not size):
        return None
    return float(difference / size) if size else 0.0
