"""Checks of a model's gradients: 3 not zero, 4 equal to differences, 13 the loss rises."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor

from timmscope.evaluation.under_attack.checks.check import Check, not_applicable, passed
from timmscope.models import HookedModel
from timmscope.techniques.balls import Ball
from timmscope.techniques.expectation import mean_over_draws
from timmscope.techniques.goal import Goal
from timmscope.techniques.session import own_numbers
from timmscope_registry import TechniqueError, UnsupportedModel

_DIRECTIONS = 16
_STEP = 1 / 1024
"""Change of every pixel for a difference: a quarter of a grey level."""
_COSINE = 0.9
_TINY = 1e-30
"""A gradient whose values are all smaller is lost to rounding, or soon will be."""
_ASCENT_STEPS = 10
_RISING = 0.95
"""Share of images whose loss must have risen at the end."""
CHECKED = (3, 4, 13)


def measure_gradients(
    model: HookedModel, images: Tensor, labels: Tensor, ball: Ball, seed: int
) -> dict[str, Any]:
    """Compute gradients at images `(n, C, H, W)`, compare them with differences, and climb them.

    Args:
        model: the model.
        images: images that the model classifies as labelled, where there are such.
        labels: `(n,)` their classes.
        ball: the ball in which the loss is raised.
        seed: seed of random defences and of the directions of the differences.
    """
    if model.is_function:
        return {"unavailable": "a prediction function has no gradient", "function": True}
    goal = Goal(labels=labels, classes=model.num_classes)
    try:
        with own_numbers(model, seed):
            _, gradient = goal.gradient(model, images)
        return {
            "images": len(images),
            "lost": int(_lost(gradient).sum()),
            "largest": float(gradient.abs().max()),
            "cosines": _cosines(model, images, goal, seed),
            "ascent": _ascent(model, images, goal, ball, seed),
        }
    except (UnsupportedModel, TechniqueError) as error:
        return {"unavailable": str(error), "function": False}


def _lost(gradient: Tensor) -> Tensor:
    """Return which images `(n,)` have a gradient of zeros, or one that is not finite."""
    values = gradient.flatten(1).abs()
    return (values.amax(1) < _TINY) | ~values.isfinite().all(1)


def _cosines(model: HookedModel, images: Tensor, goal: Goal, seed: int) -> list[float | None]:
    """Return the cosine between slopes of the gradient and of central differences, by image.

    The directions change every pixel by the same size, so that one that is quantised shows it. A
    cosine is None where one of both is 0.
    """
    inside = images * (1 - 2 * _STEP) + _STEP  # so that a step stays in [0, 1]
    with own_numbers(model, seed):
        _, gradient = goal.gradient(model, inside, "margin")
    generator = torch.Generator().manual_seed(seed)
    slopes, differences = [], []
    for _ in range(_DIRECTIONS):
        signs = torch.rand(images.shape, generator=generator).to(images).sub(0.5).sign()
        ends = []
        for step in (_STEP, -_STEP):
            with own_numbers(model, seed), torch.no_grad():
                outputs = goal.outputs(model, inside + step * signs)
            ends.append(goal.loss(outputs, "margin").double())
        differences.append((ends[0] - ends[1]) / (2 * _STEP))
        slopes.append((gradient.double() * signs).flatten(1).sum(1))
    both = torch.stack(slopes, 1), torch.stack(differences, 1)  # (n, directions)
    lengths = both[0].norm(dim=1) * both[1].norm(dim=1)
    cosines = (both[0] * both[1]).sum(1) / lengths
    return [
        float(value) if float(length) > 0 and bool(value.isfinite()) else None
        for value, length in zip(cosines, lengths, strict=True)
    ]


def _ascent(
    model: HookedModel, images: Tensor, goal: Goal, ball: Ball, seed: int
) -> dict[str, Any]:
    """Climb the margin loss, and return its mean before each step, and where it has risen."""
    changed, losses = images, []
    for step in range(_ASCENT_STEPS + 1):
        with own_numbers(model, seed):
            compute = partial(goal.gradient, model, changed, "margin")
            outputs, gradient = mean_over_draws(model, compute, step=step)
        losses.append(goal.loss(outputs, "margin").double())
        size = 2.5 * ball.epsilon / _ASCENT_STEPS
        changed = ball.step(images, changed, gradient, size)
    return {
        "means": [float(each.mean()) for each in losses],
        "risen": int((losses[-1] > losses[0]).sum()),
    }


def judge_gradients(found: dict[str, Any]) -> list[Check]:
    """Return checks 3, 4 and 13."""
    if "unavailable" in found:
        reason = found["unavailable"]
        if found["function"]:
            return [not_applicable(number, reason) for number in CHECKED]
        return [passed(3, False, reason, {}), not_applicable(4, reason), not_applicable(13, reason)]
    images, lost = found["images"], found["lost"]
    evidence = (
        f"the cross-entropy's gradient is zero or not finite on {lost} of {images} images; its "
        f"largest value is {found['largest']:.2g}"
    )
    checks = [passed(3, not lost, evidence, {"zero": lost, "images": images})]
    known = [each if each is not None else 0.0 for each in found["cosines"]]
    middle = statistics.median(known)
    evidence = (
        f"median cosine {middle:.3f} over {images} images between slopes of the margin and central "
        f"differences of ±{_STEP * 255:.2g}/255 in {_DIRECTIONS} directions; above {_COSINE} is "
        "expected"
    )
    checks.append(passed(4, middle > _COSINE, evidence, {"cosine": middle}))
    means, risen = found["ascent"]["means"], found["ascent"]["risen"]
    evidence = (
        f"the margin loss goes from {means[0]:.3g} to {means[-1]:.3g} in {_ASCENT_STEPS} steps, "
        f"and rises on {risen} of {images} images"
    )
    ok = risen >= _RISING * images - 1e-9 and means[-1] > means[0]
    checks.append(passed(13, ok, evidence, {"means": means, "risen": risen}))
    return checks
