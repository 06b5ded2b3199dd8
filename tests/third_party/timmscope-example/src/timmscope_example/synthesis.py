"""Random search."""

import torch
from pydantic import Field
from torch import Tensor

from timmscope import HookedModel, Objective, SynthesisOutcome, SynthesisTechnique, image_generators


class BestOfNoise(SynthesisTechnique):
    """Draws images of coarse noise and keeps the one that scores best; needs no gradient."""

    draws: int = Field(default=16, ge=1)
    """How many images to draw for each target."""
    cells: int = Field(default=4, ge=1)
    """Squares along each side of an image."""

    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """The best image of each target; a draw is a step."""
        generators = image_generators(objective.num_targets or 1)
        size = tuple(model.input_size[1:])
        best, scores = [], []
        for _ in self.track(range(self.draws)):
            coarse = [torch.rand(3, self.cells, self.cells, generator=g) for g in generators]
            images = torch.nn.functional.interpolate(torch.stack(coarse), size).to(model.device)
            with torch.no_grad():
                scores.append(model.score(images, objective))
            best.append(images)
        course = torch.stack(scores)
        first = course.argmax(0)
        chosen = torch.stack([best[int(step)][row] for row, step in enumerate(first)])
        return SynthesisOutcome(chosen, course, first)
