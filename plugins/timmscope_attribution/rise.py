"""RISE: the mean of random masks, each weighted by the score of the masked image."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    AttributionTechnique,
    HookedModel,
    Objective,
    baseline_images,
    image_generators,
    image_rows,
    perturbed_scores,
)


class RISE(AttributionTechnique):
    """RISE averages random masks, each weighted by the score of the masked image.

    `Σ_i S(I ⊙ M_i) · M_i / (N · p)`. The N masks M are coarse random grids in which each cell is
    open with probability p, enlarged by bilinear interpolation and shifted at random by less than a
    cell. Hidden pixels take the model's mean colour. For a class, S is the softmax probability, as
    in the paper; any other objective is used as it is. Cost: N forward passes per image.

    Paper:
        Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
        Models", BMVC 2018, arXiv:1806.07421.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        ParameterError: a parameter or `batch_size` is out of range.
        TechniqueError: the map is zero everywhere or not finite.
    """

    masks: int = Field(default=4000, ge=1)
    """Number of masks N, and of forward passes; the paper uses 4000 to 8000."""
    cells: int = Field(default=7, ge=1)
    """Number of cells along each side of a mask's grid."""
    keep: float = Field(default=0.5, gt=0, lt=1)
    """Probability p that a cell is left visible."""

    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Tensor:
        """Maps `(B, H, W)`; the masks of an image depend only on the seed and its index."""
        mean_colour = baseline_images(model, images, "mean")
        generators = image_generators(len(images))
        maps = []
        for row, (image, fill) in enumerate(zip(images, mean_colour, strict=True)):
            with image_rows([row]):
                goal = objective.rows(row, row + 1)
                maps.append(self._map(model, image, fill, goal, generators[row]))
        return torch.stack(maps)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Random masks `(count, *size)` in [0, 1] with mean p at every pixel.

        The masks depend on the generator only, not on how many are drawn per call.
        """
        cell = [-(-side // self.cells) for side in size]
        enlarged = [(self.cells + 1) * step for step in cell]
        grids, shifts = [], []
        for _ in range(count):
            numbers = torch.rand(self.cells**2 + 2, generator=generator)
            grids.append((numbers[2:] < self.keep).float().view(self.cells, self.cells))
            shifts.append([int(number * step) for number, step in zip(numbers, cell, strict=False)])
        whole = functional.interpolate(torch.stack(grids)[:, None], enlarged, mode="bilinear")
        whole.clamp_(0, 1)  # interpolation may exceed 1 by rounding
        return torch.stack(
            [
                mask[0, top : top + size[0], left : left + size[1]]
                for mask, (top, left) in zip(whole, shifts, strict=True)
            ]
        )

    def _map(
        self,
        model: HookedModel,
        image: Tensor,
        fill: Tensor,
        objective: Objective,
        generator: torch.Generator,
    ) -> Tensor:
        size = (image.shape[1], image.shape[2])
        total = torch.zeros(size, dtype=torch.float64, device=image.device)
        masks = image.new_empty(0)

        def make(start: int, stop: int) -> Tensor:
            nonlocal masks
            masks = self.draw(stop - start, size, generator).to(image)
            return torch.lerp(fill, image, masks[:, None])

        def add(scores: Tensor) -> None:
            total.add_(torch.einsum("n,nyx->yx", scores.to(image), masks))

        perturbed_scores(
            model,
            image,
            objective,
            self.masks,
            make,
            probability=True,
            description="masking",
            each=add,
        )
        return (total / (self.masks * self.keep)).to(image)
