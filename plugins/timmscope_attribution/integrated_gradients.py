"""Integrated gradients: the gradient summed along a straight path from a baseline image."""

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
"""A pixel this close to its baseline equals it: what is left is rounding, as after a blur."""


class IntegratedGradients(AttributionTechnique):
    """Integrated gradients sum the gradient along a straight path from a baseline to the image.

    `(I − I₀) · ∫₀¹ ∂S/∂I (I₀ + α(I − I₀)) dα`, with Gauss–Legendre quadrature for the integral. The
    map sums to `S(I) − S(I₀)` (completeness), with an error that falls with the number of steps. As
    many points of the path as fit in memory go through the model at once; gradients are summed,
    never kept.

    Paper:
        Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017,
        arXiv:1703.01365.

    Raises:
        ImageError: the images are not RGB in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the map is zero everywhere or not finite.
    """

    steps: int = Field(default=50, ge=1, le=1000)
    """Number of points on the path at which the gradient is evaluated."""
    baseline: Baseline = "zero"
    """Start of the path: black (zero), grey, the model's mean colour, the blurred image or uniform
    noise. Pixels that equal the baseline get 0."""
    reduce: Reduction = "sum"
    """How the three colours become one value: the signed sum, the largest magnitude, the length."""

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, H, W)`, scores `(B,)` and pixels `(B, 3, H, W)`."""
        start = baseline_images(model, images, self.baseline)
        difference = images - start
        difference = torch.where(difference.abs() > _SAME, difference, 0)
        nodes, weights = (
            torch.from_numpy((row + shift) / 2)
            for row, shift in zip(np.polynomial.legendre.leggauss(self.steps), (1, 0), strict=True)
        )
        total = torch.zeros_like(images)
        at_once = max(1, images_per_pass(model, images) // len(images))
        rounds = ceil(self.steps / at_once)
        for part in self.track(range(rounds)):
            here = slice(part * at_once, (part + 1) * at_once)
            alphas = nodes[here].to(images)[:, None, None, None, None]
            shares = weights[here].to(images)[:, None, None, None, None]
            points = (start + alphas * difference).flatten(0, 1)
            gradient = model.gradient(points, objective.repeated(len(alphas)))[1]
            total += (shares * gradient.view(-1, *images.shape)).sum(0)
        pixels = difference * total
        with torch.no_grad():
            score = model.score(images, objective)
        return reduce_colours(pixels, self.reduce), score, pixels

    def why_zero(self) -> str:
        """The image is its baseline, or the gradient along the path is zero."""
        return (
            f"the image is its own baseline ({self.baseline!r}: choose another), "
            "or the score does not change along the path"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
