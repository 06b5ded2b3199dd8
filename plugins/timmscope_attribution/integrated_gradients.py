"""Integrated gradients: the gradient summed along a straight path from a baseline image."""

from __future__ import annotations

import warnings
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
    image_rows,
    images_per_pass,
)
from timmscope_attribution.colours import Reduction, reduce_colours

_SAME = 1e-6
"""A pixel this close to its baseline equals it: what is left is rounding, as after a blur."""
_MOST_STEPS = 1000


class IntegratedGradients(AttributionTechnique):
    """Integrated gradients sum the gradient along a straight path from a baseline to the image.

    `(I − I₀) · ∫₀¹ ∂S/∂I (I₀ + α(I − I₀)) dα`, with Gauss–Legendre quadrature for the integral. The
    pixels sum to `S(I) − S(I₀)` (completeness), with an error that falls with the number of steps.
    The note `completeness_error` has that error as a share of the difference, and
    `tolerance` doubles the steps of an image until it is small enough. As many points of the path
    as fit in memory go through the model at once; gradients are summed, never kept.

    Paper:
        Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017,
        arXiv:1703.01365.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the map is zero everywhere or not finite.
    """

    steps: int = Field(default=50, ge=1, le=_MOST_STEPS)
    """Number of points on the path at which the gradient is evaluated."""
    tolerance: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of the difference by which the sum may miss it: `steps` are doubled, up to
    1000, for each image that misses it by more. By default the steps stay as they are."""
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
        with torch.no_grad():
            score = model.score(images, objective)
            totals = score - model.score(start, objective)
        pixels = self._integral(model, start, difference, objective, self.steps)
        if self.tolerance is not None:
            rows = self._too_far(pixels, totals).nonzero().flatten().tolist()
            for row in self.track(rows, "more steps"):
                one, goal = slice(row, row + 1), objective.rows(row, row + 1)
                steps = self.steps
                while steps < _MOST_STEPS and bool(self._too_far(pixels[one], totals[one])):
                    steps = min(2 * steps, _MOST_STEPS)
                    with image_rows([row]):
                        wider = self._integral(model, start[one], difference[one], goal, steps)
                    pixels[one] = wider
            if left := int(self._too_far(pixels, totals).sum()):
                warnings.warn(
                    f"{_MOST_STEPS} steps leave {left} of {len(images)} images with a sum that is "
                    f"off by more than {self.tolerance:.1%}: see completeness_error, or choose "
                    "another baseline",
                    stacklevel=2,
                )
        wanted = totals.cpu().double()
        self.note("completeness_error", (self._missed(pixels, wanted) / wanted).abs())
        return reduce_colours(pixels, self.reduce), score, pixels

    def _integral(
        self,
        model: HookedModel,
        start: Tensor,
        difference: Tensor,
        objective: Objective,
        steps: int,
    ) -> Tensor:
        """Return the pixels `(B, 3, H, W)` by quadrature with some number of steps."""
        nodes, weights = (
            torch.from_numpy((row + shift) / 2)
            for row, shift in zip(np.polynomial.legendre.leggauss(steps), (1, 0), strict=True)
        )
        total = torch.zeros_like(start)
        at_once = max(1, images_per_pass(model, start) // len(start))
        for part in self.track(range(ceil(steps / at_once))):
            here = slice(part * at_once, (part + 1) * at_once)
            alphas = nodes[here].to(start)[:, None, None, None, None]
            shares = weights[here].to(start)[:, None, None, None, None]
            points = (start + alphas * difference).flatten(0, 1)
            gradient = model.gradient(points, objective.repeated(len(alphas)))[1]
            total += (shares * gradient.view(-1, *start.shape)).sum(0)
        return difference * total

    def _too_far(self, pixels: Tensor, totals: Tensor) -> Tensor:
        """Whether the sum of each image misses its total by more than the tolerance, `(B,)`."""
        wanted = totals.cpu().double()
        return self._missed(pixels, wanted).abs() > (self.tolerance or 0) * wanted.abs()

    def _missed(self, pixels: Tensor, totals: Tensor) -> Tensor:
        """By how much the sum of each image exceeds its total, `(B,)` float64."""
        return pixels.detach().cpu().double().sum((1, 2, 3)) - totals

    def why_zero(self) -> str:
        """The image is its baseline, or the gradient along the path is zero."""
        return (
            f"the image is its own baseline ({self.baseline!r}: choose another), "
            "or the score does not change along the path"
        )

    def is_signed(self) -> bool:
        """The sum has a sign."""
        return self.reduce == "sum"
