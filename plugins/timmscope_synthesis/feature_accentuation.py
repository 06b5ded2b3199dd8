"""Feature accentuation: what a model sees in a photograph becomes stronger in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Climb,
    CropViews,
    HookedModel,
    LayerName,
    Objective,
    ParameterError,
    PhaseParameterisation,
    PixelParameterisation,
    SynthesisOutcome,
    SynthesisTechnique,
    default_layer,
    image_generators,
    loop_model,
    per_image,
)
from timmscope_synthesis.balance import Balanced

_EARLIER = 0.4
"""Place of the default layer among those with a grid, from the first to the last."""

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FeatureAccentuation(SynthesisTechnique):
    """Feature accentuation makes an objective stronger in a photograph, and keeps it recognisable.

    It climbs `S(x) − λ |a(x) − a(x₀)|² / |a(x₀)|²` from the photograph x₀ over random crops with
    noise: with the activation a of an earlier layer, which keeps what is there, and only the phases
    of the image's waves as variables, which keeps its texture. λ is `regularization` times the
    ratio of the two terms' gradients (L1) after the first step. The result shows what in this very
    photograph excites a unit or a class, where, and what it should have been. Cost: `steps · crops`
    times two forward passes and a backward pass per image.

    Paper:
        Hamblin, Fel, Saha, Konkle & Alvarez, "Feature Accentuation: Revealing 'What' Features
        Respond to in Natural Images", 2024, arXiv:2402.10039.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        LayerNotFound: there is no such layer.
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, there is no photograph to start from, or the
            numbers of images do not fit together.
        TechniqueError: the gradient is zero or not finite.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    """Number of gradient steps."""
    regularization: NotNegative = 0.1
    """How strongly the earlier layer's activation is kept, relative to the objective; 0 for free
    ascent from the photograph."""
    layer: LayerName | None = None
    """Layer whose activation is kept; by default one at two fifths of the depth."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    """Step size of Adam on the phases, in radians."""
    crops: Annotated[int, Field(ge=1)] = 4
    """Number of crops at each step."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Smallest side of a crop, as a share of the image."""
    largest_crop: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Largest side of a crop."""
    noise: NotNegative = 0.02
    """Standard deviation of the noise that is added to crops."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Accentuate one image after the other.

        Raises:
            ParameterError: there is no photograph to start from, or the numbers of images do not
                fit together.
            TechniqueError: the gradient of an image is zero.
        """
        if init is None:
            raise ParameterError(
                "feature accentuation starts from a photograph: give one with init (--init FILE), "
                "or use activation-maximization",
                parameter="init",
            )
        if self.smallest_crop > self.largest_crop:
            raise ParameterError(
                f"smallest_crop is {self.smallest_crop:g} and largest_crop {self.largest_crop:g}: "
                "give a smallest_crop of at most largest_crop",
                parameter="smallest_crop",
            )
        targets, objective, init = per_image(objective, init)
        assert init is not None, "checked above"
        layer = self.layer or _earlier_layer(model, objective)
        model = loop_model(model, (*objective.points, layer), self.steps)
        middle = (self.smallest_crop + self.largest_crop) / 2
        views = CropViews(
            number=self.crops,
            first_size=middle,
            last_size=middle,
            size_deviation=0,
            size_range=self.largest_crop - middle,
            centre_deviation=0.3,
            normal_noise=self.noise,
            uniform_noise=0,
        )
        made, changes = [], []
        for row, own in enumerate(image_generators(len(targets))):
            photograph = init[row : row + 1].float().to(model.device)
            goal = objective.rows(row, row + 1)
            near = _Nearness(model, layer, photograph)
            kept = Balanced(model, goal, layer, near, self.regularization)
            size = (photograph.shape[2], photograph.shape[3])
            channels = photograph.shape[1]
            latent = PixelParameterisation(size, decorrelate=True, channels=channels)
            magnitude = torch.fft.rfft2(latent.variable(photograph), norm="ortho").abs()
            space = PhaseParameterisation(size, magnitude, decorrelate=True, standardise=False)
            climb = Climb(
                space=space,
                steps=self.steps,
                optimiser=lambda phase: torch.optim.Adam([phase], lr=self.learning_rate),
                views=views,
                together=kept if self.regularization else None,
                points=(layer,) if self.regularization else (),
                beside=photograph if self.regularization else None,
                after_step=kept.after_step(space) if self.regularization else None,
                frames=self.frames,
            )
            phase = space.variable(photograph)
            found = climb.run(self, model, goal, phase, [own], first=row, count=len(targets))
            made.append(found)
            changes.append(near.change(found.images))
        self.note("feature_change", changes)
        return SynthesisOutcome.joined(made, targets)


class _Nearness:
    """Minus the relative squared change of a layer's activation.

    Args:
        model: the model.
        layer: name of the layer.
        photograph: `(1, C, H, W)`.
    """

    def __init__(self, model: HookedModel, layer: str, photograph: Tensor) -> None:
        self._model, self._layer = model, layer
        with torch.no_grad(), model.record(layer) as recording:
            model(photograph)
            self._own = recording[layer].clone()

    def __call__(
        self, recording: Mapping[str, Tensor], beside: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The value of each view, compared with the same view of the photograph."""
        own = self._own if beside is None else beside[self._layer]
        change = (recording[self._layer] - own).float().square().flatten(1).sum(1)
        return -change / own.float().square().flatten(1).sum(1).clamp(min=1e-30)

    def change(self, images: Tensor) -> float:
        """Relative squared change of the activation of an image."""
        with torch.no_grad(), self._model.record(self._layer) as recording:
            self._model(images)
            return -float(self(recording))


def _earlier_layer(model: HookedModel, objective: Objective) -> str:
    """Return a layer with a grid before the layers of the objective, at two fifths of the depth."""
    layers = model.layers
    first = min(
        (layers[point].order for point in objective.points if point in layers),
        default=max(layer.order for layer in layers.values()),
    )
    names = [
        name for name, layer in layers.items() if layer.grid is not None and layer.order < first
    ]
    return names[int(_EARLIER * len(names))] if names else default_layer(model, objective)
