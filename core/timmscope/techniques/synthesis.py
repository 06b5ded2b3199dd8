"""Base class and result of syntheses, which make images that maximise an objective."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.results.result import Result
from timmscope.techniques import arguments
from timmscope.techniques.attribution import objective_labels
from timmscope.techniques.base import Technique, require_model, technique_error
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, own_numbers, session
from timmscope.techniques.validate_output import checked_numbers, checked_pixels, checked_type

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SynthesisOutcome:
    """Return value of `synthesize`.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1].
        scores: `(steps, B)` objective at each step, as the optimiser sees it.
        best_step: `(B,)` int64 step (from 0) whose update gave the returned image.
    """

    images: Tensor
    scores: Tensor
    best_step: Tensor


@dataclass(frozen=True, kw_only=True)
class Synthesis(Result):
    """Images made to maximise an objective.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1].
        scores: `(steps, B)` objective at each step, under the step's random transformation.
        best_step: `(B,)` step (from 0) whose update gave the returned image.
        final_scores: `(B,)` objective of the returned images, computed again without
            transformation.
        objective: text of the objective.
        labels: name of each image's objective.
    """

    images: Tensor
    scores: Tensor
    best_step: Tensor
    final_scores: Tensor
    objective: str
    labels: list[str]

    def figure(self) -> Figure:
        """Draw the images beside the curves of the objective."""
        from timmscope.drawing import MAX_ROWS, curves_figure, format_number

        count = min(len(self.images), MAX_ROWS)
        names = [f"{row + 1}" for row in range(count)] if count > 1 else [""]
        captions = [  # the legend names each image by its number
            (f"{name}  {self.labels[row]}".lstrip(), f"objective {format_number(float(score))}")
            for row, (name, score) in enumerate(zip(names, self.final_scores, strict=False))
        ]
        curves = {name: self.scores[:, row] for row, name in enumerate(names)}
        return curves_figure(list(self.images[:count]), captions, curves, "objective")

    def pictures(self) -> dict[str, Any]:
        """Return the images."""
        return {f"image-{row:03d}": image for row, image in enumerate(self.images)}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image: objective, final score, best step."""
        return [
            {
                "image": row,
                "objective": self.labels[row],
                "first_score": float(self.scores[0, row]),
                "final_score": float(self.final_scores[row]),
                "best_step": int(self.best_step[row]),
                "steps": len(self.scores),
            }
            for row in range(len(self.images))
        ]


class SynthesisTechnique(Technique):
    """Base class of syntheses; a subclass implements `synthesize`."""

    family: ClassVar[str] = "synthesis"
    base: ClassVar[str] = "synthesis"

    @abstractmethod
    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Make images for a bound objective; `init` is `(B, 3, H, W)` in [0, 1] or None."""

    @final
    def __call__(
        self,
        model: arguments.Model,
        objective: arguments.Objective,
        *,
        init: arguments.Image = None,
        seed: int = 0,
    ) -> Synthesis:
        """Make images that maximise an objective.

        Args:
            model: the model.
            objective: what to maximise: `tiger cat`, `class:282`, a unit `blocks.4[17]`, a layer.
                In Python also an `Objective` or a class index.
            init: image to start from; by default noise. In Python also several, as `model.images`
                takes them; one image is used for all targets of the objective.
            seed: seed of the noise and the random transformations.

        Raises:
            ObjectiveError: the objective does not fit the model.
            TechniqueError: the gradient is zero or not finite, or the images are not in [0, 1].
        """
        require_model(model)
        with own_numbers(model, seed):
            return self._synthesized(model, objective, init, seed)

    def _synthesized(self, model: HookedModel, objective: Any, init: Any, seed: int) -> Synthesis:
        start = model.images(init).detach() if init is not None else None
        goal = as_objective(objective).resolve(model)
        if start is not None and len(start) == 1 and goal.num_targets:
            start = start.expand(goal.num_targets, -1, -1, -1)
        bound = goal.bind(model, start)
        facts = self._provenance(model, seed, objective=str(bound))
        with session(seed), restore_state(self, model, facts.weights_sha256):
            outcome = self.synthesize(model, bound, None if start is None else start.clone())
        checked_type(self, outcome, SynthesisOutcome)
        images = checked_pixels(self, outcome.images, ("B", model.input_size[0], "H", "W"))
        scores = checked_numbers(
            self,
            outcome.scores,
            "scores",
            ("steps", len(images)),
            "lower the step size or learning rate",
        )
        best = checked_numbers(self, outcome.best_step, "best steps", (len(images),))
        if best.is_floating_point() or not bool(((best >= 0) & (best < len(scores))).all()):
            wanted = f"whole numbers from 0 to {len(scores) - 1}"
            raise technique_error(self, f"returned best steps {best.tolist()}", expected=wanted)
        final = _scores(model, images, bound)
        return Synthesis(
            provenance=facts,
            images=images,
            scores=scores.float().cpu(),
            best_step=best.cpu(),
            final_scores=final,
            objective=str(bound),
            labels=objective_labels(model, bound, len(images)),
        )


def _scores(model: HookedModel, images: Tensor, bound: Objective) -> Tensor:
    step = chunk_size(model, images, None)
    with torch.no_grad():
        parts = [
            model.score(images[row : row + step].to(model.device), bound.rows(row, row + step))
            for row in range(0, len(images), step)
        ]
    return torch.cat(parts).cpu()
