"""Images that a network in training meets after an attack."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from timmscope import Ball, TrainingBatch, evaluating, projected_ascent


def attacked_images(
    network: nn.Module, batch: TrainingBatch, ball: Ball, steps: int, size: float
) -> Tensor:
    """Return the images after PGD from a random point of the ball, by the network in eval mode.

    Args:
        network: takes images `(B, C, H, W)` in [0, 1].
        batch: images, labels and generators.
        ball: all changes that are allowed.
        steps: number of steps.
        size: length of a step in the norm of the ball.
    """
    start = (batch.images + ball.sample(batch.images, batch.generators)).clamp(0, 1)

    def loss(images: Tensor) -> Tensor:
        return functional.cross_entropy(network(images), batch.labels, reduction="sum")

    with evaluating(network):
        return projected_ascent(loss, batch.images, start, ball, step_size=size, steps=steps)
