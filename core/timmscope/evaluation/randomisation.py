"""Cascading randomisation measures whether a map changes when the model's weights are random."""

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
from timmscope.models.views import sharing
from timmscope.progress import track
from timmscope_registry import TechniqueError


class CascadingRandomisation(Metric):
    """Cascading randomisation (Adebayo et al., NeurIPS 2018): correlation with the original map.

    Weights are randomised from the classifier down to the first layer, and after each stage the map
    is compared with that of the original model by Spearman's rank correlation. The value is the
    mean over the stages: near 1 for a map that hardly depends on the weights, near 0 for one that
    does. Each weight is drawn from a normal distribution with the mean and standard deviation of
    its tensor. If the technique has no map of the randomised model, the correlation counts as 0.
    """

    name: ClassVar[str] = "randomisation"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    x_label: ClassVar[str] = "share of layers randomised"
    y_label: ClassVar[str] = "rank correlation"

    stages: int = Field(default=5, ge=1)
    """Number of stages, after each of which the map is compared; the first is the classifier."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """Return the share of randomised layers at each stage, from 0."""
        groups = _weighted(model.module)
        return (0.0, *(count / len(groups) for count in _counts(len(groups), self.stages)))

    def measure(self, case: Case) -> Measurement:
        """Return the correlation after each stage, and their mean."""
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
    """Yield one copy of the model after each stage, each time with more random weights."""
    module = copy.deepcopy(model.module)
    twin = sharing(model, module=module, hooks=model.hooks.for_module(module))
    vars(twin).pop("weights_sha256", None)
    twin.layers  # traced here, before the weights are random  # noqa: B018
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
    """Return the modules that have weights themselves, from the image to the classifier."""
    return [
        part for part in module.modules() if next(part.parameters(recurse=False), None) is not None
    ]


def _counts(groups: int, stages: int) -> list[int]:
    """Return how many groups are random after each stage: one after the first, all at the end."""
    if stages == 1:
        return [groups]
    return [1 + round((groups - 1) * stage / (stages - 1)) for stage in range(stages)]


def spearman(one: Tensor, two: Tensor) -> float:
    """Return Pearson's correlation of ranks, where ties share their mean rank; 0 for constants."""
    return pearson(_ranks(one), _ranks(two))


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(
        values.detach().flatten().cpu(), return_inverse=True, return_counts=True
    )
    last = count.cumsum(0).double()
    ranks: Tensor = (last - (count - 1) / 2)[place]
    return ranks
