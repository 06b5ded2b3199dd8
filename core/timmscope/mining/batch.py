"""One batch through the model, reduced to rows on its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .plan import Plan

if TYPE_CHECKING:
    from timmscope.models import HookedModel


def reduce_batch(
    model: HookedModel, plan: Plan, images: Tensor
) -> dict[str, dict[str, np.ndarray]]:
    """Run the model as far as needed and return rows by layer and kind, reduced on its device.

    Args:
        model: the model.
        plan: what to compute.
        images: (B, C, H, W) in [0, 1].
    """
    names = [layer.name for layer in plan.layers]
    with torch.inference_mode(), _repeatable(model, plan.precision):
        with model.record(*names) as recording:
            model(images.to(model.device, non_blocking=True))
        rows = {
            layer.name: {
                kind: values
                for collector in plan.rows[layer.name]
                for kind, values in collector.reduce(layer, recording[layer.name]).items()
            }
            for layer in plan.layers
        }
        return {
            name: {kind: values.cpu().numpy() for kind, values in kinds.items()}
            for name, kinds in rows.items()
        }


@contextmanager
def _repeatable(model: HookedModel, precision: str) -> Iterator[None]:
    """Choose kernels by shape alone, not by a race between them, so that a repeat is identical."""
    kind = model.device.type
    with ExitStack() as stack:
        if kind == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
            )
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
        yield
