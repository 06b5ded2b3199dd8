"""AutoAttack: an ensemble of four attacks without settings that would have to be chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import AttackTechnique, Goal, HookedModel
from timmscope_attack.apgd import APGD
from timmscope_attack.fab import FAB
from timmscope_attack.few_classes import target_count, usable_loss
from timmscope_attack.outputs import mean_outputs
from timmscope_attack.square import Square

_L1_RESTARTS, _L1_TARGETS = 5, 5
"""In L1, as its authors run it: starts of APGD on the cross-entropy, and most target classes of
APGD."""


class AutoAttack(AttackTechnique):
    """AutoAttack runs APGD-CE, APGD-T, FAB-T and Square, each on what is not broken yet.

    `robust = right ∧ ¬(APGD-CE ∨ APGD-T ∨ FAB-T ∨ Square)`: an image counts as robust if all four
    fail. APGD-CE raises the cross-entropy, APGD-T the targeted DLR of the most likely other classes
    one after the other, FAB-T looks for the boundaries to them, and Square needs no gradient. The
    version `rand`, for random defences, has APGD-CE and APGD-DLR with gradients averaged over
    draws. `broken_by` notes which member broke an image; images that none breaks are returned as
    they were. With targets or an objective, all members aim at those. With fewer than four classes
    APGD-T raises the margin, with few classes there are fewer targets; both is noted, with a
    warning. Cost per image that nothing breaks, with 10 classes: 1,000 forward and backward passes
    for both APGD, 1,800 forwards and 900 backwards for FAB-T, and `queries` forwards.

    Paper:
        - Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
          Parameter-free Attacks", ICML 2020, arXiv:2003.01690.
        - Croce & Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers",
          ICML 2021, arXiv:2103.01208.

    Inherited parameters:
        epsilon: radius of the ball in pixel units [0, 1]; by default 8/255 for linf, at 224×224 3.0
            for l2 and 60 for l1.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the change: `linf`, its largest value, `l2`, its Euclidean length, or `l1`, the sum
    of its magnitudes."""
    version: Literal["standard", "rand"] | None = None
    """Members: `standard` for all four, `rand` for APGD-CE and APGD-DLR; by default `rand` for a
    model with a random defence, else `standard`."""
    steps: int = Field(default=100, ge=1)
    """Steps of APGD and FAB."""
    target_classes: int = Field(default=9, ge=1)
    """Number of the most likely other classes that APGD-T and FAB-T aim at; in l1, APGD-T at most
    at 5."""
    queries: int = Field(default=5000, ge=1)
    """Largest number of forward passes of Square per image."""
    draws: int = Field(default=20, ge=1)
    """Number of draws of a random defence over which gradients are averaged. A model without a
    random defence needs one."""
    stop_when_fooled: bool = True
    """Let APGD stop at the first step that fools the model: cheaper, but without a margin, so that
    fewer results survive rounding to 8 bits."""

    def why_zero(self) -> str:
        """One of the members met it; Square needs no gradient."""
        return (
            "of the members, only square needs no gradient; try square with more queries, or pgd "
            "with loss='margin' and more restarts"
        )

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Run the members, each on the images that are not broken yet."""
        ball = self.ball(images)
        changed = images.clone()
        broken_by: list[str | None] = [None] * len(images)
        for name, member in self.track(self._members(model, goal, ball.epsilon), self.title()):
            rows = torch.tensor(
                [row for row, by in enumerate(broken_by) if by is None], device=images.device
            )
            if not len(rows):
                continue
            own = goal.rows(rows)
            with self.part(rows):
                found = member.perturb(model, images[rows], own)
            with self.only(rows):
                outputs = mean_outputs(model, found, own, step=0, draws=self.draws)
            broken = own.reached(outputs) & ball.holds(found - images[rows])
            changed[rows[broken]] = found[broken]
            for row in rows[broken].tolist():
                broken_by[row] = name
        self.note("broken_by", broken_by)
        return changed

    def _members(
        self, model: HookedModel, goal: Goal, epsilon: float
    ) -> list[tuple[str, AttackTechnique]]:
        """Return the attacks by name."""
        version = self.version or ("rand" if model.has_random_defence else "standard")
        ascent = partial(
            APGD, norm=self.norm, epsilon=epsilon, steps=self.steps, draws=self.draws,
            stop_when_fooled=self.stop_when_fooled,
        )  # fmt: skip
        restarts = _L1_RESTARTS if self.norm == "l1" and version == "standard" else 1
        members: list[tuple[str, AttackTechnique]] = [
            ("apgd-ce" if goal.objective is None else "apgd", ascent(restarts=restarts))
        ]
        fab: tuple[str, AttackTechnique] = ("fab", self._fab(epsilon, 1))
        if goal.objective is None and (version == "rand" or goal.targets is not None):
            members += [("apgd-dlr", ascent(loss=usable_loss(self, model, goal, "dlr")))]
        elif goal.objective is None:
            count = target_count(self, model, goal, self.target_classes)
            targets = min(count, _L1_TARGETS) if self.norm == "l1" else count
            loss = usable_loss(self, model, replace(goal, targets=goal.labels), "dlr")
            members += [("apgd-t", ascent(loss=loss, target_classes=targets))]
            fab = ("fab-t", self._fab(epsilon, count))
        square = Square(
            norm=self.norm, epsilon=epsilon, queries=self.queries, rescale=False, draws=self.draws
        )
        return members if version == "rand" else [*members, fab, ("square", square)]

    def _fab(self, epsilon: float, classes: int) -> FAB:
        return FAB(
            norm=self.norm, epsilon=epsilon, steps=self.steps, target_classes=classes,
            one_by_one=True, stop_within_epsilon=True, draws=self.draws,
        )  # fmt: skip
