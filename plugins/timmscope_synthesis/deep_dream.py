"""DeepDream: a network enhances in an image what it sees there, from coarse to fine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    GradientCheck,
    HookedModel,
    Objective,
    SynthesisOutcome,
    SynthesisTechnique,
    TechniqueError,
    check_size,
    frame_steps,
    gaussian_blur,
    image_generators,
    memory_format,
    noise_like,
    per_image,
)

_MOST_PX = 1024
"""Longer side of a dream unless a size is given."""
_TILE_UNIT = 32
"""Tiles begin at multiples of this, so that the strides of a network fit into them."""
_NOISE = 0.1
"""Standard deviation of the noise that a dream starts from without an image."""
_GREY = 0.5

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DeepDream(SynthesisTechnique):
    """DeepDream changes an image so that it excites a layer more, from coarse to fine.

    `x ← clip(x + α · g / mean|g|)` with the gradient g of the objective, at a random shift of the
    image each time. The image is dreamt at several scales, the smallest first: what one scale has
    added is enlarged, and added to the image at the next (octaves). The objective decides what is
    enhanced: the energy of a layer, a unit, a sum of several layers, or what an image resembles of
    another one (`guide(LAYER@FILE)`). Large images are computed in tiles, whose borders move from
    step to step; objectives are means over them. The last image is returned. With `zoom`, each
    frame starts from the one before, enlarged. Cost: `octaves · steps` forward and backward passes
    at up to the full size, per frame.

    An initial image keeps its own size. Without one, a dream starts from noise.

    Paper:
        Mordvintsev, Olah & Tyka, "Inceptionism: Going Deeper into Neural Networks", Google Research
        Blog 2015.

    Inherited parameters:
        judge: model that took no part, whose rank and probability of the class are noted.

    Raises:
        ImageError: an initial image does not have the model's channels, or is not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter is out of range, the model does not take the sizes, or the
            numbers of images do not fit together.
        TechniqueError: the gradient is zero or not finite.
    """

    keeps_init_size: ClassVar[bool] = True

    octaves: Annotated[int, Field(ge=1, le=16)] = 4
    """Number of scales; 1 for a model that takes one size only."""
    octave_scale: Annotated[float, Field(gt=1, le=4)] = 1.4
    """Ratio of the sizes of two octaves."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Gradient steps in each octave."""
    step_size: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5 / 255
    """Mean change of a value in one step, in pixel units."""
    jitter_px: Annotated[int, Field(ge=0)] = 32
    """Largest random shift in pixels, to either side."""
    blur_px: Annotated[float, Field(ge=0, le=64)] = 0.0
    """Standard deviation of a Gaussian that smooths each step, in pixels."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Longer side in pixels; by default the image's own, at most 1,024."""
    tile_px: Annotated[int, Field(ge=64)] = 512
    """Side of a tile in pixels; larger images are computed in several."""
    frames: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of images of the animation: of the dream at equal distances, or of the zoom."""
    zoom: Positive | None = None
    """Enlargement from frame to frame, such as 0.05; by default the dream does not zoom."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Dream one image after the other.

        Raises:
            ParameterError: the model does not take the sizes, or the numbers of images do not fit
                together.
            TechniqueError: the gradient of an image is zero or not finite.
        """
        targets, objective, init = per_image(objective, init)
        generators = image_generators(len(targets))
        start = self._start(model, init, generators)
        sizes = self._sizes((start.shape[2], start.shape[3]))
        parameter, advice = "size", "start from its own size"
        if self.octaves > 1:
            parameter, advice = "octaves", "give octaves=1 and its own size"
        for size in (sizes[0], sizes[-1]):
            part = tuple(max(end - begin for begin, end in self._tiles(side)) for side in size)
            check_size(model, objective.rows(0, 1), (part[0], part[1]), parameter, advice)
        made = []
        for row, image in enumerate(start.split(1)):
            goal = objective.rows(row, row + 1)
            made.append(_Dream(self, model, goal, row, generators[row], sizes).film(image))
        return SynthesisOutcome.joined(made, targets)

    def score(self, model: HookedModel, images: Tensor, objective: Objective) -> Tensor:
        """The objective of pictures, of large ones as the mean over their tiles."""
        if max(images.shape[2:]) <= self.tile_px:
            found: Tensor = model.score(images, objective)
            return found
        total = images.new_zeros(len(images))
        pixels = images.shape[2] * images.shape[3]
        for top, bottom in self._tiles(images.shape[2]):
            for left, right in self._tiles(images.shape[3]):
                part = images[..., top:bottom, left:right]
                share = (bottom - top) * (right - left) / pixels
                total = total + share * model.score(part, objective)
        return total

    def _start(
        self, model: HookedModel, init: Tensor | None, generators: list[torch.Generator]
    ) -> Tensor:
        """Images `(B, C, H, W)` to start from: the initial ones at their size, or noise."""
        if init is None:
            _, height, width = model.input_size
            scale = 1.0 if self.size is None else self.size / max(height, width)
            blank = torch.zeros(
                len(generators), model.input_size[0], round(height * scale), round(width * scale)
            ).to(model.device)
            return (_GREY + _NOISE * noise_like(blank, generators=generators)).clamp(0, 1)
        longest = max(init.shape[2:])
        wanted = min(longest, _MOST_PX) if self.size is None else self.size
        if wanted == longest:
            return init.float()
        scale = wanted / longest
        return _resized(init.float(), (round(init.shape[2] * scale), round(init.shape[3] * scale)))

    def _sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width in each octave, the smallest first."""
        scales = [self.octave_scale**-number for number in reversed(range(self.octaves))]
        return [(max(round(size[0] * s), 1), max(round(size[1] * s), 1)) for s in scales]

    def _tiles(self, side: int) -> list[tuple[int, int]]:
        """Begin and end of each tile along a side."""
        count = -(-side // self.tile_px)
        ends = [round(side * number / count / _TILE_UNIT) * _TILE_UNIT for number in range(count)]
        return list(zip(ends, [*ends[1:], side], strict=True))


class _Dream:
    """Dreams of one image.

    Args:
        technique: the parameters.
        model: the model.
        objective: the bound objective of the image.
        row: number of the image, for messages.
        generator: draws the shifts.
        sizes: height and width in each octave.
    """

    def __init__(
        self,
        technique: DeepDream,
        model: HookedModel,
        objective: Objective,
        row: int,
        generator: torch.Generator,
        sizes: list[tuple[int, int]],
    ) -> None:
        self._technique = technique
        self._model = model
        self._objective = objective
        self._row = row
        self._generator = generator
        self._sizes = sizes
        self._layout = memory_format(model.module)
        self._scores: list[Tensor] = []

    def film(self, image: Tensor) -> SynthesisOutcome:
        """Dream of an image `(1, C, H, W)`, once, or once for each frame of the zoom."""
        t = self._technique
        length = t.octaves * t.steps
        dreams = max(t.frames, 1) if t.zoom else 1
        kept = frame_steps(length, t.frames) if not t.zoom else {length - 1}
        frames = []
        track = iter(t.track(range(dreams * length), "dreaming"))
        for number in range(dreams):
            if number:
                assert t.zoom is not None, "one dream without a zoom"
                image = _zoomed(image, 1 + t.zoom)
            for step, found in self._steps(image):
                next(track)
                if t.frames and step in kept:
                    frames.append(_resized(found, self._sizes[-1]).clamp(0, 1).cpu())
            image = found
        for _ in track:  # ends the progress
            pass
        return SynthesisOutcome(
            images=image,
            scores=torch.stack(self._scores),
            best_step=torch.tensor([len(self._scores) - 1]),
            frames=torch.stack(frames) if frames else None,
        )

    def _steps(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each step's number and its image, at the size of its octave."""
        t = self._technique
        added = torch.zeros_like(_resized(image, self._sizes[0]))
        length = t.octaves * t.steps
        check = GradientCheck(self._objective, 1, length, self._row, image)
        step = 0
        with self._model.record(*self._objective.points) as recording:
            for size in self._sizes:
                base = _resized(image, size)
                found = (base + _resized(added, size)).clamp(0, 1)
                for _ in range(t.steps):
                    shift = self._shift(size)
                    rolled = found.roll(shift, dims=(2, 3))
                    score, gradient = self._gradient(recording, rolled)
                    check.add(gradient, step)
                    if t.blur_px:  # in [0, 1] meanwhile; its scale is of no account
                        largest = gradient.abs().amax().clamp(min=1e-30)
                        gradient = (
                            gaussian_blur(_GREY + gradient / (2 * largest), t.blur_px) - _GREY
                        )
                    length_of_step = gradient.abs().mean((1, 2, 3), keepdim=True)
                    if not bool(torch.isfinite(length_of_step).all()):
                        raise TechniqueError(
                            f"the gradient of {self._objective.label} is not finite at step "
                            f"{step} of image {self._row}: give a smaller step_size"
                        )
                    moved = rolled + t.step_size * gradient / length_of_step.clamp(min=1e-30)
                    found = moved.roll([-part for part in shift], dims=(2, 3)).clamp(0, 1)
                    self._scores.append(score)
                    yield step, found
                    step += 1
                added = found - base

    def _shift(self, size: tuple[int, int]) -> list[int]:
        """Draw rows and columns to roll by: within the jitter, or within a tile."""
        t = self._technique
        draws = torch.rand(2, generator=self._generator).tolist()
        if max(size) > t.tile_px:
            return [int(draw * t.tile_px) for draw in draws]
        return [int(draw * (2 * t.jitter_px + 1)) - t.jitter_px for draw in draws]

    def _gradient(self, recording: Mapping[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective `(1,)`, and its gradient in the image: the mean over tiles."""
        t = self._technique
        height, width = image.shape[2:]
        total, gradient = image.new_zeros(1), torch.zeros_like(image)
        for top, bottom in t._tiles(height):
            for left, right in t._tiles(width):
                part = image[..., top:bottom, left:right].contiguous(memory_format=self._layout)
                part = part.detach().requires_grad_()
                self._model(part)
                share = (bottom - top) * (right - left) / (height * width)
                score = share * self._objective(recording)
                (found,) = torch.autograd.grad(score.sum(), part)
                gradient[..., top:bottom, left:right] = found
                total = total + score.detach().float()
        return total, gradient


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[2:]) == size:
        return images
    return functional.interpolate(
        images, size, mode="bilinear", antialias=True, align_corners=False
    )


def _zoomed(image: Tensor, factor: float) -> Tensor:
    """The middle of an image, enlarged to its size."""
    grid = functional.affine_grid(
        torch.tensor([[[1 / factor, 0, 0], [0, 1 / factor, 0]]]).to(image),
        list(image.shape),
        align_corners=False,
    )
    return functional.grid_sample(
        image, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    ).clamp(0, 1)
