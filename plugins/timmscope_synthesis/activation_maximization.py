"""Activation maximisation: gradient ascent on an image to maximise the objective.

It covers class and feature visualisation, depending on the objective.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Climb,
    CppnParameterisation,
    FourierParameterisation,
    HookedModel,
    LaplacianParameterisation,
    LayerName,
    Objective,
    Parameterisation,
    PixelParameterisation,
    RandomViews,
    SynthesisOutcome,
    SynthesisTechnique,
    check_size,
    image_generators,
    loop_model,
    per_image,
)
from timmscope_synthesis.between_images import BetweenImages, default_between
from timmscope_synthesis.pre_activation import before_activation

_RATES = {"fourier": 0.0125, "pixel": 0.05, "laplacian": 0.05, "cppn": 0.005}
"""Default step size in each space."""
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

    steps: Annotated[int, Field(ge=1)] = 64
    """Number of gradient steps; 64 give an image that other models recognise, 256 a finer one."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own noise."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels; by default the model's input size, which many transformers require."""
    parameterisation: Literal["fourier", "pixel", "laplacian", "cppn"] = "fourier"
    """Space of the optimisation: Fourier coefficients scaled like the spectrum of photographs,
    pixels, the levels of a pyramid, or the weights of a small network from positions to colours."""
    decay_power: NotNegative = 1.5
    """Exponent of the Fourier scaling's fall with frequency; 1 as in Lucid, larger is smoother."""
    decorrelate: bool = True
    """Optimise in colours that are uncorrelated in photographs."""
    learning_rate: Positive | None = None
    """Step size of Adam; by default 0.0125 for Fourier coefficients, 0.05 for pixels and the levels
    of a pyramid, 0.005 for the weights of a network."""
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
    pre_activation: bool = False
    """Climb what the activation function behind the objective's layer gets, which has a gradient
    where a ReLU gives 0. The scores of the steps are then of that; the final score is not."""
    diversity: NotNegative = 0.0
    """Weight of the similarity of the images of a target, which `count` says: the cosine of their
    Gram matrices at `between_layer`. 20 shows other facets of most units."""
    alignment: NotNegative = 0.0
    """Weight of the differences between images that follow each other, at `between_layer`, so that
    `interpolate(A; B; 5)` changes step by step."""
    between_layer: LayerName | None = None
    """Layer of `diversity` and `alignment`; by default the objective's, or the last with a grid."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images optimised together; by default 1 on a CPU, where more gain little, else 16. Images
    that depend on each other are always optimised together."""

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
        if self.pre_activation:
            objective = before_activation(model, objective)
        between = self._between_layer(model, objective)
        model = loop_model(model, (*objective.points, *filter(None, [between])), self.steps)
        generators = image_generators(count)
        batch_size = self._batch_size(model, count)
        outcomes: list[SynthesisOutcome] = []
        similar: list[float] = []
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            others = None
            if between is not None:
                own_targets = targets[start:stop].tolist()
                others = BetweenImages(model, between, own_targets, self.diversity, self.alignment)
            climb = self._climb(space, others)
            own = generators[start:stop]
            variable = space.start(own, torch.empty(0, device=model.device))
            if init is not None:
                variable = variable + space.variable(init[start:stop].float())
            goal = objective.rows(start, stop)
            found = climb.run(self, model, goal, variable, own, first=start, count=count)
            outcomes.append(found)
            if self.diversity and others is not None:
                similar += self._similarity(model, found.images, others)
        if similar:
            self.note("similarity", similar)
        return SynthesisOutcome.joined(outcomes, targets)

    def _similarity(self, model: HookedModel, images: Tensor, others: BetweenImages) -> list[float]:
        """Mean cosine of the Gram matrix of each image with those of its target's others."""
        with torch.no_grad(), model.record(*others.points) as recording:
            model(images)
            found: list[float] = others.mean_similarity(recording).tolist()
        return found

    def _between_layer(self, model: HookedModel, objective: Objective) -> str | None:
        """The layer at which images are compared; None if they are not."""
        if not self.diversity and not self.alignment:
            return None
        return self.between_layer or default_between(model, objective)

    def _batch_size(self, model: HookedModel, count: int) -> int:
        """Images optimised together; those that depend on each other are not split."""
        size = self.batch_size or (1 if model.device.type == "cpu" else _ACCELERATOR_BATCH)
        if self.alignment:
            return count
        return -(-size // self.count) * self.count if self.diversity else size

    def _climb(self, space: Parameterisation, others: BetweenImages | None) -> Climb:
        rate = self.learning_rate or _RATES[self.parameterisation]
        return Climb(
            space=space,
            steps=self.steps,
            optimiser=lambda variable: torch.optim.Adam([variable], lr=rate),
            views=self._views if self.robust else None,
            penalty=self._penalty if self.l2_weight or self.tv_weight else None,
            together=others,
            points=() if others is None else others.points,
            frames=self.frames,
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

    def _space(self, size: tuple[int, int], channels: int) -> Parameterisation:
        shared: dict[str, Any] = {"decorrelate": self.decorrelate, "channels": channels}
        match self.parameterisation:
            case "pixel":
                return PixelParameterisation(size, **shared)
            case "laplacian":
                return LaplacianParameterisation(size, **shared)
            case "cppn":
                return CppnParameterisation(size, channels=channels)
        return FourierParameterisation(size, decay_power=self.decay_power, **shared)

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
