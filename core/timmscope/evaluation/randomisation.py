"""Cascading randomisation: a map that explains the model changes when the model does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.evaluation.sensitivity import pearson
from timmscope.models import HookedModel
from timmscope.progress import track
from timmscope_registry import TechniqueError


class CascadingRandomisation(Metric):
    """Cascading randomisation (Adebayo et al., NeurIPS 2018): rank correlation with the own map.

    Weights are randomised from the classifier down to the first layer, and after each stage the map
    is compared with that of the intact model by Spearman's rank correlation. The value is the mean
    over the stages: near 1 for a map that hardly looks at the weights, near 0 for one that does.
    Each weight is drawn from a normal distribution with the mean and deviation of its tensor. Where
    the randomised model has no map, nothing is left of it, which counts as 0.
    """

    name: ClassVar[str] = "randomisation"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    x_label: ClassVar[str] = "share of layers randomised"
    y_label: ClassVar[str] = "rank correlation"

    stages: int = Field(default=5, ge=1)
    """How often the map is compared; the first stage is the classifier alone."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """Share of the layers with weights that are random, from 0."""
        groups = _weighted(model.module)
        return (0.0, *(count / len(groups) for count in _counts(len(groups), self.stages)))

    def measure(self, case: Case) -> Measurement:
        """The correlation after each stage, and their mean."""
        curve = [1.0]
        stages = cascade(case.model, self.stages, case.seed)
        for model in track(stages, self.name, total=self.stages):
            try:
                other = case.explain(model)
            except TechniqueError:
                curve.append(0.0)
            else:
                curve.append(spearman(case.raw, other))
        return Measurement(sum(curve[1:]) / len(curve[1:]), tuple(curve))


def cascade(model: HookedModel, stages: int, seed: int) -> Iterator[HookedModel]:
    """A copy of the model after each stage, more random each time; the model itself is untouched.

    It is one and the same copy that changes.
    """
    module = copy.deepcopy(model.module)
    twin = HookedModel(
        module,
        mean=model.mean,
        std=model.std,
        input_size=model.input_size,
        id=model.id,
    )
    twin.layers  # traced before the weights are random, as the catalogue does not depend on them  # noqa: B018
    groups = _weighted(module)[::-1]
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for count in _counts(len(groups), stages):
        for part in groups[done:count]:
            for weight in part.parameters(recurse=False):
                _randomise(weight, generator)
        done = count
        yield twin


def _randomise(weight: nn.Parameter, generator: torch.Generator) -> None:
    values = weight.detach().double()
    mean, deviation = values.mean(), values.std(correction=0)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(values)
    with torch.no_grad():
        weight.copy_(mean + deviation * noise)


def _weighted(module: nn.Module) -> list[nn.Module]:
    """Parts with weights of their own, from the image to the classifier."""
    return [
        part for part in module.modules() if next(part.parameters(recurse=False), None) is not None
    ]


def _counts(groups: int, stages: int) -> list[int]:
    """Groups that are random after each stage: one after the first, all after the last."""
    if stages == 1:
        return [groups]
    return [1 + round((groups - 1) * stage / (stages - 1)) for stage in range(stages)]


def spearman(one: Tensor, two: Tensor) -> float:
    """Pearson's correlation of ranks, equal values sharing their mean rank; 0 for constants."""
    return pearson(_ranks(one), _ranks(two))


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(
        values.detach().flatten().cpu(), return_inverse=True, return_counts=True
    )
    last = count.cumsum(0).double()
    ranks: Tensor = (last - (count - 1) / 2)[place]
    return ranks
