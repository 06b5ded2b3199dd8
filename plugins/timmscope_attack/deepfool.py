"""DeepFool: steps to the nearest boundary of the linearised model."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import Goal, HookedModel, mean_over_draws
from timmscope_attack.boundaries import boundaries, likely_others, nearest_plane
from timmscope_attack.minimum import MinimumNormAttack
from timmscope_attack.outputs import mean_outputs

_BEYOND = 1e-4


class DeepFool(MinimumNormAttack):
    """DeepFool goes to the nearest decision boundary of the model's linearisation, again and again.

    L2: `r = (|f_k| + 10⁻⁴·‖w_k‖) · w_k / ‖w_k‖²` for the class k of the least `|f_k| / ‖w_k‖`,
    where `f_k = z_k − z_y` and w_k is its gradient. L∞: the sign of w_k and its L1 norm instead.
    The image is `x + (1 + overshoot) · Σ r`, clipped to [0, 1]. On a linear model one step finds
    the exact distance. The candidates are the classes of the largest logits of the original; with a
    target, or an objective, there is one candidate: its margin. Images leave the batch when they
    fool the model. Cost: one forward more than steps, mostly three to five, and `candidates` − 1
    backward passes per image and step.

    Paper:
        Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool: A Simple and Accurate Method to Fool Deep
        Neural Networks", CVPR 2016, arXiv:1511.04599.

    Inherited parameters:
        epsilon: largest change that counts as a success, in pixel units [0, 1]; by default any.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["l2", "linf"] = "l2"
    """Norm of the change: `l2`, its Euclidean length, or `linf`, its largest value."""
    steps: int = Field(default=50, ge=1)
    """Largest number of steps."""
    candidates: int = Field(default=10, ge=2)
    """Number of classes, with the label, between which boundaries are compared."""
    overshoot: float = Field(default=0.02, ge=0, allow_inf_nan=False)
    """Share by which the whole change is longer than the steps."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the images where they first fool the model, or after the last step."""
        total = torch.zeros_like(images)
        changed = images.clone()
        rows = torch.arange(len(images), device=images.device)
        classes = self._classes(model, images, goal)
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            own, which = goal.rows(rows), classes[rows] if classes is not None else None
            compute = partial(boundaries, model, changed[rows], own, which)
            with self.only(rows):
                outputs, values, slopes = mean_over_draws(
                    model, compute, step=step + 1, draws=self.draws
                )
            going = ~own.reached(outputs)
            rows = rows[going]
            if not len(rows):
                break
            value, slope, dual = nearest_plane(values[going], slopes[going], self.norm)
            self.note_gradient(slope, rows)
            unit = slope.sign() if self.norm == "linf" else slope / dual.view(-1, 1, 1, 1)
            total[rows] += (value.abs() / dual + _BEYOND).view(-1, 1, 1, 1) * unit
            changed[rows] = (images[rows] + (1 + self.overshoot) * total[rows]).clamp(0, 1)
        return changed

    def _classes(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor | None:
        """Return the classes of the largest logits but the label, `(B, K)`; None for one goal."""
        if goal.objective is not None or goal.targets is not None:
            return None
        logits = mean_outputs(model, images, goal, step=0, draws=self.draws)
        return likely_others(logits, goal.labels, min(self.candidates, logits.shape[1]) - 1)
