"""Data-free distillation: a student learns what a teacher answers to synthesised images."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    ModelName,
    ParameterError,
    TrainingBatch,
    TrainingProgress,
    TrainingTechnique,
)


class DataFreeDistillation(TrainingTechnique):
    """Data-free distillation trains a student on a teacher's answers to synthesised images.

    `min_θ T² · mean_i KL(softmax(z_teacher(x_i) / T) ‖ softmax(z_θ(x_i) / T))`. The model of the
    call is the student: its architecture and its first weights. The images are any images, such as
    those of `deep-inversion` from the teacher; they need no labels, so no image of the teacher's
    own training is needed. How well the student then does says how much of a data set the weights
    alone give away.

    The card has the `agreement`: the share of held-out images for which student and teacher name
    the same class. Where every held-out image has a label that is a class, it also has the
    `accuracy` of both. Give real photographs as held-out images: agreement on synthesised ones
    says little. The teacher gets the images at its own input size.

    Cost: that of standard training, and one forward pass of the teacher.

    Paper:
        - Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha & Kautz, "Dreaming to Distill: Data-Free
          Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795.
        - Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", NeurIPS workshop
          2014, arXiv:1503.02531: the loss.

    Inherited parameters:
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
        ParameterError: a parameter is out of range, or the teacher has other classes or channels.
        StoreError: the folder holds something else or cannot be written.
        StoreMismatch: the folder holds a training with other settings.
        StoreCorrupted: the checkpoint was damaged.
        TechniqueError: the loss is not finite.
        UnsupportedModel: the model is not in float32 or float64, or cannot be copied.
    """

    needs_labels: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    teacher: ModelName
    """Model whose answers are learned."""
    temperature: float = Field(default=3.0, gt=0, le=100, allow_inf_nan=False)
    """Temperature T by which the logits of both are divided; larger ones stress small answers."""

    def build(self, model: HookedModel) -> nn.Module:
        """Return a copy of the model's network."""
        return model.trainable_copy()

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the divergence from the teacher, and the share of images on which they differ.

        Raises:
            ParameterError: the teacher has other classes or channels.
        """
        logits = network(batch.images)
        taught = self._taught(batch, logits)
        divergence = functional.kl_div(
            (logits / self.temperature).log_softmax(1),
            (taught / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        differ = (logits.argmax(1) != taught.argmax(1)).float().mean()
        return {"total": self.temperature**2 * divergence, "disagreement": differ}

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return whether student and teacher agree, and with labels, whether each is right.

        Raises:
            ParameterError: the teacher has other classes or channels.
        """
        with torch.no_grad():
            logits = network(batch.images)
        own, taught = logits.argmax(1), self._taught(batch, logits).argmax(1)
        figures = {"agreement": own == taught}
        if bool((batch.labels >= 0).all()):
            figures["accuracy"] = own == batch.labels
            figures["accuracy of the teacher"] = taught == batch.labels
        return figures

    def _taught(self, batch: TrainingBatch, logits: Tensor) -> Tensor:
        """The teacher's logits, like those of the student."""
        teacher, images = self.open_model(self.teacher), batch.images
        if teacher.input_size[0] != images.shape[1]:
            raise ParameterError(
                f"teacher is {teacher.id}, which takes {teacher.input_size[0]} channels, and the "
                f"student takes {images.shape[1]}: name a teacher of the same channels",
                parameter="teacher",
            )
        if teacher.input_size[1:] != images.shape[2:]:
            images = functional.interpolate(
                images, teacher.input_size[1:], mode="bicubic", antialias=True
            ).clamp(0, 1)
        with torch.no_grad():
            taught = teacher(images)
        if taught.shape != logits.shape:
            raise ParameterError(
                f"teacher is {teacher.id}, which has {taught.shape[1]} classes, and the student "
                f"has {logits.shape[1]}: name a teacher of the same classes",
                parameter="teacher",
            )
        return taught.to(logits)
