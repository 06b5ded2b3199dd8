"""Sensitivity-n measures whether attributions add up to the loss of score without the pixels."""

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

    Pearson's correlation over random sets of n pixels, between the sum of the map over a set and
    the loss of score when the set takes the model's mean colour, averaged over several n. It is 1
    for the contributions of pixels to a linear model. The score is the objective itself, for a
    class its logit. If all sets have the same sum or loss, the correlation counts as 0.
    """

    name: ClassVar[str] = "sensitivity-n"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    x_label: ClassVar[str] = "share of pixels n"
    y_label: ClassVar[str] = "correlation"

    shares: tuple[Share, ...] = Field(default=(0.01, 0.03, 0.1, 0.3, 0.6), min_length=1)
    """Sizes n of the sets, as shares of all pixels."""
    sets: int = Field(default=50, ge=2)
    """Number of random sets of each size; each needs a forward."""
    baseline: Baseline = "mean"
    """What replaces removed pixels."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """Return the sizes of the sets."""
        return self.shares

    def measure(self, case: Case) -> Measurement:
        """Return the correlation for each n, and their mean."""
        image, pixels = case.image, case.heat.numel()
        (empty,) = baseline_images(case.model, image[None], self.baseline)
        (generator,) = image_generators(1)
        sizes = [max(1, round(share * pixels)) for share in self.shares for _ in range(self.sets)]
        chosen = [torch.randperm(pixels, generator=generator)[:size] for size in sizes]
        heat = case.heat.flatten().double().cpu()
        sums = torch.stack([heat[places].sum() for places in chosen])

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
            for one, two in zip(sums.split(self.sets), lost.split(self.sets), strict=True)
        ]
        return Measurement(sum(curve) / len(curve), tuple(curve))


def pearson(one: Tensor, two: Tensor) -> float:
    """Return the correlation of two vectors; 0 if one of them is constant up to rounding."""
    units = []
    for values in (one, two):
        centred = values - values.mean()
        length = float(centred.norm())
        if length <= 1e-12 * float(values.norm()):
            return 0.0
        units.append(centred / length)
    return float((units[0] * units[1]).sum())
