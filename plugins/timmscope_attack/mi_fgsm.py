"""MI-FGSM: gradient steps with momentum, whose images also fool models that were not attacked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from timmscope import (
    Goal,
    HookedModel,
    Loss,
    ModelName,
    Norm,
    image_generators,
    mean_over_draws,
    noise_like,
)
from timmscope_attack.gradient import GradientAttack
from timmscope_attack.relative_size import relative_sides
from timmscope_attack.view_gradient import view_gradient

_ENLARGED = 330 / 299
"""Largest side of a diverse input, as a share of the image's side."""
_REACH = 3.0
"""Where the Gaussian kernel of a translation-invariant gradient ends, in standard deviations."""


class MIFGSM(GradientAttack):
    """MI-FGSM adds up the gradients of all steps, so that its images fool other models too.

    `m ← μ · m + g / mean|g|`, then `x ← clip(Π(x + α · steepest(m)))` from the image itself, with
    the step α of epsilon / steps. The direction of the sum depends less on the attacked model than
    a single gradient does. A momentum of 0 is I-FGSM, the iterated FGSM. Four options change the
    gradient g, and may be combined:

    - `diverse_input` resizes the image to a random size, up to 330/299 of its own, and pads it with
      zeros at a random place, before the model sees it.
    - `translation_px` smooths the gradient with a Gaussian kernel, which stands for the mean over
      shifted images.
    - `scales` averages over the images x, x / 2, x / 4 … at lower contrast.
    - `variance_samples` adds the difference between the mean gradient around the last x and the
      gradient there, which steadies the direction.

    With a `surrogate`, the gradient is of this model, at its own input size, and the result is
    judged on the attacked model, which may then be a prediction function. An `ensemble:A|B` as
    surrogate follows the gradient of the mean of their logits. Between models that are alike, as
    between EfficientNets, `translation_px` may lower the share of images that transfer. Cost: per
    image and step `scales · (1 + variance_samples)` forward and backward passes.

    Paper:
        - Dong, Liao, Pang, Su, Zhu, Hu & Li, "Boosting Adversarial Attacks with Momentum", CVPR
          2018, arXiv:1710.06081.
        - Xie, Zhang, Zhou, Bai, Wang, Ren & Yuille, "Improving Transferability of Adversarial
          Examples with Input Diversity", CVPR 2019, arXiv:1803.06978.
        - Dong, Pang, Su & Zhu, "Evading Defenses to Transferable Adversarial Examples by
          Translation-Invariant Attacks", CVPR 2019, arXiv:1904.02884.
        - Lin, Song, He, Wang & Hopcroft, "Nesterov Accelerated Gradient and Scale Invariance for
          Adversarial Attacks", ICLR 2020, arXiv:1908.06281.
        - Wang & He, "Enhancing the Transferability of Adversarial Attacks through Variance
          Tuning", CVPR 2021, arXiv:2103.15571.

    Inherited parameters:
        norm: norm of the change: `linf`, its largest value, or `l2`, its Euclidean length.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, the model has no classes, or the
            surrogate has other classes.
        ParameterError: a parameter or `batch_size` is out of range, a target equals its label, or
            the surrogate takes another number of channels.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model whose gradient is followed has none.
    """

    radii: ClassVar[Mapping[Norm, float]] = {
        "linf": 16 / 255,
        "l2": 6.0,
        "l1": 60.0,
        "l0": 150.0,
    }

    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Radius in pixel units [0, 1]; by default 16/255 for linf, 6.0 (at 224×224) for l2."""
    steps: int = Field(default=10, ge=1)
    """Number of steps."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of a step in the norm, in pixel units; by default epsilon / steps."""
    loss: Loss = "cross-entropy"
    """Loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax
    saturates."""
    momentum: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Share μ of the earlier gradients that a step keeps."""
    surrogate: ModelName | None = None
    """Model whose gradient is followed; by default the attacked model itself."""
    diverse_input: float = Field(default=0.0, ge=0, le=1)
    """Probability that the image is resized and padded; 0 turns it off, the paper uses 0.5."""
    translation_px: int = Field(default=0, ge=0)
    """Side of the kernel that smooths the gradient, odd; 0 turns it off, the paper uses 15."""
    scales: int = Field(default=1, ge=1, le=16)
    """Number of images at falling contrast over which the gradient is averaged; the paper's 5."""
    variance_samples: int = Field(default=0, ge=0)
    """Number of neighbours whose gradients are averaged; 0 turns it off, the paper uses 20."""
    variance_radius: float = Field(default=1.5, gt=0, allow_inf_nan=False)
    """Largest distance of the neighbours in each value, as a multiple of epsilon."""

    @field_validator("translation_px")
    @classmethod
    def _has_a_centre(cls, value: int) -> int:
        if value and value % 2 == 0:
            raise ValueError(f"a kernel of {value} pixels has no centre: take an odd number")
        return value

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Step along the sum of the gradients.

        Raises:
            ObjectiveError: the surrogate has other classes.
            ParameterError: the surrogate takes another number of channels.
        """
        ball, generators = self.ball(images), image_generators(len(images))
        source = model if self.surrogate is None else self.open_model(self.surrogate)
        sides = relative_sides(images, model, source, what="surrogate", parameter="surrogate")
        rows = torch.arange(len(images), device=images.device)
        size = ball.epsilon / self.steps if self.step_size is None else self.step_size
        around = self.variance_radius * ball.epsilon
        changed, summed = images.clone(), torch.zeros_like(images)
        variance = torch.zeros_like(images)
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            compute = partial(self._gradient, source, goal, sides, generators)
            with self.only(rows):
                gradient = self._averaged(source, partial(compute, changed), step)
                self.note_gradient(gradient, rows)
                followed = gradient + variance
                if self.variance_samples and step + 1 < self.steps:
                    total = torch.zeros_like(images)
                    for _ in range(self.variance_samples):
                        noise = (2 * noise_like(images, "uniform", generators) - 1) * around
                        total += self._averaged(source, partial(compute, changed + noise), step)
                    variance = total / self.variance_samples - gradient
            followed = self._smoothed(followed)
            scale = followed.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-20)
            summed = self.momentum * summed + followed / scale
            changed = ball.step(images, changed, summed, size)
        return changed

    def _averaged(self, source: HookedModel, compute: partial[tuple[Tensor]], step: int) -> Tensor:
        """Return the mean gradient over draws of random defences."""
        return mean_over_draws(source, compute, step=step, draws=self.draws)[0]

    def _gradient(
        self,
        source: HookedModel,
        goal: Goal,
        sides: list[int] | None,
        generators: list[torch.Generator],
        images: Tensor,
    ) -> tuple[Tensor]:
        """Return the mean gradient `(B, C, H, W)` over the scales."""
        total = torch.zeros_like(images)
        for number in range(self.scales):
            seen = partial(self._seen, sides, 0.5**number, generators)
            total += view_gradient(source, images, goal, self.loss, seen)[1]
        return (total / self.scales,)

    def _seen(
        self,
        sides: list[int] | None,
        contrast: float,
        generators: list[torch.Generator],
        images: Tensor,
    ) -> Tensor:
        """Return what the model sees of images."""
        if sides is not None:
            images = functional.interpolate(images, sides, mode="bilinear", antialias=True)
        if contrast != 1:
            images = images * contrast
        if not self.diverse_input:
            return images
        drawn = [torch.rand(4, generator=generator).tolist() for generator in generators]
        pairs = zip(images, drawn, strict=True)
        return torch.cat([self._diverse(image[None], numbers) for image, numbers in pairs])

    def _diverse(self, image: Tensor, numbers: list[float]) -> Tensor:
        """Return an image `(1, C, H, W)` at the size and place of four numbers in [0, 1)."""
        if numbers[0] >= self.diverse_input:
            return image
        height, width = image.shape[2:]
        tall, wide = int(height * _ENLARGED), int(width * _ENLARGED)
        rows = height + int(numbers[1] * (tall - height + 1))
        columns = width + int(numbers[1] * (wide - width + 1))
        top, left = int(numbers[2] * (tall - rows + 1)), int(numbers[3] * (wide - columns + 1))
        resized = functional.interpolate(image, [rows, columns], mode="bilinear")
        margins = (left, wide - columns - left, top, tall - rows - top)
        padded = functional.pad(resized, margins)
        return functional.interpolate(padded, [height, width], mode="bilinear", antialias=True)

    def _smoothed(self, gradient: Tensor) -> Tensor:
        """Convolve each channel of gradients with the Gaussian kernel."""
        if not self.translation_px:
            return gradient
        channels = gradient.shape[1]
        points = torch.linspace(-_REACH, _REACH, self.translation_px, dtype=torch.float64)
        line = (-(points**2) / 2).exp()
        kernel = torch.outer(line, line)
        weight = (kernel / kernel.sum()).to(gradient).expand(channels, 1, -1, -1)
        return functional.conv2d(gradient, weight, padding="same", groups=channels)
