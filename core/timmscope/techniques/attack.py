"""Base class and result of attacks: small changes that make a model misclassify images.

The base class predicts the returned images again, once as floats and once rounded to 8 bits as in a
saved picture, so that a reported success is a success of the images in the result.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope.models import HookedModel
from timmscope.models.pass_counter import counting_only
from timmscope.objectives import as_objective
from timmscope.results.result import Provenance, Result
from timmscope.techniques import arguments
from timmscope.techniques.balls import change_size
from timmscope.techniques.base import require_model
from timmscope.techniques.bounded import BoundedTechnique
from timmscope.techniques.class_indices import class_indices
from timmscope.techniques.goal import Goal
from timmscope.techniques.judging import Judged, goal_facts, judge, require_goal
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.over.base import PerImageTechnique
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, for_autograd, own_numbers, session
from timmscope.techniques.validate_output import checked_pixels
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_zeros: ContextVar[Tensor | None] = ContextVar("timmscope_attack_zeros", default=None)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Result):
    """Images changed so that a model misclassifies them, or an objective reaches a value.

    Attributes:
        images: `(B, C, H, W)` in [0, 1], adversarial where `success`; unchanged where
            `already_wrong`, and where an attack of least norm found nothing.
        originals: `(B, C, H, W)` in [0, 1].
        labels: `(B,)` labels that the attack moved away from; empty for a model without classes,
            like the predictions and confidences.
        targets: `(B,)` target classes, or None for an untargeted attack.
        before: `(B,)` predictions on the originals.
        after: `(B,)` predictions on `images`.
        confidence_before: `(B,)` softmax probability of `before`.
        confidence_after: `(B,)` softmax probability of `after`.
        success: `(B,)` whether `images` reach the goal: they fool the model, or the objective has
            the value. It is computed again on the returned floats.
        success_8bit: `(B,)` the same after rounding to 8 bits.
        already_wrong: `(B,)` whether the original was misclassified, or reached the goal in another
            way; this counts as no success.
        norm: norm that the attack keeps small: `linf`, `l2`, `l1` or `l0`.
        l0: `(B,)` number of changed pixels (any channel).
        l1: `(B,)` sum of the magnitudes of the change, pixel units [0, 1].
        l2: `(B,)` Euclidean norm of the change, pixel units [0, 1].
        linf: `(B,)` largest change of a value, pixel units [0, 1].
        forwards: `(B,)` forward passes of the attacked model per image, without the three that
            evaluate the result. Wrappers of its module and copies for speed count as the model.
        backwards: `(B,)` backward passes of the attacked model per image.
        queries: `(B,)` forward passes of a black-box attack; 0 for attacks that use gradients.
        other_models: the M other models that the attack ran, by their ids; one that a parameter
            names, by the parameter, such as `surrogate`.
        other_forwards: `(B, M)` forward passes of each of them per image.
        other_backwards: `(B, M)` backward passes of each of them per image.
        zero_gradients: `(B,)` gradients that were zero, so that the attack could not take a step.
        class_names: for each image, names of its label, prediction before and prediction after.
        target_names: name of each image's target; empty for an untargeted attack.
        objective: short name of the objective that was to be raised; empty for an attack on the
            class.
        value: value that the objective was to reach; None without an objective.
        scores_before: `(B,)` the objective of the originals; None without an objective.
        scores_after: `(B,)` the objective of `images`; None without an objective.
    """

    images: Tensor
    originals: Tensor
    labels: Tensor
    targets: Tensor | None
    before: Tensor
    after: Tensor
    confidence_before: Tensor
    confidence_after: Tensor
    success: Tensor
    success_8bit: Tensor
    already_wrong: Tensor
    norm: str
    l0: Tensor
    l1: Tensor
    l2: Tensor
    linf: Tensor
    forwards: Tensor
    backwards: Tensor
    queries: Tensor
    zero_gradients: Tensor
    other_models: list[str]
    other_forwards: Tensor
    other_backwards: Tensor
    class_names: list[list[str]]
    target_names: list[str] = field(default_factory=list)
    objective: str = ""
    value: float | None = None
    scores_before: Tensor | None = None
    scores_after: Tensor | None = None

    sheet_pictures: ClassVar[str] = "adversarial-"

    @property
    def radius(self) -> Tensor:
        """`(B,)` how near the goal is, in `norm`.

        It is the norm of the change where `success`, 0 where `already_wrong`, and infinite where
        the attack found nothing. The robust accuracy at any radius is the share of larger values.
        """
        size: Tensor = getattr(self, self.norm)
        found = torch.where(self.success, size.double(), torch.inf)
        return torch.where(self.already_wrong, 0.0, found)

    @property
    def clean_accuracy(self) -> float:
        """Share of images that were classified as labelled before; NaN without classes."""
        return float((self.before == self.labels).float().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of images that were classified as labelled before and are not broken.

        Images that are `stuck` count as robust, but the attack has not shown that they are. NaN for
        a model without classes.
        """
        if not len(self.labels):
            return math.nan
        return float(((self.before == self.labels) & ~self.success).float().mean())

    @property
    def success_rate(self) -> float:
        """Share of attacked images that were broken; images with `already_wrong` do not count."""
        attacked = ~self.already_wrong
        return float(self.success[attacked].float().mean()) if bool(attacked.any()) else 0.0

    @property
    def stuck(self) -> Tensor:
        """`(B,)` whether the attack met a zero gradient on an image and did not break it."""
        return (self.zero_gradients > 0) & ~self.success & ~self.already_wrong

    def figure(self) -> Figure:
        """Draw one row per image: original, magnified change, adversarial image."""
        from timmscope.techniques.attack_figure import attack_figure

        return attack_figure(self)

    def pictures(self) -> dict[str, Any]:
        """Return the adversarial images."""
        return {f"adversarial-{row:03d}": image for row, image in enumerate(self.images)}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image: predictions or scores, success, norms, cost and notes."""
        radius = self.radius.tolist()
        rows: list[dict[str, Any]] = [
            {
                "image": row,
                **self._predictions(row),
                **self._scores(row),
                "success": bool(self.success[row]),
                "success_8bit": bool(self.success_8bit[row]),
                "already_wrong": bool(self.already_wrong[row]),
                "radius": radius[row],
                "l0_px": int(self.l0[row]),
                "l1": float(self.l1[row]),
                "l2": float(self.l2[row]),
                "linf": float(self.linf[row]),
                "forwards": int(self.forwards[row]),
                "backwards": int(self.backwards[row]),
                "queries": int(self.queries[row]),
                **self._others(row),
                "zero_gradients": int(self.zero_gradients[row]),
            }
            for row in range(len(self.images))
        ]
        return self.with_notes(rows)

    def _predictions(self, row: int) -> dict[str, Any]:
        if not self.class_names:
            return {}
        label, before, after = self.class_names[row]
        return {
            "label": label,
            **({"target": self.target_names[row]} if self.target_names else {}),
            "before": before,
            "confidence_before": float(self.confidence_before[row]),
            "after": after,
            "confidence_after": float(self.confidence_after[row]),
        }

    def _scores(self, row: int) -> dict[str, Any]:
        if self.scores_before is None or self.scores_after is None:
            return {}
        return {
            "objective": self.objective,
            "value": self.value,
            "score_before": float(self.scores_before[row]),
            "score_after": float(self.scores_after[row]),
        }

    def _others(self, row: int) -> dict[str, int]:
        """Return the passes of other models for an image, under names that say whose they are."""
        counts = {"forwards": self.other_forwards, "backwards": self.other_backwards}
        return {
            f"{what} of {model}": int(count[row, at])
            for at, model in enumerate(self.other_models)
            for what, count in counts.items()
        }


@dataclass(frozen=True)
class _Passes:
    """Counts per image: passes, zero gradients, and by id the passes of other models."""

    forwards: Tensor
    backwards: Tensor
    zeros: Tensor
    others: dict[str, tuple[Tensor, Tensor]]

    def of_others(self, which: Literal[0, 1]) -> Tensor:
        """Return the forwards or backwards of the M other models, `(B, M)`."""
        counts = [both[which] for both in self.others.values()]
        return torch.stack([self.forwards, *counts], 1)[:, 1:]  # M may be 0


class AttackTechnique(PerImageTechnique, BoundedTechnique):
    """Base class of attacks; a subclass implements `perturb`.

    A change outside the ball of radius `epsilon` is an error if `kind` is `fixed`. If it is
    `minimum`, the attack looks for the smallest change that reaches the goal; `epsilon` is then
    None, or the largest change that counts.
    """

    family: ClassVar[str] = "attack"
    base: ClassVar[str] = "attack"
    kind: ClassVar[Literal["fixed", "minimum"]] = "fixed"
    """`fixed` for an attack within a given radius, `minimum` for one of least norm."""
    uses_gradients: ClassVar[bool] = True
    """False for black-box attacks: their forwards count as queries."""

    @abstractmethod
    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Return the changed images, `(B, C, H, W)` in [0, 1].

        Run forwards of a part of the batch inside `self.only(rows)`, so that passes are counted
        for the right images, with the goal of these images, `goal.rows(rows)`.

        Args:
            model: the model to fool.
            images: `(B, C, H, W)` in [0, 1].
            goal: what to reach: `goal.outputs(model, images)` computes what it depends on,
                `goal.reached(outputs)` says where it is reached, and `goal.loss(outputs)` is the
                value to raise.
        """

    @contextlib.contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Count forwards inside the context for these rows `(n,)` (int64) of `perturb`'s batch.

        Random defences draw for these images.
        """
        with image_rows(rows.tolist()), counting_only(rows):
            yield

    @contextlib.contextmanager
    def part(self, rows: Tensor) -> Iterator[None]:
        """As `Technique.part`; zero gradients are counted for the right images too."""
        counts = _zeros.get()
        own = torch.zeros(len(rows), dtype=torch.long)
        token = _zeros.set(own)
        try:
            with super().part(rows):
                yield
        finally:
            _zeros.reset(token)
            if counts is not None:
                counts[rows.cpu()] += own

    def note_gradient(self, gradient: Tensor, rows: Tensor) -> None:
        """Count the images whose gradient is zero, so that the result and a warning name them.

        Args:
            gradient: `(n, C, H, W)`, the gradient of the loss in the images.
            rows: `(n,)` int64, the rows of `perturb`'s batch that it belongs to.
        """
        counts = _zeros.get()
        if counts is not None:
            counts[rows.cpu()] += (gradient == 0).flatten(1).all(1).long().cpu()

    def why_zero(self) -> str:
        """Return why a gradient may be zero and what to do, for the warning."""
        return "try another loss, or an attack that needs no gradient"

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.Images,
        labels: arguments.Classes = None,
        *,
        targets: arguments.Classes = None,
        objective: arguments.ObjectiveToReach = None,
        value: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Adversarial:
        """Attack images.

        Args:
            model: the model to fool.
            images: `(B, C, H, W)` in [0, 1], or anything that `model.images` takes.
            labels: true class, by name or index; once, or once for each image; by default the
                model's own prediction.
            targets: class to aim at; once, or once for each image; by default any other than the
                label.
            objective: raise this instead of changing the class, until it is at least the value: a
                unit `blocks.4[17]`, a class, a sum; to lower it below v, raise `-blocks.4[17]` to
                -v. In Python also an `Objective`.
            value: value that the objective should reach.
            seed: seed of random starts.
            batch_size: images per pass; by default as many as fit the memory budget.

        Raises:
            ImageError: the images are not those that the model takes, in [0, 1].
            ObjectiveError: the model has no class of that name or index, or has no classes, or the
                objective does not fit the model.
            ParameterError: a target equals its label, an objective has no value or comes with
                labels or targets, or `batch_size` is less than 1.
            TechniqueError: the attack did not return images, or they are outside the ball.
            UnsupportedModel: the attack follows a gradient, and a defence of the model has none.
        """
        require_model(model)
        with opening([self], model, seed) as opened, own_numbers(model, seed):
            result = self._attacked(
                model, images, (labels, targets), (objective, value), seed, batch_size
            )
        return opened.reported(result)

    def _attacked(
        self,
        model: HookedModel,
        images: Any,
        classes: tuple[Any, Any],
        aim: tuple[Any, float | None],
        seed: int,
        batch_size: int | None,
    ) -> Adversarial:
        require_goal(model, *classes, *aim)
        batch = model.images(images).detach()
        step = chunk_size(model, batch, batch_size)
        goal = _unlabelled_goal(model, batch, *aim)
        with torch.no_grad():
            clean = judge(model, batch, goal, step)
        goal = _labelled_goal(model, batch, goal, clean, *classes)
        already = goal.reached(clean.outputs)
        facts = self._provenance(model, seed, **goal_facts(goal))
        adversarial = batch.clone()
        forwards = torch.zeros(len(batch), dtype=torch.long)
        backwards = torch.zeros(len(batch), dtype=torch.long)
        zeros = torch.zeros(len(batch), dtype=torch.long)
        others: dict[str, tuple[Tensor, Tensor]] = {}
        notes = Notes(self, len(batch))
        todo = (~already).nonzero().flatten()
        starts = range(0, len(todo), step)
        for start in self.track(starts, self.title(), total=len(starts)):
            rows = todo[start : start + step]
            with (
                notes.of(rows.tolist()),
                session(seed, rows.tolist()),
                restore_state(self, model, facts.weights_sha256),
                model.count_passes(len(rows)) as counter,
            ):
                part, own = for_autograd(batch[rows]), _for_autograd(goal.rows(rows))
                zero = torch.zeros(len(rows), dtype=torch.long)
                token = _zeros.set(zero)
                try:
                    changed = self.perturb(model, part, own)
                finally:
                    _zeros.reset(token)
            checked_pixels(self, changed, tuple(part.shape))
            changed = changed.detach().to(batch)
            if self.kind == "fixed":
                self._require_inside(changed - batch[rows], "a change")
            adversarial[rows] = changed
            forwards[rows.cpu()] = counter.forwards
            backwards[rows.cpu()] = counter.backwards
            zeros[rows.cpu()] = zero
            for name, counts in counter.others.items():
                none = torch.zeros_like(forwards)
                for total, part in zip(
                    others.setdefault(name, (none, none.clone())), counts, strict=True
                ):
                    total[rows.cpu()] = part
        passes = _Passes(forwards, backwards, zeros, others)
        result = self._attack_result(
            model,
            batch,
            adversarial,
            goal,
            clean,
            already,
            passes,
            notes.joined(),
            facts,
            step,
        )
        if stuck := int(result.stuck.sum()):
            warnings.warn(
                f"{self.title()} met a zero gradient on {stuck} of {len(todo)} attacked images, so "
                f"it has not shown that they are robust: {self.why_zero()}",
                stacklevel=2,
            )
        return result

    def _attack_result(
        self,
        model: HookedModel,
        originals: Tensor,
        adversarial: Tensor,
        goal: Goal,
        clean: Judged,
        already: Tensor,
        passes: _Passes,
        notes: dict[str, Any],
        facts: Provenance,
        step: int,
    ) -> Adversarial:
        with torch.no_grad():
            attacked = judge(model, adversarial, goal, step)
            if self.kind == "minimum":
                found = goal.reached(attacked.outputs) & ~already
                if self.epsilon is not None:
                    found &= self.ball(originals).holds(adversarial - originals)
                adversarial = torch.where(found[:, None, None, None], adversarial, originals)
                attacked = clean.replaced(found, attacked)
            rounded = judge(model, (adversarial * 255).round() / 255, goal, step)
        delta = (adversarial - originals).float().cpu()
        names = [
            [model.class_name(int(index)) for index in row]
            for row in zip(goal.labels, clean.predicted, attacked.predicted, strict=True)
        ]
        success = goal.reached(attacked.outputs) & ~already
        scored = goal.objective is not None
        return Adversarial(
            provenance=facts,
            notes=notes,
            images=adversarial.cpu(),
            originals=originals.cpu(),
            labels=goal.labels.cpu(),
            targets=goal.targets.cpu() if goal.targets is not None else None,
            before=clean.predicted.cpu(),
            after=attacked.predicted.cpu(),
            confidence_before=clean.confidence.cpu(),
            confidence_after=attacked.confidence.cpu(),
            success=success.cpu(),
            success_8bit=(goal.reached(rounded.outputs) & ~already).cpu(),
            already_wrong=already.cpu(),
            norm=self.norm,
            l0=change_size(delta, "l0").long(),
            l1=change_size(delta, "l1").float(),
            l2=delta.flatten(1).norm(dim=1),
            linf=delta.abs().flatten(1).amax(1),
            forwards=passes.forwards,
            backwards=passes.backwards,
            queries=torch.zeros_like(passes.forwards) if self.uses_gradients else passes.forwards,
            zero_gradients=passes.zeros,
            other_models=list(passes.others),
            other_forwards=passes.of_others(0),
            other_backwards=passes.of_others(1),
            class_names=names,
            target_names=[
                model.class_name(int(index))
                for index in (goal.targets if goal.targets is not None else ())
            ],
            objective=goal.objective.label if goal.objective is not None else "",
            value=goal.value if scored else None,
            scores_before=clean.outputs.cpu() if scored else None,
            scores_after=attacked.outputs.cpu() if scored else None,
        )


def _unlabelled_goal(
    model: HookedModel, batch: Tensor, objective: Any, value: float | None
) -> Goal:
    """Return the goal of a call, in which predictions of the originals are still missing."""
    none = torch.zeros(0, dtype=torch.long, device=batch.device)
    if objective is None or value is None:
        return Goal(labels=none, classes=model.num_classes)
    bound = as_objective(objective).bind(model.for_images(batch), batch)
    return Goal(labels=none, objective=bound, value=float(value))


def _labelled_goal(
    model: HookedModel, batch: Tensor, goal: Goal, clean: Judged, labels: Any, targets: Any
) -> Goal:
    """Return the goal with the labels and targets of the call."""
    truth = clean.predicted if labels is None else class_indices(model, labels, batch, "labels")
    aims = None if targets is None else class_indices(model, targets, batch, "targets")
    if aims is not None and bool((aims == truth).any()):
        raise ParameterError(
            "a target equals the image's label: aim at another class", parameter="targets"
        )
    return replace(goal, labels=truth, targets=aims)


def _for_autograd(goal: Goal) -> Goal:
    targets = for_autograd(goal.targets) if goal.targets is not None else None
    return replace(goal, labels=for_autograd(goal.labels), targets=targets)
