"""APGD: projected gradient ascent that sets its step size itself."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    Ball,
    Goal,
    HookedModel,
    Loss,
    image_generators,
    noise_like,
    project_l1_in_box,
)
from timmscope_attack.adaptive import AdaptiveAttack, Climbed
from timmscope_attack.boundaries import likely_others
from timmscope_attack.few_classes import target_count, usable_loss
from timmscope_attack.outputs import mean_outputs


class APGD(AdaptiveAttack):
    """APGD is PGD with momentum that halves its step where the loss stops rising.

    `z = Π(x + η · steepest(∇ loss))`, `x ← Π(x + ¾ (z − x) + ¼ (x − x'))`, with x' the point
    before and η = 2ε at first. At checks, which become more frequent, η is halved and the ascent
    restarts from the best point if fewer than ¾ of the steps raised the loss, or if neither η nor
    the best loss has changed since the last check. There is no step size to choose. With
    `target_classes` it aims at the most likely other classes, one after the other. In l1 it steps
    along the signs of the values with the largest slopes, as many as the change needs, and shrinks
    the ball from 3ε over 2ε to ε. An image that does not reach the goal is returned where its loss
    was largest. Cost: `steps` forward and backward passes per image, restart and target class, and
    a forward pass each; images that are fooled are not attacked again.

    Paper:
        - Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
          Parameter-free Attacks", ICML 2020, arXiv:2003.01690.
        - Croce & Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers",
          ICML 2021, arXiv:2103.01208.

    Inherited parameters:
        norm: norm of the change: `linf`, its largest value, `l2`, its Euclidean length, or `l1`,
            the sum of its magnitudes.
        epsilon: radius of the ball in pixel units [0, 1]; by default 8/255 for linf, at 224×224 3.0
            for l2 and 60 for l1.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    steps: int = Field(default=100, ge=1)
    """Number of steps."""
    loss: Loss = "cross-entropy"
    """Loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax saturates,
    and `dlr` does not depend on the scale of the logits. With too few classes for `dlr`, it is
    `margin`."""
    restarts: int = Field(default=1, ge=1)
    """Number of random starts."""
    target_classes: int = Field(default=0, ge=0)
    """Number of the most likely other classes that are aimed at, one after the other; 0 for the
    loss of the label. A call with targets or an objective aims at those."""
    stop_when_fooled: bool = False
    """Stop at the first step that fools the model: cheaper, but without a margin, so that fewer
    results survive rounding to 8 bits."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Attack for each target class and from each start what is not fooled yet."""
        ball = self.ball(images)
        best = images.clone()
        highest = images.new_full((len(images),), -torch.inf)
        first = torch.full((len(images),), -1, device=images.device)
        generators = image_generators(len(images))
        aims = self._aims(model, images, goal)
        loss = usable_loss(self, model, aims[0], self.loss)
        for number in range(len(aims) * self.restarts):
            rows = (first < 0).nonzero().flatten()
            if not len(rows):
                break
            aim = aims[number // self.restarts]
            own = [generators[row] for row in rows.tolist()]
            found = self._climb_once(model, images, rows, goal, aim, loss, ball, own)
            better = found.reached | (found.loss > highest[rows])
            best[rows[better]] = found.images[better]
            highest[rows[better]] = found.loss[better]
            reached = rows[found.reached]
            first[reached] = found.first[found.reached] + number * self.steps
        self.note("first_success_step", [step if step >= 0 else None for step in first.tolist()])
        return best

    def _aims(self, model: HookedModel, images: Tensor, goal: Goal) -> list[Goal]:
        """Return the goals whose losses are raised: the goal itself, or its target classes."""
        if not self.target_classes or goal.objective is not None or goal.targets is not None:
            return [goal]
        count = target_count(self, model, goal, self.target_classes)
        logits = mean_outputs(model, images, goal, step=0, draws=self.draws)
        likely = likely_others(logits, goal.labels, count)
        return [replace(goal, targets=likely[:, number]) for number in range(likely.shape[1])]

    def _climb_once(
        self,
        model: HookedModel,
        images: Tensor,
        rows: Tensor,
        goal: Goal,
        aim: Goal,
        loss: Loss,
        ball: Ball,
        generators: list[torch.Generator],
    ) -> Climbed:
        centre = images[rows]
        start = _start(centre, ball, generators)
        if ball.norm != "l1":
            return self.adaptive_climb(
                model, centre, start, rows, goal, aim, ball,
                steps=self.steps, loss=loss, stop_when_fooled=self.stop_when_fooled,
            )  # fmt: skip
        done = 0
        for factor, steps in _l1_phases(self.steps):
            own = Ball(norm="l1", epsilon=factor * ball.epsilon)
            change = project_l1_in_box(centre, start - centre, own.epsilon)
            values = (change != 0).flatten(1).sum(1).to(change)
            found = self.adaptive_climb(
                model, centre, (centre + change).clamp(0, 1), rows, goal, aim, own,
                steps=steps, loss=loss, share=values / change[0].numel() / 1.5,
                stop_when_fooled=self.stop_when_fooled and factor == 1,
            )  # fmt: skip
            found.first[found.reached] += done
            start, done = found.best, done + steps
        return found


def _l1_phases(steps: int) -> list[tuple[int, int]]:
    """Return radii in units of epsilon with their numbers of steps: 0.3, 0.3 and 0.4 of all."""
    first = min(math.ceil(0.3 * steps), steps)
    second = min(first, steps - first)
    return [(3, first), (2, second), (1, steps - first - second)]


def _start(images: Tensor, ball: Ball, generators: list[torch.Generator]) -> Tensor:
    """Return random images on the surface of the ball, clipped to [0, 1]."""
    if ball.norm == "linf":
        noise = 2 * noise_like(images, "uniform", generators) - 1
        largest = noise.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
        return (images + ball.epsilon * noise / largest).clamp(0, 1)
    normal = noise_like(images, "normal", generators)
    if ball.norm == "l2":
        return (images + ball.epsilon * ball.steepest(normal)).clamp(0, 1)
    return images + normal  # its first ball projects it
