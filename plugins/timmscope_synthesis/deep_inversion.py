"""DeepInversion: images of a class that have the statistics of the images a model learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    GradientCheck,
    HookedModel,
    ImageSet,
    ImageSetName,
    Objective,
    ParameterError,
    SynthesisOutcome,
    SynthesisTechnique,
    alpha_norm,
    frame_steps,
    image_generators,
    log_probability,
    memory_format,
    per_image,
    total_variation,
)
from timmscope_synthesis.batch_statistics import BatchStatistics
from timmscope_synthesis.nearest_images import nearest_images

CHECK_EVERY = 16
"""Steps between two evaluations of the batch without shift and flip."""
_BETAS = (0.5, 0.9)
_CERTAIN = -1e-6
"""Log-probability from which on a class is certain."""
_REFERENCE_PX = 224

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DeepInversion(SynthesisTechnique):
    """DeepInversion makes images of a class that the model's batch norms take for training images.

    `min_x mean_i(−log p(y_i|x_i) + α_tv TV(x_i) + α_l2 |x_i − mean|²) + α_bn R(x)` by Adam, with
    `R(x) = Σ_l |μ_l(x) − μ̂_l| + |σ²_l(x) − σ̂²_l|`: mean and variance of what each batch norm l
    gets, beside those that it has kept of the training images, in Euclidean norms. The penalties
    are means over pixels. An objective that is no class is climbed as it is. At each step the batch
    is shifted around its borders and perhaps mirrored, all colours stay in [0, 1], and the step
    size falls to 0 as a cosine. Every 16 steps and at the end the batch is evaluated unmoved, and
    the batch with the lowest loss is returned.

    The statistics are those of a batch, so **all images of a call are optimised together**, and
    image i depends on the others. `batch_size` splits them into batches, each with statistics of
    its own. The more images of the more classes, the better the statistics of the training images
    fit; a single image cannot have the variety of a data set.

    What such images show, the weights alone give away, to anyone who has them. With `training`,
    the result notes how near each image is to the nearest one of that set. Compare that with
    images the model has never seen: only a distance clearly below theirs means a copy.

    Paper:
        Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha & Kautz, "Dreaming to Distill: Data-Free
        Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795. Its priors are sums
        over normalised inputs, and it begins at half the resolution; its term that drives a
        student and the model apart (Adaptive DeepInversion) is left out.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, the numbers of images do not fit together, or
            the training images have another size.
        TechniqueError: the gradient is zero or not finite.
        UnsupportedModel: the model has no batch norms.
    """

    steps: Annotated[int, Field(ge=1)] = 500
    """Number of gradient steps; the paper takes 2,000 and more."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own noise."""
    statistics_weight: NotNegative = 0.01
    """Weight α_bn of the distance from the statistics of the training images."""
    tv_weight: NotNegative = 0.0
    """Weight α_tv of the total variation: the mean over pixels of the squared differences."""
    l2_weight: NotNegative = 0.0
    """Weight α_l2 of the mean squared distance of pixels from the model's mean colour."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    """Step size of Adam at the first step, in pixel units [0, 1]."""
    jitter_px: NotNegative = 30
    """Largest random shift in pixels of a 224 px image, scaled with the size."""
    flip: bool = True
    """Mirror the batch at every second step, at random; wrong for letters and digits."""
    training: ImageSetName | None = None
    """Images the model was trained on: the distance to the nearest is noted as `nearest_training`
    (Euclidean, pixel units) and `nearest_training_psnr_db`, with the name of that image."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images optimised together; by default all."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Optimise the images in batches.

        Raises:
            ParameterError: the numbers of images do not fit together, or the training images have
                another size.
            TechniqueError: the gradient of an image is zero.
            UnsupportedModel: the model has no batch norms.
        """
        statistics = BatchStatistics(model)
        targets, objective, init = per_image(objective, init, self.count)
        shape = model.input_size if init is None else tuple(init.shape[1:])
        training = None if self.training is None else self.open_images(self.training)
        self._check_training(training, shape)
        generators = image_generators(len(targets))
        size = self.batch_size or len(targets)
        parts, distances = [], []
        for first in range(0, len(targets), size):
            own = generators[first : first + size]
            start = _noise(model, own) if init is None else init[first : first + size].float()
            goal = objective.rows(first, first + size)
            inversion = _Inversion(self, model, goal, statistics, start, own[0], first)
            parts.append(inversion.run())
            distances += [inversion.distance] * len(own)
        self.note("statistics", distances)
        outcome = SynthesisOutcome.joined(parts, targets)
        if training is not None:
            nearest = nearest_images(outcome.images, training)
            self.note("nearest_training", nearest.distances)
            self.note("nearest_training_psnr_db", nearest.psnr_db)
            self.note("nearest_training_image", nearest.names)
        return outcome

    def _check_training(self, training: ImageSet | None, shape: tuple[int, ...]) -> None:
        """Refuse training images that cannot be compared."""
        if training is None or training.shape == shape:
            return
        there, here = ("×".join(map(str, size)) for size in (training.shape, shape))
        raise ParameterError(
            f"the training images are {there} and the images to make {here} (channels, height, "
            "width): give training images of that size, or leave init unset",
            parameter="training",
        )


class _Inversion:
    """The optimisation of one batch.

    Attributes:
        distance: distance of the best batch so far from the statistics.
    """

    def __init__(
        self,
        technique: DeepInversion,
        model: HookedModel,
        objective: Objective,
        statistics: BatchStatistics,
        start: Tensor,
        generator: torch.Generator,
        first: int,
    ) -> None:
        self._technique, self._model, self._statistics = technique, model, statistics
        self._objective, self._climbed = objective, _climbed(model, objective)
        self._x = start.clone().requires_grad_()
        self._mean = torch.tensor(model.mean, device=model.device)[:, None, None]
        self._generator = generator
        self._shift = round(technique.jitter_px * min(start.shape[2:]) / _REFERENCE_PX)
        self._layout = memory_format(model.module)
        self._check = GradientCheck(objective, len(start), technique.steps, first, start)
        self._lowest = math.inf
        self._best, self._best_step, self.distance = start, 0, math.nan

    def run(self) -> SynthesisOutcome:
        """Take all steps."""
        steps, rate = self._technique.steps, self._technique.learning_rate
        optimiser = torch.optim.Adam([self._x], lr=rate, betas=_BETAS)
        kept = frame_steps(steps, self._technique.frames)
        scores, frames = [], []
        points = dict.fromkeys((*self._objective.points, *self._climbed.points))
        with (
            self._model.record(*points, until_last=False) as recording,
            self._statistics.watching(),
        ):
            for step in self._technique.track(range(steps), "inverting"):
                for group in optimiser.param_groups:
                    group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
                optimiser.zero_grad()
                self._model(self._moved().contiguous(memory_format=self._layout))
                self._loss(recording)[0].backward()
                self._check.add(self._gradient(recording), step)
                optimiser.step()
                with torch.no_grad():
                    self._x.clamp_(0, 1)
                    scores.append(self._objective(recording))
                if step in kept:
                    frames.append(self._x.detach().cpu().clone())
                if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                    self._offer(recording, step)
        return SynthesisOutcome(
            images=self._best,
            scores=torch.stack(scores),
            best_step=torch.full((len(self._best),), self._best_step),
            frames=torch.stack(frames) if frames else None,
        )

    def _loss(self, recording: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of the batch, and its distance from the statistics."""
        distance = self._statistics.distance()
        each = self._penalty() - self._climbed(recording)
        return each.mean() + self._technique.statistics_weight * distance, distance

    def _penalty(self) -> Tensor:
        """Sum of the weighted priors of each image, `(B,)`."""
        x, chosen = self._x, self._technique
        total = x.new_zeros(len(x))
        if chosen.tv_weight:
            total = total + chosen.tv_weight * total_variation(x)
        if chosen.l2_weight:
            total = total + chosen.l2_weight * alpha_norm(x - self._mean, 2)
        return total

    def _gradient(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The gradient of the images; 1 where the model is certain of the class, as it is 0."""
        gradient = self._x.grad
        assert gradient is not None, "the backward pass has filled it"
        if self._climbed is self._objective:
            return gradient
        certain = self._climbed(recording).detach() > _CERTAIN
        return torch.where(certain[:, None, None, None], 1.0, gradient)

    def _moved(self) -> Tensor:
        """The images, shifted around their borders and perhaps mirrored, all alike."""
        x, most = self._x, self._shift
        if most:
            shift = torch.randint(-most, most + 1, (2,), generator=self._generator)
            x = x.roll(shift.tolist(), (2, 3))
        if self._technique.flip and torch.rand((), generator=self._generator) < 0.5:
            x = x.flip(3)
        return x.clone()

    @torch.no_grad()
    def _offer(self, recording: Mapping[str, Tensor], step: int) -> None:
        """Keep the batch if its loss is the lowest so far."""
        self._model(self._x.contiguous(memory_format=self._layout))
        loss, distance = (float(value) for value in self._loss(recording))
        if loss < self._lowest:
            self._lowest, self.distance = loss, distance
            self._best, self._best_step = self._x.detach().clone(), step


def _climbed(model: HookedModel, objective: Objective) -> Objective:
    """The log-probability of a class; another objective as it is."""
    if objective.classes is None or model.num_classes < 2:
        return objective
    return log_probability(objective).bind(model, None)


def _noise(model: HookedModel, generators: list[torch.Generator]) -> Tensor:
    """Images of noise with the model's mean and standard deviation, `(B, C, H, W)`."""
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (model.mean, model.std))
    noise = [torch.randn(model.input_size, generator=own) for own in generators]
    return (mean + deviation * torch.stack(noise)).clamp(0, 1).to(model.device)
