"""Adversarial training: a network learns on images that are attacked while it learns."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    Ball,
    TrainingBatch,
    TrainingProgress,
    evaluating,
    noise_like,
    projected_ascent,
)
from timmscope_defence.attacked_images import attacked_images
from timmscope_defence.judged_training import JudgedTraining

_GUARD_STEPS = 10
_TRADES_START = 1e-3


class AdversarialTraining(JudgedTraining):
    """Adversarial training minimises the loss on the worst images that an attack finds in a ball.

    `min_θ Σ max_{‖δ‖≤ε} CE(f_θ(x + δ), y)`: `pgd` finds δ by steps of PGD from a random point of
    the ball, with the network in eval mode; `fast` by one step of 1.25 ε from such a point, and it
    ends with the weights of the epoch before if the accuracy under PGD falls by more than 0.1
    (catastrophic overfitting). `trades` minimises `CE(f(x), y) + β · KL(f(x) ‖ f(x + δ))`, where δ
    raises the divergence from a start at `x + 0.001 · N(0, 1)`. `standard` takes the images as they
    are, for comparison. Cost beside `standard`: 2 times for `fast`, `steps` + 1 times for `pgd`,
    and `steps` + 2.5 times for `trades`; the card has what was counted.

    Paper:
        - Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep Learning Models Resistant to
          Adversarial Attacks", ICLR 2018, arXiv:1706.06083.
        - Zhang, Yu, Jiao, Xing, El Ghaoui & Jordan, "Theoretically Principled Trade-off between
          Robustness and Accuracy", ICML 2019, arXiv:1901.08573.
        - Wong, Rice & Kolter, "Fast is better than free: Revisiting adversarial training", ICLR
          2020, arXiv:2001.03994.

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

    method: Literal["pgd", "trades", "fast", "standard"] = "pgd"
    """How images are attacked in training."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball: `linf` or `l2`."""
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Radius in pixel units [0, 1]; by default 8/255 for linf, 3.0 (at 224×224) for l2."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of the attack in training; by default 7 for pgd and 10 for trades. fast has one."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of a step; by default epsilon / 4 for pgd, 2.5 · epsilon / steps for trades and
    1.25 · epsilon for fast."""
    beta: float = Field(default=6.0, ge=0, allow_inf_nan=False)
    """Weight of the divergence in trades."""

    @model_validator(mode="after")
    def _fits(self) -> AdversarialTraining:
        if self.norm == "linf" and self.epsilon is not None and self.epsilon > 1:
            raise ValueError(
                f"epsilon is {self.epsilon:g}, but pixel values are in [0, 1]: "
                f"{self.epsilon:g}/255 is {self.epsilon / 255:.4g}"
            )
        if self.method == "fast" and self.steps not in (None, 1):
            raise ValueError("fast has one step; for more choose pgd")
        return self

    def judged_ball(self, images: Tensor) -> Ball:
        """Return the ball of the training."""
        return Ball.of(self.norm, self.epsilon, images)

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the cross-entropy on attacked images, for trades both its terms."""
        ball = self.judged_ball(batch.images)
        if self.method == "trades":
            return self._trades(network, batch, ball)
        images = batch.images
        if self.method != "standard":
            steps = 1 if self.method == "fast" else self.steps or 7
            usual = 1.25 if self.method == "fast" else 0.25
            size = self.step_size or usual * ball.epsilon
            images = attacked_images(network, batch, ball, steps, size)
        logits = network(images)
        total = functional.cross_entropy(logits, batch.labels)
        wrong = (logits.argmax(1) != batch.labels).float().mean()
        return {"total": total, "error": wrong}

    def _trades(self, network: nn.Module, batch: TrainingBatch, ball: Ball) -> dict[str, Tensor]:
        images, steps = batch.images, self.steps or 10
        size = self.step_size or 2.5 * ball.epsilon / steps
        noise = _TRADES_START * noise_like(images, "normal", batch.generators)
        with evaluating(network):
            with torch.no_grad():
                natural = network(images).log_softmax(1)
            attacked = projected_ascent(
                lambda changed: _divergence(natural, network(changed)),
                images, (images + noise).clamp(0, 1), ball, step_size=size, steps=steps,
            )  # fmt: skip
        logits = network(images)
        accuracy = functional.cross_entropy(logits, batch.labels)
        robust = _divergence(logits.log_softmax(1), network(attacked)).mean()
        return {
            "total": accuracy + self.beta * robust, "cross-entropy": accuracy, "divergence": robust
        }  # fmt: skip

    def preview(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the images, and what PGD makes of them."""
        attacked = self._judged(network, batch, self.judge_steps)
        return {"images": batch.images, f"after PGD-{self.judge_steps}": attacked}

    def guard(self, network: nn.Module, batch: TrainingBatch) -> float | None:
        """Return the accuracy under PGD in the last batch, for `fast`."""
        if self.method != "fast":
            return None
        attacked = self._judged(network, batch, _GUARD_STEPS)
        with torch.no_grad():
            return float((network(attacked).argmax(1) == batch.labels).float().mean())

    def _judged(self, network: nn.Module, batch: TrainingBatch, steps: int) -> Tensor:
        ball = self.judged_ball(batch.images)
        return attacked_images(network, batch, ball, steps, 2.5 * ball.epsilon / steps)


def _divergence(natural: Tensor, logits: Tensor) -> Tensor:
    """`KL(p ‖ q)` of each image, `(B,)`, from log p and the logits of q."""
    found = functional.kl_div(logits.log_softmax(1), natural, reduction="none", log_target=True)
    return found.sum(1)
