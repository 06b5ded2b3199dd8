"""MACO: the phases of an image climb the objective; its magnitudes are those of photographs."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Climb,
    CropViews,
    HookedModel,
    ImageSetName,
    Objective,
    ParameterError,
    PhaseParameterisation,
    SynthesisOutcome,
    SynthesisTechnique,
    falling_spectrum,
    image_generators,
    loop_model,
    mean_spectrum,
    per_image,
)

LEAST_IMAGES = 4
"""Number of images from which a spectrum can be measured."""

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Maco(SynthesisTechnique):
    """MACO optimises the phases of an image whose magnitudes are those of photographs.

    Only the phases of the Fourier transform move, by NAdam, so the image keeps the spectrum of
    photographs however strong the gradient is. The magnitudes are the mean of a folder of images
    (`spectrum`), or fall as 1/f. At each step the model sees random crops of the image, which
    become smaller, with noise. How much each pixel mattered is summed over all steps, and pictures
    show the rest as white. Cost: `steps · crops` forward and backward passes per image.

    Paper:
        Fel, Boissin, Boutin, Picard, Novello, Colin, Linsley, Rousseau, Cadène, Goetschalckx,
        Gardes & Serre, "Unlocking Feature Visualization for Deep Networks with MAgnitude
        Constrained Optimization", NeurIPS 2023, arXiv:2306.06805.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, the spectrum's folder has too few images, or
            the numbers of images do not fit together.
        TechniqueError: the gradient is zero or not finite.
    """

    steps: Annotated[int, Field(ge=1)] = 256
    """Number of gradient steps."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own phases."""
    size: Annotated[int, Field(ge=16)] = 512
    """Side of the image in pixels; crops are resized to the model's input."""
    spectrum: ImageSetName | None = None
    """Images whose mean spectrum is kept, at least 4; by default one that falls as 1/f."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Step size of NAdam on the phases."""
    crops: Annotated[int, Field(ge=1)] = 8
    """Number of crops at each step; 32 in the paper, which takes four times as long."""
    first_crop: Share = 0.5
    """Mean side of a crop at the first step, as a share of the image."""
    last_crop: Share = 0.2
    """Mean side of a crop at the last step."""
    noise: NotNegative = 0.08
    """Standard deviation of the noise that is added to crops; half as much is added uniformly."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Optimise one image after the other.

        Raises:
            ParameterError: the spectrum's folder has too few images, or the numbers of images do
                not fit together.
            TechniqueError: the gradient of an image is zero.
        """
        targets, objective, init = per_image(objective, init, self.count)
        size, channels = (self.size, self.size), model.input_size[0]
        space = PhaseParameterisation(size, self._magnitude(size, channels), decorrelate=True)
        views = CropViews(
            number=self.crops,
            first_size=self.first_crop,
            last_size=self.last_crop,
            normal_noise=self.noise,
            uniform_noise=self.noise / 2,
        )
        climb = Climb(
            space=space,
            steps=self.steps,
            optimiser=lambda phase: torch.optim.NAdam([phase], lr=self.learning_rate),
            views=views,
            view_size=(model.input_size[1], model.input_size[2]),
            frames=self.frames,
            importance=True,
        )
        model = loop_model(model, objective.points, self.steps)
        made = []
        for row, own in enumerate(image_generators(len(targets))):
            phase = space.start([own], torch.empty(0, device=model.device))
            if init is not None:
                phase = space.variable(init[row : row + 1].float())
            goal = objective.rows(row, row + 1)
            made.append(climb.run(self, model, goal, phase, [own], first=row, count=len(targets)))
        return SynthesisOutcome.joined(made, targets)

    def _magnitude(self, size: tuple[int, int], channels: int) -> Tensor:
        """Magnitudes of the waves."""
        if self.spectrum is None:
            return falling_spectrum(size, channels)
        images = self.open_images(self.spectrum)
        if len(images) < LEAST_IMAGES:
            raise ParameterError(
                f"{self.spectrum} has {len(images)} images, too few to measure a spectrum of: "
                f"give at least {LEAST_IMAGES}, or leave spectrum unset",
                parameter="spectrum",
            )
        pictures = (
            images.load(number).image
            for number in self.track(range(len(images)), "measuring the spectrum")
        )
        return mean_spectrum(pictures, size, decorrelate=True)
