"""Says whether images reach the goal of an attack, and refuses calls without one goal."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.techniques.expectation import fresh_draw
from timmscope.techniques.goal import Goal
from timmscope_registry import ObjectiveError, ParameterError
from timmscope_registry.hooks.layers import LOGITS


class Judged(NamedTuple):
    """What a model says about images: `predicted` and `confidence` are empty without classes."""

    outputs: Tensor
    predicted: Tensor
    confidence: Tensor

    def replaced(self, rows: Tensor, by: Judged) -> Judged:
        """Return these values, with those of `by` where `rows` `(B,)`."""
        return Judged(
            *(
                torch.where(rows.view(-1, *[1] * (own.ndim - 1)), other, own) if len(own) else own
                for own, other in zip(self, by, strict=True)
            )
        )


def judge(model: HookedModel, images: Tensor, goal: Goal, step: int) -> Judged:
    """Compute the outputs of a goal for all images, with predictions if the model has classes.

    Random defences use a draw that no attack meets.
    """
    parts = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        rows = range(start, start + len(part))
        if goal.objective is None:
            with fresh_draw(rows):
                outputs = logits = model(part).float()
        else:
            bound = goal.rows(torch.tensor(rows, device=part.device)).objective
            assert bound is not None
            classifies = has_classes(model)
            with (
                fresh_draw(rows),
                model.record(*bound.points, until_last=not classifies) as recording,
            ):
                logits = model(part).float()
            logits = logits if classifies else logits.new_zeros(0, 1)
            outputs = bound(recording)
        predicted = logits.argmax(1) if len(logits) else logits.new_zeros(0, dtype=torch.long)
        parts.append(Judged(outputs, predicted, logits.softmax(1).amax(1)))
    return Judged(*(torch.cat(each) for each in zip(*parts, strict=True)))


def has_classes(model: HookedModel) -> bool:
    """Whether the model returns logits of at least two classes."""
    output = model.layers.get(LOGITS)
    return model.num_classes > 1 and output is not None and output.layout == "vector"


def require_goal(
    model: HookedModel, labels: Any, targets: Any, objective: Any, value: float | None
) -> None:
    """Refuse arguments of a call that say no goal, or two.

    Raises:
        ObjectiveError: the model has no classes, and there is no objective.
        ParameterError: an objective has no value, or comes with labels or targets.
    """
    if objective is None:
        if value is not None:
            raise ParameterError(
                "a value is for an objective to reach: give objective too", parameter="value"
            )
        if model.num_classes < 2:
            raise ObjectiveError(
                f"{model.id} has {'one class' if model.num_classes else 'no classes'}, so there is "
                "no wrong class: an attack needs a classifier, or an objective with a value"
            )
        return
    if labels is not None or targets is not None:
        raise ParameterError(
            "an objective takes the place of labels and targets: give one or the other",
            parameter="objective",
        )
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ParameterError(
            f"the objective {objective} needs a value to reach, a finite number: give value",
            parameter="value",
        )


def goal_facts(goal: Goal) -> dict[str, Any]:
    """Return the arguments of a call that say the goal again."""
    if goal.objective is not None:
        return {"objective": str(goal.objective), "value": goal.value}
    targets = goal.targets.tolist() if goal.targets is not None else None
    return {"labels": goal.labels.tolist(), "targets": targets}
