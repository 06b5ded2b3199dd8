"""Insertion and deletion measure how fast the score rises or falls with a map's best pixels."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.models import HookedModel
from timmscope.techniques.perturbation import Baseline, baseline_images, perturbed_scores

BLUR = 5 / 224
"""Standard deviation of insertion's blur, as a share of the image's longer side."""


class _Curve(Metric):
    x_label: ClassVar[str] = "share of pixels"
    y_label: ClassVar[str] = "probability"

    steps: int = Field(default=100, ge=1)
    """Number of equal portions of pixels; each needs a forward."""
    baseline: Baseline = "mean"
    """What replaces the pixels that are not shown."""

    @abstractmethod
    def _variants(self, image: Tensor, empty: Tensor, best: Tensor) -> Tensor:
        """Return images `(n, 3, H, W)` whose `best` pixels `(n, 1, H, W)` are changed."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """Return the share of changed pixels at each step, from 0 to 1."""
        return tuple(count / pixels for count in self._counts(pixels))

    def measure(self, case: Case) -> Measurement:
        """Return the area under the curve, by the trapezoidal rule.

        The score is the softmax probability of a class, or the value of any other objective.
        Pixels of equal rank are changed in reading order.
        """
        image, pixels = case.image, case.heat.numel()
        order = case.heat.flatten().argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(pixels, device=order.device)
        rank = rank.view(case.heat.shape).to(image.device)
        counts = torch.tensor(self._counts(pixels), device=image.device)
        sigma = BLUR * max(image.shape[1:])
        (empty,) = baseline_images(case.model, image[None], self.baseline, sigma_px=sigma)

        def make(start: int, stop: int) -> Tensor:
            best = rank < counts[start:stop, None, None]
            return self._variants(image, empty, best[:, None])

        scores = perturbed_scores(
            case.model,
            image,
            case.objective,
            len(counts),
            make,
            probability=True,
            description=self.name,
        ).double()
        area = torch.trapezoid(scores, counts.to(scores) / pixels)
        return Measurement(float(area), tuple(scores.tolist()))

    def _counts(self, pixels: int) -> list[int]:
        steps = min(self.steps, pixels)
        return [round(step * pixels / steps) for step in range(steps + 1)]


class Deletion(_Curve):
    """Deletion (Petsiuk et al., BMVC 2018) removes pixels, the highest ranked first.

    `AUC = ∫₀¹ p(image without the first share x of its pixels) dx`. The sooner the score falls, the
    better the map. Removed pixels become 0 after normalisation, which is the model's mean colour.
    """

    name: ClassVar[str] = "deletion"
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def _variants(self, image: Tensor, empty: Tensor, best: Tensor) -> Tensor:
        return torch.where(best, empty, image)


class Insertion(_Curve):
    """Insertion (Petsiuk et al., BMVC 2018) restores a blurred image, the best pixels first.

    `AUC = ∫₀¹ p(blurred image with the first share x of its pixels) dx`. The sooner the score
    rises, the better the map. The blur is a Gaussian with a σ of 5 px at 224 px, and in proportion
    for other sizes.
    """

    name: ClassVar[str] = "insertion"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    baseline: Baseline = "blur"
    """What replaces the pixels that are not shown yet."""

    def _variants(self, image: Tensor, empty: Tensor, best: Tensor) -> Tensor:
        return torch.where(best, image, empty)
