"""Training on interval bounds: a network whose predictions can be proved."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    Ball,
    TrainingBatch,
    TrainingProgress,
    evaluating,
)
from timmscope_defence.attacked_images import attacked_images
from timmscope_defence.intervals import Interval, lowest_margins, smallest_margin
from timmscope_defence.judged_training import JudgedTraining


class IBPTraining(JudgedTraining):
    """Interval bound propagation in training makes the bounds of a network narrow.

    `min_θ κ · CE(f(x), y) + (1 − κ) · CE(ẑ, y)`, where ẑ are the worst logits that interval bounds
    leave possible for images in `[x − ε, x + ε]`: `ẑ_j − ẑ_y = −min(z_y − z_j)`. After a share
    `warmup_share` of the steps, κ falls from 1 to `kappa` and ε rises from 0 to `epsilon`, both
    linearly over a share `ramp_share`. With a `box` τ below 1, the bounds are of a small box of
    radius τ·ε around the point that PGD finds, as far inside as the box still lies in the ball
    (SABR): more accuracy and more proofs at a higher cost.

    The bounds are those of the network in eval mode, with the kept statistics of batch
    normalisation. `certified` in the card is the share of held-out images whose label is proved at
    `epsilon`; `interval-bounds` proves it again. Cost beside standard training: twice the
    passes, of which that of the bounds computes two values where others compute one; with a box
    below 1, `steps` more. The card has what was counted.

    Paper:
        - Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably
          Robust Models", 2018, arXiv:1810.12715.
        - Müller, Eckert, Fischer & Vechev, "Certified Training: Small Boxes are All You Need",
          ICLR 2023, arXiv:2210.04871.

    Inherited parameters:
        judge_steps: steps of the PGD that judges the trained network on held-out images.
        judged_by: further attacks that judge it, such as `square epsilon=0.1`.
        beside: model whose accuracy the card compares, such as that of a standard training.
        epochs: how often every image is seen.
        batch_size: images per step; the last images of an epoch that fill no batch are left out.
        optimizer: adam, adamw or sgd.
        learning_rate: largest learning rate.
        momentum: momentum of sgd.
        weight_decay: weight decay; of adamw decoupled from the gradient.
        schedule: course of the learning rate after the warm-up: constant, or down to 0.
        warmup: share of the steps in which the learning rate rises.
        max_gradient_norm: longer gradients of all weights together are scaled to this length.
        held_out_share: share of the images that are held out, if no held-out images are given.

    Raises:
        ImageError: the images cannot be opened or read.
        ParameterError: labels are missing or are no classes, a parameter is out of range, or
            `beside` has other classes.
        StoreError: the folder holds something else or cannot be written.
        StoreMismatch: the folder holds a training with other settings.
        StoreCorrupted: the checkpoint was damaged.
        TechniqueError: the loss is not finite.
        UnsupportedModel: the model is not in float32 or float64, cannot be copied, or has a layer
            that has no interval bounds.
    """

    epsilon: float = Field(default=8 / 255, gt=0, le=1, allow_inf_nan=False)
    """Radius ε of the L∞ ball in pixel units [0, 1]."""
    kappa: float = Field(default=0.5, ge=0, le=1)
    """Weight κ of the images as they are, at the end of the ramp."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps without bounds."""
    ramp_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps over which ε rises and κ falls."""
    box: float = Field(default=1.0, gt=0, le=1)
    """Radius τ of the box whose bounds are trained, as a share of ε."""
    steps: int = Field(default=8, ge=1)
    """Steps of the PGD that finds the middle of the box, if it is below 1."""

    def judged_ball(self, images: Tensor) -> Ball:
        """Return the ball of the training."""
        return Ball(norm="linf", epsilon=self.epsilon)

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the weighted sum of both cross-entropies, and both terms."""
        natural = functional.cross_entropy(network(batch.images), batch.labels)
        share = self._ramp(progress.share)
        if share == 0:
            return {"total": natural, "cross-entropy": natural, "of worst logits": natural}
        kappa, epsilon = 1 - (1 - self.kappa) * share, self.epsilon * share
        with evaluating(network):
            lowest = lowest_margins(network(self._box(network, batch, epsilon)), batch.labels)
        bounded = functional.cross_entropy(-lowest, batch.labels)
        return {
            "total": kappa * natural + (1 - kappa) * bounded,
            "cross-entropy": natural, "of worst logits": bounded,
        }  # fmt: skip

    def _ramp(self, share: float) -> float:
        """How far κ and ε are on their way, from 0 to 1."""
        passed = share - self.warmup_share
        if passed < 0:
            return 0.0
        return min(1.0, passed / self.ramp_share) if self.ramp_share else 1.0

    def _box(self, network: nn.Module, batch: TrainingBatch, epsilon: float) -> Interval:
        """The box of images whose bounds are trained."""
        images = batch.images
        if self.box == 1:
            return Interval.around(images, epsilon)
        ball = Ball(norm="linf", epsilon=epsilon)
        found = attacked_images(network, batch, ball, self.steps, 2.5 * epsilon / self.steps)
        left = epsilon * (1 - self.box)
        return Interval.around(found.clamp(images - left, images + left), epsilon * self.box)

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return whether each image is right as it is, under each attack, and for certain."""
        found = super().evaluate(network, batch)
        with torch.no_grad():
            logits = network(Interval.around(batch.images, self.epsilon))
            proved = smallest_margin(logits, batch.labels) > 0
        return {**found, "certified": proved}
