"""A training on mixtures of images."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, TrainingBatch, TrainingProgress, TrainingTechnique


class Mixup(TrainingTechnique):
    """Each image is mixed with another of its batch, and so are their labels."""

    strength: float = Field(default=0.5, ge=0, le=1)
    """Largest share of the other image."""

    def build(self, model: HookedModel) -> nn.Module:
        """A copy of the model's network."""
        return model.trainable_copy()

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """The cross-entropy of the mixture."""
        order = torch.randperm(len(batch.images), generator=batch.generators[0])
        other = self.strength * float(torch.rand((), generator=batch.generators[0]))
        logits = network(torch.lerp(batch.images, batch.images[order], other))
        losses = [functional.cross_entropy(logits, y) for y in (batch.labels, batch.labels[order])]
        return {"total": (1 - other) * losses[0] + other * losses[1]}
