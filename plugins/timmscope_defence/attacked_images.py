"""Images that a network in training meets after an attack."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from timmscope import Ball, Goal, Loss, TrainingBatch, evaluating, projected_ascent


def attacked_images(
    network: nn.Module,
    batch: TrainingBatch,
    ball: Ball,
    steps: int,
    size: float,
    loss: Loss = "cross-entropy",
) -> Tensor:
    """Return the images after PGD from a random point of the ball, by the network in eval mode.

    Args:
        network: takes images `(B, C, H, W)` in [0, 1].
        batch: images, labels and generators.
        ball: all changes that are allowed.
        steps: number of steps.
        size: length of a step in the norm of the ball.
        loss: the loss to raise.
    """
    start = (batch.images + ball.sample(batch.images, batch.generators)).clamp(0, 1)
    goal = Goal(labels=batch.labels)

    def value(images: Tensor) -> Tensor:
        logits = network(images)
        if loss == "cross-entropy":
            return functional.cross_entropy(logits, batch.labels, reduction="sum")
        return goal.loss(logits, loss).sum()

    with evaluating(network):
        return projected_ascent(value, batch.images, start, ball, step_size=size, steps=steps)
