"""Training on images with Gaussian noise, for classifiers that randomised smoothing certifies."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from timmscope import Ball, TrainingBatch, TrainingProgress, noise_like
from timmscope_defence.judged_training import JudgedTraining


class NoiseTraining(JudgedTraining):
    """Training on noisy images makes a network right under the noise of randomised smoothing.

    `min_θ Σ CE(f_θ(x + σ · N(0, 1)), y)`, with new noise for each image at each step, in pixel
    units. The images are not clipped to [0, 1], as `randomized-smoothing` does not clip them: it
    certifies most with the sigma of the training. Cost: that of standard training.

    The card has the accuracy under such noise, and under PGD in the L2 ball of radius σ and in
    other balls.

    Paper:
        - Lécuyer, Atlidakis, Geambasu, Hsu & Jana, "Certified Robustness to Adversarial Examples
          with Differential Privacy", S&P 2019, arXiv:1802.03471.
        - Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
          ICML 2019, arXiv:1902.02918.

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
        UnsupportedModel: the model is not in float32 or float64, or cannot be copied.
    """

    sigma: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    """Standard deviation σ of the noise, in pixel units [0, 1]; 0.25 is 64 grey levels."""

    def judged_ball(self, images: Tensor) -> Ball:
        """Return the L2 ball of radius sigma."""
        return Ball(norm="l2", epsilon=self.sigma)

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the cross-entropy on noisy images, and the share of them that is wrong."""
        logits = network(self._noisy(batch))
        wrong = (logits.argmax(1) != batch.labels).float().mean()
        return {"total": functional.cross_entropy(logits, batch.labels), "error": wrong}

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return whether each image is right as it is, with noise, and under each attack."""
        with torch.no_grad():
            noisy = network(self._noisy(batch)).argmax(1) == batch.labels
        return {**super().evaluate(network, batch), "accuracy under noise": noisy}

    def preview(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the images, and the same with noise, clipped to what can be shown."""
        return {"images": batch.images, "with noise": self._noisy(batch).clamp(0, 1)}

    def _noisy(self, batch: TrainingBatch) -> Tensor:
        return batch.images + self.sigma * noise_like(
            batch.images, "normal", list(batch.generators)
        )
