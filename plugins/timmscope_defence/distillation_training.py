"""Defensive distillation, which hides the gradient of a network and protects it from little."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from timmscope import Ball, ModelName, ParameterError, TrainingBatch, TrainingProgress
from timmscope_defence.judged_training import JudgedTraining


class DistillationTraining(JudgedTraining):
    """Defensive distillation trains a network on the soft labels of another one, at a temperature.

    `min_θ −Σ_k p_k · log softmax(z_θ(x) / T)_k`, where p are the labels themselves without a
    `teacher`, and `softmax(z_teacher(x) / T)` with one. It takes two trainings: one without a
    teacher makes the teacher, and the second one, with that teacher and the same temperature, the
    student. Both are used at T = 1, where their logits are about T times as large as those of other
    networks. Their softmax is then saturated, and the gradient of the cross-entropy vanishes:
    attacks that follow it fail, and the network seems robust. It is not. An attack on the logits,
    such as `pgd loss=margin` or `carlini-wagner`, breaks it as others; this technique is here to
    show that, and no defence to rely on. The card has the accuracy under both kinds of attack.

    Cost: that of standard training, and with a teacher one more forward pass of it.

    Paper:
        - Papernot, McDaniel, Wu, Jha & Swami, "Distillation as a Defense to Adversarial
          Perturbations against Deep Neural Networks", S&P 2016, arXiv:1511.04508.
        - Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017,
          arXiv:1608.04644.

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
            the teacher or `beside` has other classes.
        StoreError: the folder holds something else or cannot be written.
        StoreMismatch: the folder holds a training with other settings.
        StoreCorrupted: the checkpoint was damaged.
        TechniqueError: the loss is not finite.
        UnsupportedModel: the model is not in float32 or float64, or cannot be copied.
    """

    temperature: float = Field(default=20.0, ge=1, le=100, allow_inf_nan=False)
    """Temperature T by which logits are divided in training, from 1 to 100."""
    teacher: ModelName | None = None
    """Model whose soft labels are learned; without one, the training makes a teacher."""
    epsilon: float = Field(default=8 / 255, gt=0, le=1, allow_inf_nan=False)
    """Radius of the L∞ ball in which the trained network is judged, in pixel units [0, 1]."""

    def judged_ball(self, images: Tensor) -> Ball:
        """Return the L∞ ball of radius epsilon."""
        return Ball(norm="linf", epsilon=self.epsilon)

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the cross-entropy at the temperature, and the share of images that is wrong.

        Raises:
            ParameterError: the teacher has other classes.
        """
        logits = network(batch.images)
        soft = self._soft_labels(batch, logits)
        wrong = (logits.argmax(1) != batch.labels).float().mean()
        return {
            "total": functional.cross_entropy(logits / self.temperature, soft), "error": wrong
        }  # fmt: skip

    def _soft_labels(self, batch: TrainingBatch, logits: Tensor) -> Tensor:
        """Return the classes to learn: `(B,)`, or `(B, K)` probabilities of a teacher."""
        if self.teacher is None:
            return batch.labels
        teacher = self.open_model(self.teacher)
        with torch.no_grad():
            taught = teacher(batch.images)
        if taught.shape != logits.shape:
            raise ParameterError(
                f"teacher is {teacher.id}, which has {taught.shape[1]} classes, and the network "
                f"has {logits.shape[1]}: name a teacher of the same classes",
                parameter="teacher",
            )
        return (taught / self.temperature).softmax(1).to(logits)
