"""Activation maximisation: gradient ascent on an image to maximise the objective.

It covers class and feature visualisation, depending on the objective. The loop does not wait for
the device; the gradient check is accumulated on the device and read once.
"""

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
    frame_steps,
    image_generators,
    image_rows,
    noise_like,
    per_image,
)
from timmscope_synthesis.memory_format import memory_format
from timmscope_synthesis.parameterisation import (
    INITIAL_DEVIATION,
    FourierParameterisation,
    Parameterisation,
    PixelParameterisation,
)
from timmscope_synthesis.sizes import check_size
from timmscope_synthesis.transforms import RandomViews, view

CHECK_EVERY = 16
"""Steps between two evaluations of the images without a random view."""

_ACCELERATOR_BATCH = 16  # images optimised together on accelerators

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ActivationMaximization(SynthesisTechnique):
    """Activation maximisation optimises an image from noise to maximise the objective.

    `max_z E_v[S(v(x(z)))] − l2_weight · |x − grey|² − tv_weight · mean |∇x|²`, by Adam: the
    objective S (for a class its logit before the softmax) under random views v of the image x, in a
    preconditioned space z. Every 16 steps and at the end the images are also scored without a view,
    minus the penalties, and the best of these images is returned. Images of one call are
    independent: image i depends only on the seed and i.

    Lucid uses `decay_power=1, learning_rate=0.05` and narrower views (jitter 8, scale 0.1); on
    today's ImageNet networks the defaults here reach the same scores with less grey and noise.

    Paper:
        - Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017,
          doi:10.23915/distill.00007: the views and the space.
        - Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks: Visualising Image
          Classification Models and Saliency Maps", ICLR workshop 2014, arXiv:1312.6034: the logit
          as objective.
        - Erhan, Bengio, Courville & Vincent, "Visualizing Higher-Layer Features of a Deep Network",
          Université de Montréal 2009: the idea.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, the model does not take the size, or the
            numbers of images do not fit together.
        TechniqueError: the gradient is zero or not finite.
    """

    steps: Annotated[int, Field(ge=1)] = 128
    """Number of gradient steps; 128 give a recognisable image, 512 a finer one."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own noise."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels; by default the model's input size, which many transformers require."""
    parameterisation: Literal["fourier", "pixel"] = "fourier"
    """Space of the optimisation: Fourier coefficients scaled like the spectrum of photographs, or
    pixels."""
    decay_power: NotNegative = 1.5
    """Exponent of the Fourier scaling's fall with frequency; 1 as in Lucid, larger is smoother."""
    decorrelate: bool = True
    """Optimise in colours that are uncorrelated in photographs."""
    learning_rate: Positive | None = None
    """Step size of Adam; by default 0.0125 for Fourier coefficients, 0.05 for pixels."""
    robust: bool = True
    """Show the model a random view of the image at each step; off, the five settings below have no
    effect."""
    pad_px: NotNegative = 12
    """Grey border of a view, in pixels of a 224 px image (scaled with the size, like the other
    pixel settings)."""
    jitter_px: NotNegative = 24
    """Range of the first random shift."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Largest random change of size, relative."""
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest random rotation to either side."""
    fine_jitter_px: NotNegative = 4
    """Range of the second random shift, after scaling and rotating."""
    l2_weight: NotNegative = 0.0
    """Penalty on the squared distance from grey, summed over the image."""
    tv_weight: NotNegative = 0.0
    """Penalty on the mean squared difference of neighbouring pixels."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images optimised together; by default 1 on a CPU, where more gain little, else 16."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Optimise the images in batches.

        Raises:
            ParameterError: the model does not take the size, or the numbers of images do not fit
                together.
            TechniqueError: the gradient of an image is zero.
        """
        size = self._size(model, init)
        height, width = model.input_size[1:]
        advice = f"leave size unset for its own {height}×{width}"
        check_size(model, objective.rows(0, 1), size, "size", advice)
        targets, objective, init = per_image(objective, init, self.count)
        count = len(targets)
        space = self._space(size, model.input_size[0])
        generators = image_generators(count)
        batch_size = self.batch_size or (1 if model.device.type == "cpu" else _ACCELERATOR_BATCH)
        outcomes = []
        with torch.inference_mode(False), torch.enable_grad():
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                own = generators[start:stop]
                variable = self._start(model, space, init, start, stop, own)
                draws = self._views.draw(self.steps, size, own).to(variable)
                goal = objective.rows(start, stop)
                with image_rows(range(start, stop)):
                    outcome = self._ascend(model, goal, space, variable, draws, (start, count))
                outcomes.append(outcome)
        return SynthesisOutcome.joined(outcomes, targets)

    def _ascend(
        self,
        model: HookedModel,
        objective: Objective,
        space: Parameterisation,
        variable: Tensor,
        draws: Tensor,
        position: tuple[int, int],
    ) -> SynthesisOutcome:
        """Gradient ascent on `variable` `(B, …)` under the views `draws` `(steps, B, 2, 3)`."""
        first, count = position
        variable.requires_grad_()
        optimiser = torch.optim.Adam([variable], lr=self.learning_rate or self._default_rate)
        best = BestImages(len(variable), variable)
        check = GradientCheck(objective, len(variable), self.steps, first, variable)
        layout = memory_format(model.module)
        scores: list[Tensor] = []
        frames: list[Tensor] = []
        kept = frame_steps(self.steps, self.frames)
        description = "optimising" if count <= len(variable) else f"image {first + 1} of {count}"
        with model.record(*objective.points) as recording:
            for step in self.track(range(self.steps), description):
                image = space.image(variable)
                viewed = view(image, draws[step]) if self._transforms else image.clone()
                viewed = viewed.contiguous(memory_format=layout)
                viewed.retain_grad()
                model(viewed)
                score = objective(recording)
                loss = (self._penalty(image) - score).sum()
                optimiser.zero_grad()
                loss.backward()
                scores.append(score.detach())
                assert viewed.grad is not None, "retained above"
                check.add(viewed.grad, step)
                optimiser.step()
                if step in kept:
                    with torch.no_grad():
                        frames.append(space.image(variable).float().cpu())
                if (step + 1) % CHECK_EVERY == 0 or step + 1 == self.steps:
                    with torch.no_grad():
                        image = space.image(variable)
                        model(image.contiguous(memory_format=layout))
                        best.offer(image, objective(recording) - self._penalty(image), step)
        return SynthesisOutcome(
            images=best.images,
            scores=torch.stack(scores),
            best_step=best.steps,
            frames=torch.stack(frames) if frames else None,
        )

    @property
    def _views(self) -> RandomViews:
        return RandomViews(
            pad_px=self.pad_px,
            jitter_px=self.jitter_px,
            scale=self.scale,
            rotate_deg=self.rotate_deg,
            fine_jitter_px=self.fine_jitter_px,
        )

    @property
    def _default_rate(self) -> float:
        return 0.05 if self.parameterisation == "pixel" else 0.0125

    @property
    def _transforms(self) -> bool:
        return self.robust and not self._views.identity

    def _space(self, size: tuple[int, int], channels: int) -> Parameterisation:
        if self.parameterisation == "pixel":
            return PixelParameterisation(size, decorrelate=self.decorrelate, channels=channels)
        return FourierParameterisation(
            size, decorrelate=self.decorrelate, decay_power=self.decay_power, channels=channels
        )

    def _start(
        self,
        model: HookedModel,
        space: Parameterisation,
        init: Tensor | None,
        start: int,
        stop: int,
        generators: list[torch.Generator],
    ) -> Tensor:
        """The variable of images `start` to `stop`: noise, added to the initial images if given."""
        blank = torch.zeros(stop - start, *space.shape(), device=model.device)
        noise = noise_like(blank, generators=generators) * INITIAL_DEVIATION
        if init is None:
            return noise
        images = init[start:stop].float()
        if tuple(images.shape[2:]) != space.size:
            images = functional.interpolate(
                images, space.size, mode="bilinear", antialias=True, align_corners=False
            )
        return space.variable(images) + noise

    def _penalty(self, image: Tensor) -> Tensor:
        """Sum of the penalties of each image, `(B,)`."""
        total = image.new_zeros(len(image))
        if self.l2_weight:
            total = total + self.l2_weight * (image - 0.5).square().sum((1, 2, 3))
        if self.tv_weight:
            down = (image[:, :, 1:] - image[:, :, :-1]).square().mean((1, 2, 3))
            right = (image[..., 1:] - image[..., :-1]).square().mean((1, 2, 3))
            total = total + self.tv_weight * (down + right)
        return total

    def _size(self, model: HookedModel, init: Tensor | None) -> tuple[int, int]:
        if self.size is not None:
            return self.size, self.size
        if init is not None:
            return int(init.shape[2]), int(init.shape[3])
        return model.input_size[1], model.input_size[2]
