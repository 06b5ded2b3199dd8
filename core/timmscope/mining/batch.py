"""Runs one batch of images through the model and reduces its activations to rows on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from timmscope.draws import image_positions
from timmscope_registry import UnsupportedModel

from .collector_errors import collector_errors, declared_rows
from .plan import Plan

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope_registry.hooks import Layer


def reduce_batch(
    model: HookedModel, plan: Plan, images: Tensor, start: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Run the model up to the last layer of the plan and return rows by layer and kind, (B, …).

    Args:
        model: the model.
        plan: what to compute.
        images: (B, C, H, W) in [0, 1].
        start: id of the first image, for messages and the draws of random defences.

    Raises:
        UnsupportedModel: a layer's shape varies with the images.
        PluginError: a collector failed, or returned other rows than it declared; the message names
            it, the layer and the images.
    """
    rows: dict[str, dict[str, Tensor]] = {}

    def reduce(layer: Layer) -> Callable[[Tensor], None]:
        def watch(activation: Tensor) -> None:
            if len(activation) != len(images):
                raise UnsupportedModel(
                    f"layer {layer.name} gave {len(activation)} rows for the {len(images)} images "
                    f"from {start} on; choose a layer of constant shape"
                )
            kinds = rows[layer.name] = {}
            for collector in plan.rows[layer.name]:
                with collector_errors(collector, layer.name, start, start + len(images)):
                    found = collector.reduce(layer, activation)
                    kinds.update(
                        declared_rows(found, plan.declared(layer.name, collector.name), len(images))
                    )

        return watch

    images = images.to(model.device, non_blocking=True)
    if plan.memory_format == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    # Reduced during the forward, while values are in the cache: no activation is copied or kept.
    with torch.inference_mode(), _deterministic(model, plan.precision):
        ids = image_positions(range(start, start + len(images)))
        with ids, model.watch({layer.name: reduce(layer) for layer in plan.layers}):
            model(images)
        return {
            layer.name: {kind: v.cpu().numpy() for kind, v in rows[layer.name].items()}
            for layer in plan.layers
        }


@contextmanager
def _deterministic(model: HookedModel, precision: str) -> Iterator[None]:
    """Choose kernels by shape alone, not by timing, so that a repeated pass is identical."""
    kind = model.device.type
    with ExitStack() as stack:
        if kind == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
            )
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
        yield
