"""What the method `loss` of a training gets and returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timmscope.parameters import technique_error
from timmscope_registry.plugin_faults import brief

if TYPE_CHECKING:
    from timmscope.techniques.training.base import TrainingTechnique


@dataclass(frozen=True)
class TrainingBatch:
    """The images of one step.

    Attributes:
        images: `(B, C, H, W)` in [0, 1], on the network's device.
        labels: `(B,)` int64 classes; all -1 in a training that needs no labels, unless it reads
            labels where there are some.
        seed: seed of this batch.
    """

    images: Tensor
    labels: Tensor
    seed: int

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """A CPU generator per image, for `noise_like` and `Ball.sample`."""
        return [
            torch.Generator().manual_seed((self.seed + row) % 2**63)
            for row in range(len(self.images))
        ]


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        step: number of steps done before this one.
        steps: number of steps in all.
        steps_per_epoch: number of steps of an epoch.
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def share(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        return self.step / self.steps

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self.step // self.steps_per_epoch


def checked_terms(technique: TrainingTechnique, terms: object) -> dict[str, Tensor]:
    """Return the terms of a loss, by name.

    Raises:
        TechniqueError: they are no dictionary of scalars with a `total` that has a gradient.
    """
    wanted = "a dictionary of scalars by name, with 'total'"
    if not isinstance(terms, dict) or not all(isinstance(name, str) for name in terms):
        raise technique_error(technique, f"returned the loss {brief(terms)}", expected=wanted)
    if "total" not in terms:
        raise technique_error(technique, f"returned a loss of {list(terms)}", expected=wanted)
    checked = {name: torch.as_tensor(term) for name, term in terms.items()}
    for name, term in checked.items():
        if term.numel() != 1 or term.is_complex():
            did = f"returned {name!r} of shape {tuple(term.shape)} in its loss"
            raise technique_error(technique, did, expected=wanted)
    if not checked["total"].requires_grad:
        did = "returned a total that does not depend on the network's weights"
        raise technique_error(technique, did, expected="a scalar with a gradient")
    return {name: term.reshape(()) for name, term in checked.items()}
