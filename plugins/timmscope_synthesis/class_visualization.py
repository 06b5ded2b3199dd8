"""Class visualisation: the first methods, which regularise the image and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    BestImages,
    GradientCheck,
    HookedModel,
    Objective,
    SynthesisOutcome,
    SynthesisTechnique,
    TechniqueError,
    frame_steps,
    gaussian_blur,
    image_generators,
    memory_format,
    noise_like,
    per_image,
)

_UNIT = 1 / 255

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percentile = Annotated[float, Field(ge=0, lt=100)]


class ClassVisualization(SynthesisTechnique):
    """Class visualisation climbs the class's score from noise, and keeps the image simple.

    `x ← r(x + η ∇(S(x + mean) − λ |x|²))` with the class's logit S, the image x relative to the
    model's mean colour, and regularisers r after each step, of which any may be off: decay
    `x ← (1 − θ) x`, a Gaussian blur at every k-th step, and zero where a pixel's norm, or its
    contribution `|Σ_c x · ∇S|`, is below a percentile. The last step is not regularised. Colours
    stay in [0, 1], and the image with the highest penalised score is returned. The step size is
    relative to the model's first gradient, since constant ones fit a single network; `progress`
    instead takes `η = step_gain / |∇|²`, which raises the score by `step_gain` to first order.

    Simonyan's images have `l2_weight` alone, with `noise_px=0` and small steps. Yosinski's four
    combinations are (decay, blur, every, norm percentile, contribution percentile): (0, 0.5, 4, 50,
    0), (0.3, 0, -, 20, 0), (0.0001, 1, 4, 0, 0) and (0, 0.5, 4, 0, 90). The defaults blur a little
    in each step, which shows more on today's networks.

    No random views are shown to the model, so images may fit its pixels too well for others to see
    the class: name a `judge` to know. `activation-maximization` makes images that transfer.

    Paper:
        - Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks: Visualising Image
          Classification Models and Saliency Maps", ICLR workshop 2014, arXiv:1312.6034: the
          penalty.
        - Yosinski, Clune, Nguyen, Fuchs & Lipson, "Understanding Neural Networks Through Deep
          Visualization", ICML workshop 2015, arXiv:1506.06579: the other regularisers.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, or the numbers of images do not fit together.
        TechniqueError: the gradient is zero or not finite.
    """

    steps: Annotated[int, Field(ge=1)] = 200
    """Number of gradient steps."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own noise."""
    policy: Literal["constant", "progress"] = "constant"
    """How long a step is: a constant times the gradient, or what gains a fixed score."""
    step_px: Positive = 2.0
    """Mean change of a value in the first step, in units of 8-bit pixels. With `constant`, every
    step is as many times its gradient; with `progress`, 100 times this is the most. Without a blur
    and decay, steps must be smaller: about 0.03."""
    step_gain: Positive = 2.0
    """With `progress`: gain of the score in one step, to first order."""
    l2_weight: NotNegative = 0.0
    """Penalty λ on the squared distance from the mean colour, summed over the image."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share θ of the image that is lost in each step."""
    blur_px: Annotated[float, Field(ge=0, le=64)] = 0.6
    """Standard deviation of the blur, in pixels; 0 for none."""
    blur_every: Annotated[int, Field(ge=1)] = 1
    """Steps from blur to blur."""
    norm_percentile: Percentile = 0.0
    """Pixels whose norm is below this percentile become the mean colour."""
    contribution_percentile: Percentile = 0.0
    """Pixels whose contribution is below this percentile become the mean colour."""
    noise_px: NotNegative = 10.0
    """Standard deviation of the noise at the start, in units of 8-bit pixels; 0 for none."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Climb from one start after the other.

        Raises:
            ParameterError: the numbers of images do not fit together.
            TechniqueError: the gradient of an image is zero or not finite.
        """
        targets, objective, init = per_image(objective, init, self.count)
        mean = torch.tensor(model.mean, device=model.device)[:, None, None]
        made = []
        for row, generator in enumerate(image_generators(len(targets))):
            if init is None:
                blank = torch.zeros(1, *model.input_size, device=model.device)
                start = self.noise_px * _UNIT * noise_like(blank, generators=[generator])
            else:
                start = init[row : row + 1].float() - mean
            made.append(self._climb(model, objective.rows(row, row + 1), start, mean, row))
        return SynthesisOutcome.joined(made, targets)

    def _climb(
        self, model: HookedModel, objective: Objective, x: Tensor, mean: Tensor, row: int
    ) -> SynthesisOutcome:
        """Climb from an image `(1, C, H, W)` relative to the mean colour."""
        best = BestImages(1, x)
        check = GradientCheck(objective, 1, self.steps, row, x)
        layout = memory_format(model.module)
        kept = frame_steps(self.steps, self.frames)
        scores, frames = [], []
        first = None
        with model.record(*objective.points) as recording:
            for step in self.track(range(self.steps), "climbing"):
                image = (x + mean).clamp(0, 1)
                seen = image.clone(memory_format=layout).requires_grad_()
                model(seen)
                score = objective(recording)
                (gradient,) = torch.autograd.grad(score.sum(), seen)
                check.add(gradient, step)
                x = image - mean
                score = score.detach()
                scores.append(score)
                if step:
                    best.offer(image, score - self._penalty(x), step - 1)
                ascent = gradient - 2 * self.l2_weight * x
                size = float(ascent.abs().mean())
                if not 0 <= size < float("inf"):
                    raise TechniqueError(
                        f"the gradient of {objective.label} is not finite at step {step} of image "
                        f"{row}: give a smaller step"
                    )
                first = first or size
                x = x + self._rate(ascent, first) * ascent
                if step + 1 < self.steps:
                    x = self._regularised(x, gradient, mean, step)
                if step in kept:
                    frames.append((x + mean).clamp(0, 1).cpu())
            image = (x + mean).clamp(0, 1)
            with torch.no_grad():
                model(image.contiguous(memory_format=layout))
                penalty = self._penalty(image - mean)
                best.offer(image, objective(recording) - penalty, self.steps - 1)
        return SynthesisOutcome(
            images=best.images,
            scores=torch.stack(scores),
            best_step=best.steps,
            frames=torch.stack(frames) if frames else None,
        )

    def _penalty(self, x: Tensor) -> Tensor:
        return self.l2_weight * x.square().sum((1, 2, 3))

    def _rate(self, ascent: Tensor, first: float) -> float:
        """Factor η of a step, from its direction and the mean of the first one."""
        constant = self.step_px * _UNIT / max(first, 1e-30)
        if self.policy == "constant":
            return constant
        squared = float(ascent.square().sum())
        return min(100 * constant, self.step_gain / max(squared, 1e-30))

    def _regularised(self, x: Tensor, gradient: Tensor, mean: Tensor, step: int) -> Tensor:
        """Return x after the regularisers; the gradient is of the image before the step."""
        x = x * (1 - self.decay)
        if self.blur_px and step % self.blur_every == 0:
            x = gaussian_blur((x + mean).clamp(0, 1), self.blur_px) - mean
        if self.norm_percentile:
            x = _without_least(x, x.square().sum(1).sqrt(), self.norm_percentile)
        if self.contribution_percentile:
            contribution = (x * gradient).sum(1).abs()
            x = _without_least(x, contribution, self.contribution_percentile)
        return x


def _without_least(x: Tensor, importance: Tensor, percentile: float) -> Tensor:
    """Set the pixels to zero whose importance `(1, H, W)` is below its percentile."""
    limit = torch.quantile(importance.flatten(), percentile / 100)
    return torch.where(importance[:, None] < limit, torch.zeros_like(x), x)
