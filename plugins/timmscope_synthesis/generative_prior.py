"""Activation maximisation in the codes of a decoder, so that images look like those it knows."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from timmscope import (
    Climb,
    HookedModel,
    ImageSet,
    ImageSetName,
    NetworkName,
    NormalisedSteps,
    Objective,
    ParameterError,
    PixelParameterisation,
    RandomViews,
    SynthesisOutcome,
    SynthesisTechnique,
    image_generators,
    image_rows,
    loop_model,
    per_image,
)
from timmscope_synthesis.decoded_space import DecoderParameterisation
from timmscope_synthesis.decoder_training import DecoderTraining

_STEP_SIZES = {"adam": 0.1, "normalised": 0.5}
"""Default size of a step of a code whose units have variance 1."""
_FREE_RATE = 0.05
_SMALLEST_STEP = 1e-10
_READ_AT_ONCE = 256
_ACCELERATOR_BATCH = 16

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class GenerativePrior(SynthesisTechnique):
    """A generative prior maximises the objective over the codes of a decoder, not over pixels.

    `max_z E_v[S(v(G(z)))] − l2_weight · |z|²`, from `z ~ N(0, 1)`: the objective S under random
    views v of the decoded image G(z). After each step the code shrinks by `decay`, and its units
    are clipped to the bounds that the decoder knows from its training. Every 16 steps and at the
    end the images are scored without a view, minus the penalty, and the best is returned.
    `decoder-training` makes a decoder of your images; any module from codes to images in [0, 1]
    will do. Its images are resized to the model's input size.

    It is a trade-off. The image looks like those that the decoder was trained on, and shows less of
    what the model alone would ask for: whatever the decoder cannot draw stays unseen, and what it
    draws need not be the model's idea. The notes say what it costs: `prior_score` beside
    `free_score`, that of an image whose pixels climb as many steps without the prior. With
    `training_images`, `nearest_training` and `free_nearest_training` are the distances in L2 and
    pixel units from both images to the nearest training image: small ones may be copies.

    The paper takes `optimizer=normalised` with steps `s · g / mean|g|`, s from 8 to 0 for codes of
    its layer fc6, and `decay=0.01`.

    Paper:
        - Nguyen, Dosovitskiy, Yosinski, Brox & Clune, "Synthesizing the preferred inputs for
          neurons in neural networks via deep generator networks", NeurIPS 2016, arXiv:1605.09304.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: a training image cannot be read.
        ModelError: the decoder's weights or card are damaged, or its user does not trust the card.
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, there is an initial image, the decoder is no
            network of `decoder-training` and no module, its codes or images do not fit, or it was
            trained on other images than `training_images`.
        TechniqueError: the gradient is zero or not finite.
    """

    decoder: NetworkName[DecoderTraining]
    """Folder that `decoder-training` wrote; in Python also a module from codes to images."""
    code_length: Annotated[int, Field(ge=1)] | None = None
    """Units of a code, for a module that does not say it."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Number of gradient steps."""
    count: Annotated[int, Field(ge=1)] = 1
    """Number of images per target, each from its own code."""
    optimizer: Literal["adam", "normalised"] = "adam"
    """Adam, or steps of a given mean size that falls linearly to 0."""
    step_size: Positive | None = None
    """Step size of Adam, by default 0.1; mean size of the first normalised step, by default 0.5."""
    l2_weight: NotNegative = 0.1
    """Penalty λ on the squared length of the code."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the code that is lost in each step."""
    clip: bool = True
    """Keep each unit within the bounds that the decoder knows."""
    robust: bool = True
    """Show the model a random view of the image at each step."""
    compare: bool = True
    """Climb also without the prior, for `free_score`; it doubles the time."""
    training_images: ImageSetName | None = None
    """Images that the decoder was trained on, for the distance to the nearest one."""
    frames: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of intermediate images to keep for an animation, at equal distances."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images optimised together; by default 1 on a CPU, where more gain little, else 16."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Optimise the codes in batches, then pixels for comparison.

        Raises:
            ParameterError: there is an initial image, or the decoder does not fit the model.
            TechniqueError: the gradient of an image is zero.
        """
        if init is not None:
            raise ParameterError(
                "a generative prior starts from a code, not from an image: leave init unset",
                parameter="init",
            )
        known = self._known_images()
        space = DecoderParameterisation(self.open_network(self.decoder), model, self.code_length)
        targets, objective, _ = per_image(objective, None, self.count)
        outcome = SynthesisOutcome.joined(
            self._climbed(model, objective, self._climb(space), len(targets)), targets
        )
        images = {"nearest_training": outcome.images}
        if self.compare:
            pixels = PixelParameterisation(space.size, decorrelate=True, channels=space.channels)
            free = Climb(
                space=pixels,
                steps=self.steps,
                optimiser=lambda variable: torch.optim.Adam([variable], lr=_FREE_RATE),
                views=self._views,
            )
            parts = self._climbed(model, objective, free, len(targets))
            without = torch.cat([part.images for part in parts])
            self.note("free_score", _scores(model, objective, without))
            images["free_nearest_training"] = without
        if known is not None:
            distances = self._nearest(torch.cat(list(images.values())), known)
            for name, part in zip(images, distances.split(len(targets)), strict=True):
                self.note(name, part)
        self.note("prior_score", _scores(model, objective, outcome.images))
        return outcome

    def _climb(self, space: DecoderParameterisation) -> Climb:
        bounds = space.bounds if self.clip else None

        def after_step(codes: Tensor, step: int) -> None:
            codes.mul_(1 - self.decay)
            if bounds is not None:
                low, high = (each.to(codes).reshape(codes.shape[1:]) for each in bounds)
                codes.copy_(torch.maximum(torch.minimum(codes, high), low))

        def penalty(codes: Tensor) -> Tensor:
            return self.l2_weight * codes.flatten(1).square().sum(1)

        return Climb(
            space=space,
            steps=self.steps,
            optimiser=self._optimiser,
            views=self._views,
            variable_penalty=penalty if self.l2_weight else None,
            after_step=after_step if self.decay or bounds is not None else None,
            frames=self.frames,
        )

    def _optimiser(self, codes: Tensor) -> torch.optim.Optimizer:
        size = self.step_size or _STEP_SIZES[self.optimizer]
        if self.optimizer == "adam":
            return torch.optim.Adam([codes], lr=size)
        return NormalisedSteps([codes], size, _SMALLEST_STEP, self.steps)

    @property
    def _views(self) -> RandomViews | None:
        return RandomViews() if self.robust else None

    def _climbed(
        self, model: HookedModel, objective: Objective, climb: Climb, count: int
    ) -> list[SynthesisOutcome]:
        """Climb in batches, each image from its own start."""
        fast = loop_model(model, objective.points, self.steps)
        generators = image_generators(count)
        batch_size = self.batch_size or (1 if model.device.type == "cpu" else _ACCELERATOR_BATCH)
        outcomes = []
        for start in range(0, count, batch_size):
            own = generators[start : start + batch_size]
            goal = objective.rows(start, start + len(own))
            variable = climb.space.start(own, torch.empty(0, device=model.device))
            outcomes.append(climb.run(self, fast, goal, variable, own, first=start, count=count))
        return outcomes

    def _known_images(self) -> ImageSet | None:
        """Return the training images, if they are named.

        Raises:
            ParameterError: the decoder's card says that it was trained on others.
        """
        if self.training_images is None:
            return None
        known = self.open_images(self.training_images)
        if isinstance(self.decoder, nn.Module):
            return known
        weights = self.open_weights(self.decoder)
        if known.fingerprint() != weights.card.data["fingerprint"]:
            raise ParameterError(
                f"{known.location or 'training_images'} holds other images than those that "
                f"{weights.folder} was trained on: name those, or leave it unset",
                parameter="training_images",
            )
        return known

    def _nearest(self, images: Tensor, known: ImageSet) -> Tensor:
        """Return the L2 distance of each image to the nearest of others, `(B,)`."""
        rows = images.flatten(1).cpu().double()
        nearest = rows.new_full((len(rows),), torch.inf)
        starts = range(0, len(known), _READ_AT_ONCE)
        for start in self.track(starts, "nearest training images"):
            stop = min(start + _READ_AT_ONCE, len(known))
            part = torch.stack([known.load(number).image for number in range(start, stop)])
            found = torch.cdist(rows, part.flatten(1).cpu().double()).amin(1)
            nearest = torch.minimum(nearest, found)
        return nearest


def _scores(model: HookedModel, objective: Objective, images: Tensor) -> Tensor:
    """Return the objective of each image, without views, `(B,)`."""
    found = []
    for row, image in enumerate(images.split(1)):
        with torch.no_grad(), image_rows([row]):
            found.append(model.score(image, objective.rows(row, row + 1)))
    return torch.cat(found)
