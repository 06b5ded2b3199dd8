"""Integrated gradients."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    AttributionTechnique,
    Baseline,
    HookedModel,
    Objective,
    baseline_images,
    images_per_pass,
)
from timmscope_attribution.colours import Reduction, reduce_colours

_SAME = 1e-6
"""Pixels this near to their baseline equal it: the rest is rounding, as of a blurred flat image."""


class IntegratedGradients(AttributionTechnique):
    """Integrated gradients (Sundararajan et al., ICML 2017): the path from a baseline, summed.

    `(I − I₀) · ∫₀¹ ∂S/∂I (I₀ + α(I − I₀)) dα` by Gauss–Legendre quadrature. The map sums to
    `S(I) − S(I₀)` (completeness), the better the more steps. As many points of the path go through
    at once as memory allows; they are summed, never kept.
    """

    steps: int = Field(default=50, ge=1, le=1000)
    """Points of the path where the gradient is taken."""
    baseline: Baseline = "zero"
    """Where the path begins: black (zero), grey, the model's mean colour, the image blurred, or
    uniform noise. What equals the baseline counts for nothing."""
    reduce: Reduction = "sum"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`."""
        begin = baseline_images(model, images, self.baseline)
        way = images - begin
        way = torch.where(way.abs() > _SAME, way, 0)
        places, shares = (
            torch.from_numpy((row + shift) / 2)
            for row, shift in zip(np.polynomial.legendre.leggauss(self.steps), (1, 0), strict=True)
        )
        total = torch.zeros_like(images)
        at_once = max(1, images_per_pass(model, images) // len(images))
        rounds = ceil(self.steps / at_once)
        for part in self.track(range(rounds)):
            here = slice(part * at_once, (part + 1) * at_once)
            alphas = places[here].to(images)[:, None, None, None, None]
            weights = shares[here].to(images)[:, None, None, None, None]
            points = (begin + alphas * way).flatten(0, 1)
            gradient = model.gradient(points, objective.repeated(len(alphas)))[1]
            total += (weights * gradient.view(-1, *images.shape)).sum(0)
        pixels = way * total
        with torch.no_grad():
            score = model.score(images, objective)
        return reduce_colours(pixels, self.reduce), score, pixels

    def why_zero(self) -> str:
        """No way, or no gradient on it."""
        return (
            f"the image is its own baseline ({self.baseline!r}: choose another), "
            "or the score does not change on the way"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
