"""Feature inversion: the image that a layer's activation describes, found by gradient descent."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    BestImages,
    GradientCheck,
    HookedModel,
    Objective,
    SynthesisOutcome,
    SynthesisTechnique,
    alpha_norm,
    frame_steps,
    image_generators,
    memory_format,
    per_image,
    total_variation,
)

CHECK_EVERY = 16
"""Steps between two evaluations of the images without a shift."""

_RANGE = 80 / 255  # B, the typical length of a colour relative to grey, in pixel units
_SLOPE = _RANGE / 6.5  # V, the typical difference of neighbouring pixels
_GREY = 0.5
_UNIT = 1 / 255  # the optimiser's steps are in units of 8-bit pixels
_MOMENTUM = 0.9
_MEMORY = 0.9
_MOST = 0.05 / 6  # the paper's largest step, relative to B² and the number of pixels
_RATE = 0.004  # of the first paper
_FINAL = 7  # the last seventh of the steps has a tenth of the step size, and no shift
_ACCELERATOR_BATCH = 16

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FeatureInversion(SynthesisTechnique):
    """Feature inversion finds a natural image whose activation at a layer is that of another.

    It minimises `−C · S(x) + λ_α · |x|^α / B^α + λ_V · Σ_c |∇x|^β / V^β` from noise: with the
    objective S of `match`, which is minus `|φ(x) − φ₀|² / |φ₀|²`, means over pixels, x relative to
    grey, B = 80 and V = B / 6.5 in 8-bit units. What an inversion shows, the layer still knows;
    what it lacks or invents, the layer has lost. The larger C, the closer the activation and the
    noisier the image. Any other objective gives its natural pre-image in the same way.

    The descent is the second paper's: momentum 0.9, gradients divided by the root of their decaying
    sum of squares, a random shift by less than a quarter of the layer's stride at each step, and
    colours kept within 2B of grey. Here they are also kept in [0, 1]. The last seventh of the steps
    has a tenth of the step size and no shift. The image with the lowest energy without a shift is
    returned. The first paper divides no term by B or V, and has another `schedule`.

    Paper:
        - Mahendran & Vedaldi, "Understanding Deep Image Representations by Inverting Them", CVPR
          2015, arXiv:1412.0035: the energy.
        - Mahendran & Vedaldi, "Visualizing Deep Convolutional Neural Networks Using Natural
          Pre-images", IJCV 2016, arXiv:1512.02017: the constants, shifts and optimiser.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, or the numbers of images do not fit together.
        TechniqueError: the gradient is zero or not finite.
    """

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0
    """Weight C of the objective; 300 for early layers, 1 to show only what is beyond doubt."""
    steps: Annotated[int, Field(ge=1)] = 350
    """Number of gradient steps."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own noise: they differ in what the layer lost."""
    alpha: Annotated[float, Field(ge=2, le=12)] = 6.0
    """Exponent of the prior on colours; 2 is the squared distance from grey."""
    alpha_weight: NotNegative = 1.0
    """Weight λ_α of the prior on colours."""
    beta: Annotated[float, Field(ge=1, le=4)] = 2.0
    """Exponent of the total variation; 1 keeps edges."""
    tv_weight: NotNegative = 1.0
    """Weight λ_V of the total variation; 0 shows what the activation alone determines."""
    schedule: Literal["ijcv16", "cvpr15"] = "ijcv16"
    """Descent of the second or of the first paper. The first one has momentum alone, no shifts, and
    step sizes in the ratios 1, 0.1 and 0.01 in the first quarter, the next half and the last
    quarter of the steps, at the start of each of which the momentum is 0 again."""
    jitter_px: Annotated[int, Field(ge=0)] | None = None
    """Largest random shift in pixels; by default less than a quarter of the layer's stride, and
    none with `cvpr15`."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images optimised together; by default 1 on a CPU, where more gain little, else 16."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Invert the targets in batches.

        Raises:
            ParameterError: the numbers of images do not fit together.
            TechniqueError: the gradient of an image is zero.
        """
        like = objective.reference_images if init is None else init
        size = model.input_size[1:] if like is None else (like.shape[2], like.shape[3])
        targets, objective, init = per_image(objective, init, self.count)
        generators = image_generators(len(targets))
        step = self.batch_size or (1 if model.device.type == "cpu" else _ACCELERATOR_BATCH)
        parts = []
        for first in range(0, len(targets), step):
            own = generators[first : first + step]
            start = None if init is None else init[first : first + step]
            goal = objective.rows(first, first + step)
            parts.append(self._descend(model, goal, start, own, size, first))
        return SynthesisOutcome.joined(parts, targets)

    def _descend(
        self,
        model: HookedModel,
        objective: Objective,
        init: Tensor | None,
        generators: list[torch.Generator],
        size: tuple[int, int],
        first: int,
    ) -> SynthesisOutcome:
        """Descend from the start; the canvas is larger than the images by the largest shift."""
        margin = self._margin(model, objective)
        x = self._start(model, init, generators, (size[0] + margin, size[1] + margin))
        settled = self.steps - self.steps // _FINAL
        draws = [torch.randint(margin + 1, (settled, 2), generator=own) for own in generators]
        shifts = torch.stack(draws, dim=1).tolist()  # (settled, B, 2)
        centre = [[margin // 2, margin // 2]] * len(x)
        best = BestImages(len(x), x)
        check = GradientCheck(objective, len(x), self.steps, first, x)
        largest = _MOST * size[0] * size[1] * (_RANGE / _UNIT) ** 2
        velocity, squares = torch.zeros_like(x), torch.zeros_like(x)
        scores, frames = [], []
        layout = memory_format(model.module)
        kept = frame_steps(self.steps, self.frames)
        with model.record(*objective.points) as recording:
            for step in self.track(range(self.steps), "inverting"):
                if step == settled:  # only the part that will be returned goes on
                    x, velocity, squares = (_crops(t, centre, size) for t in (x, velocity, squares))
                    centre, largest = [[0, 0]] * len(x), largest / 10
                x = x.detach().requires_grad_()
                seen = _crops(x, shifts[step] if step < settled else centre, size) + _GREY
                seen = seen.contiguous(memory_format=layout)
                model(seen)
                score = objective(recording)
                energy = self._energy(x, score).sum()
                gradient, of_score = torch.autograd.grad(energy, (x, seen))
                check.add(of_score, step)
                scores.append(score.detach())
                gradient = gradient * _UNIT  # per 8-bit unit
                if self.schedule == "cvpr15":
                    rate, first_of_part = self._rate(step)
                    velocity = velocity * (0 if first_of_part else _MOMENTUM)
                    velocity = velocity - rate * size[0] * size[1] * gradient
                else:
                    squares = _MEMORY * squares + gradient.square()
                    velocity = _MOMENTUM * velocity - gradient / (1 / largest + squares.sqrt())
                x = _in_range(x.detach() + velocity * _UNIT)
                image = (_crops(x, centre, size) + _GREY).clamp(0, 1)
                if step in kept:
                    frames.append(image)
                if (step + 1) % CHECK_EVERY == 0 or step + 1 == self.steps:
                    with torch.no_grad():
                        model(image.contiguous(memory_format=layout))
                        energy = self._energy(image - _GREY, objective(recording))
                        best.offer(image, -energy, step)
        return SynthesisOutcome(
            images=best.images,
            scores=torch.stack(scores),
            best_step=best.steps,
            frames=torch.stack(frames) if frames else None,
        )

    def _energy(self, x: Tensor, score: Tensor) -> Tensor:
        """The energy of images relative to grey, `(B,)`."""
        energy = -self.weight * score
        if self.alpha_weight:
            energy = energy + self.alpha_weight * alpha_norm(x / _RANGE, self.alpha)
        if self.tv_weight:
            energy = energy + self.tv_weight * total_variation(x / _SLOPE, self.beta)
        return energy

    def _rate(self, step: int) -> tuple[float, bool]:
        """Step size of the first paper for a mean gradient per pixel, and whether it is new.

        The paper's rate is 0.004 times the squared norm of a typical image, for an energy in which
        the relative error of the activation has the weight 1.
        """
        ends = (self.steps // 4, self.steps - self.steps // 4)
        part = sum(step >= end for end in ends)
        rate = _RATE * 0.1**part * (_RANGE / _UNIT) ** 2 / self.weight
        return rate, step in ends

    def _margin(self, model: HookedModel, objective: Objective) -> int:
        """Largest shift in pixels."""
        if self.jitter_px is not None:
            return self.jitter_px
        if self.schedule == "cvpr15":
            return 0
        last = max(model.layers[point].order for point in objective.points)
        strides = [
            max(layer.stride)
            for layer in model.layers.values()
            if layer.stride is not None and layer.order <= last
        ]
        return max(round(max(strides, default=0) / 4), 1) - 1

    def _start(
        self,
        model: HookedModel,
        init: Tensor | None,
        generators: list[torch.Generator],
        canvas: tuple[int, int],
    ) -> Tensor:
        """Canvas of each image relative to grey: noise, or the initial image with its border."""
        if init is None:
            shape = (model.input_size[0], *canvas)
            noise = [torch.rand(shape, generator=own) * 2 - 1 for own in generators]
            return torch.stack(noise).to(model.device) * (_RANGE / 3**0.5 / 0.95)
        extra = [whole - part for whole, part in zip(canvas, init.shape[2:], strict=True)]
        before = [size // 2 for size in extra]
        border = (before[1], extra[1] - before[1], before[0], extra[0] - before[0])
        return functional.pad(init.float() - _GREY, border, mode="replicate")


def _crops(canvas: Tensor, corners: list[list[int]], size: tuple[int, int]) -> Tensor:
    """The part of each image whose upper left corner is at its row and column."""
    if canvas.shape[2:] == size:
        return canvas
    height, width = size
    parts = [
        image[:, row : row + height, column : column + width]
        for image, (row, column) in zip(canvas, corners, strict=True)
    ]
    return torch.stack(parts)


def _in_range(x: Tensor) -> Tensor:
    """Colours relative to grey in [0, 1], and within 2B of grey."""
    x = x.clamp(-_GREY, 1 - _GREY)
    length = x.square().sum(1, keepdim=True).sqrt()
    return x * (2 * _RANGE / length.clamp(min=2 * _RANGE))
