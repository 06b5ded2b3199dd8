"""Scores perturbed copies of images, for techniques and metrics that compare such scores.

As many copies of one image as memory allows go through the model together, never with copies of
another image, so that a result is bit-identical whatever batch its image is in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope.progress import track
from timmscope.techniques.session import images_per_forward, noise_like

Baseline = Literal["grey", "mean", "zero", "blur", "noise"]
"""Replacement of removed pixels: grey 0.5, the model's mean colour (0 after normalisation), black,
the blurred image, or uniform noise."""

Make = Callable[[int, int], Tensor]


def perturbed_scores(
    model: HookedModel,
    image: Tensor,
    objective: Objective,
    count: int,
    make: Make,
    *,
    probability: bool = False,
    description: str = "perturbing",
    each: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Compute the scores of many variants of one image, without a graph.

    Args:
        model: the model.
        image: `(3, H, W)`; its size decides how many variants go through the model at once.
        objective: objective bound to this image (`objective.rows(i, i + 1)`).
        count: number of variants.
        make: `make(start, stop)` returns the variants of that range, `(stop - start, 3, H, W)`.
        probability: for a class, use its softmax probability instead of its logit; other
            objectives have no probability and keep their value.
        description: text of the progress bar.
        each: called with the scores of each range, in order.

    Returns:
        Scores `(count,)`, float32, or float64 if the model is.
    """
    passes = math.ceil(count / images_per_forward(model, image[None]))
    ends = [count * number // passes for number in range(passes + 1)]  # of equal size, nearly
    scores = []
    with torch.no_grad():
        for start, stop in track(list(itertools.pairwise(ends)), description):
            variants = make(start, stop)
            # Convolutions on CPUs are up to twice as fast with this memory format.
            variants = variants.contiguous(memory_format=torch.channels_last)
            scores.append(_score(model, variants, objective, probability))
            if each is not None:
                each(scores[-1])
    return torch.cat(scores)


def _score(model: HookedModel, images: Tensor, objective: Objective, probability: bool) -> Tensor:
    with model.record(*objective.points) as recording:
        model(images)
    if not (probability and objective.classes):
        return objective(recording)
    logits = recording["logits"]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.softmax(1)[:, objective.classes[0]]


def baseline_images(
    model: HookedModel, images: Tensor, kind: Baseline, *, sigma_px: float = 8.0
) -> Tensor:
    """Return images without content, `(B, 3, H, W)` in [0, 1].

    Args:
        model: model that gives the colour of `mean`.
        images: `(B, 3, H, W)` in [0, 1].
        kind: kind of baseline; noise is drawn per image from the running call's seed.
        sigma_px: standard deviation of the Gaussian of `blur`, in pixels.
    """
    if kind == "noise":
        return noise_like(images, "uniform")
    if kind == "blur":
        return gaussian_blur(images, sigma_px)
    if kind == "mean":
        colour = torch.tensor(model.mean, dtype=images.dtype, device=images.device)
        return colour[:, None, None].expand_as(images).clone()
    return torch.full_like(images, {"grey": 0.5, "zero": 0.0}[kind])


def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """Blur images with a Gaussian of that standard deviation, cut at 3σ, mirrored at the edges."""
    from torchvision.transforms.v2.functional import gaussian_blur as blur

    reach = math.ceil(3 * sigma_px)
    kernel = [2 * min(reach, side - 1) + 1 for side in images.shape[:-3:-1]]  # x, then y
    blurred: Tensor = blur(images, kernel, [sigma_px, sigma_px])
    return blurred.clamp(0, 1)
