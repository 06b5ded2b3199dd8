"""Compares what the batch norms of a model get with the statistics of its training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from timmscope import HookedModel, UnsupportedModel


class BatchStatistics:
    """How far a batch is from the training images, in the eyes of the model's batch norms.

    `R = Σ_l |μ_l(x) − μ̂_l| + |σ²_l(x) − σ̂²_l|` with the Euclidean norms of the differences, over
    the batch norms l that a forward runs. μ_l and σ²_l are mean and variance of each channel of
    what the norm gets, over all images and positions; μ̂_l and σ̂²_l are its running statistics.

    Args:
        model: the model; not a fused copy, in which the norms are folded.

    Raises:
        UnsupportedModel: the model has no batch norms with running statistics.
    """

    def __init__(self, model: HookedModel) -> None:
        self._model = model
        self._known = _running_statistics(model.module)
        self._terms: list[Tensor] = []
        if not self._known:
            raise UnsupportedModel(
                f"{model.id} has no batch norms that keep statistics of the training images (a "
                "fused copy has folded them): take the model before fusing, one with batch norms, "
                "or activation-maximization"
            )

    def watching(self) -> AbstractContextManager[None]:
        """Read the norms' inputs in every forward of the model inside the context."""
        readers = {name: partial(self._read, name) for name in self._known}
        return self._model.hooks.watch_inputs(readers)

    def distance(self) -> Tensor:
        """Return R of the latest forward, a scalar with a graph, and forget it."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum()

    def _read(self, name: str, inputs: Tensor) -> None:
        mean, variance = self._known[name]
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        own_variance, own_mean = torch.var_mean(inputs.float(), axes, correction=0)
        difference = (own_mean - mean.float()).norm() + (own_variance - variance.float()).norm()
        self._terms.append(difference)


def _running_statistics(module: nn.Module) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Running mean and variance of each batch norm, also of frozen ones, by name."""
    found = {}
    for name, part in module.named_modules():
        mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
        per_image = isinstance(part, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor) and not per_image:
            found[name] = mean, variance
    return found
