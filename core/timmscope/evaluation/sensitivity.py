"""Sensitivity-n: do attributions add up to what the score loses?"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.models import HookedModel
from timmscope.techniques.perturbation import Baseline, baseline_images, perturbed_scores
from timmscope.techniques.session import image_generators

Share = Annotated[float, Field(gt=0, le=1)]


class SensitivityN(Metric):
    """Sensitivity-n (Ancona et al., ICLR 2018): `corr_S(Σ_{i∈S} R_i, S(I) − S(I without S))`.

    Pearson's correlation over random sets of n pixels, between what the map ascribes to them and
    what the score loses when they take the model's mean colour; the mean over several n. 1 for a
    map that says how much each pixel gives to a linear model. The score is the objective itself,
    for a class its logit. Where all sets say the same there is no correlation, and it counts as 0.
    """

    name: ClassVar[str] = "sensitivity-n"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    x_label: ClassVar[str] = "share of pixels n"
    y_label: ClassVar[str] = "correlation"

    shares: tuple[Share, ...] = Field(default=(0.01, 0.03, 0.1, 0.3, 0.6), min_length=1)
    """Sizes n of the sets, as shares of all pixels."""
    sets: int = Field(default=50, ge=2)
    """Random sets of each size; each costs a forward."""
    baseline: Baseline = "mean"
    """What removed pixels become."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """The sizes."""
        return self.shares

    def measure(self, case: Case) -> Measurement:
        """The correlation for each n, and their mean."""
        image, pixels = case.image, case.heat.numel()
        (empty,) = baseline_images(case.model, image[None], self.baseline)
        (generator,) = image_generators(1)
        sizes = [max(1, round(share * pixels)) for share in self.shares for _ in range(self.sets)]
        chosen = [torch.randperm(pixels, generator=generator)[:size] for size in sizes]
        heat = case.heat.flatten().double().cpu()
        told = torch.stack([heat[places].sum() for places in chosen])

        def make(start: int, stop: int) -> Tensor:
            variants = image.repeat(stop - start, 1, 1, 1)
            for row, number in enumerate(range(start - 1, stop - 1)):
                if number >= 0:
                    places = chosen[number].to(image.device)
                    variants[row].flatten(1)[:, places] = empty.flatten(1)[:, places]
            return variants

        scores = perturbed_scores(
            case.model, image, case.objective, 1 + len(sizes), make, description=self.name
        )
        scores = scores.double().cpu()
        lost = scores[0] - scores[1:]
        curve = [
            pearson(one, two)
            for one, two in zip(told.split(self.sets), lost.split(self.sets), strict=True)
        ]
        return Measurement(sum(curve) / len(curve), tuple(curve))


def pearson(one: Tensor, two: Tensor) -> float:
    """Correlation of two rows of numbers; 0 where one of them is constant, but for rounding."""
    units = []
    for values in (one, two):
        apart = values - values.mean()
        length = float(apart.norm())
        if length <= 1e-12 * float(values.norm()):
            return 0.0
        units.append(apart / length)
    return float((units[0] * units[1]).sum())
