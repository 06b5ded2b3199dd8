"""Base class and result of attacks: small changes that make a model misclassify images.

The base class predicts the returned images again, once as floats and once rounded to 8 bits as in a
saved picture, so that a reported success is a success of the images in the result.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope.models import HookedModel, PassCounter
from timmscope.results.result import Provenance, Result
from timmscope.techniques import arguments
from timmscope.techniques.base import Technique, require_model
from timmscope.techniques.class_indices import class_indices
from timmscope.techniques.expectation import batch_logits
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, for_autograd, own_numbers, session
from timmscope.techniques.validate_output import checked_pixels
from timmscope_registry import ObjectiveError, ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_passes: ContextVar[PassCounter | None] = ContextVar("timmscope_attack_passes", default=None)
_zeros: ContextVar[Tensor | None] = ContextVar("timmscope_attack_zeros", default=None)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Result):
    """Images changed so that a model misclassifies them.

    Attributes:
        images: `(B, 3, H, W)` in [0, 1], adversarial where `success`; unchanged where
            `already_wrong`.
        originals: `(B, 3, H, W)` in [0, 1].
        labels: `(B,)` labels that the attack moved away from.
        targets: `(B,)` target classes, or None for an untargeted attack.
        before: `(B,)` predictions on the originals.
        after: `(B,)` predictions on `images`.
        confidence_before: `(B,)` softmax probability of `before`.
        confidence_after: `(B,)` softmax probability of `after`.
        success: `(B,)` whether `images` fool the model, predicted again on the returned floats.
        success_8bit: `(B,)` the same after rounding to 8 bits.
        already_wrong: `(B,)` whether the original was misclassified; this counts as no success.
        l0: `(B,)` number of changed pixels (any channel).
        l2: `(B,)` Euclidean norm of the change, pixel units [0, 1].
        linf: `(B,)` largest change of a value, pixel units [0, 1].
        forwards: `(B,)` forward passes of the attacked model per image, without the three that
            evaluate the result. Wrappers of its module and copies for speed count as the model.
        backwards: `(B,)` backward passes of the attacked model per image.
        queries: `(B,)` forward passes of a black-box attack; 0 for attacks that use gradients.
        other_models: ids of the M other models that the attack ran, such as a surrogate.
        other_forwards: `(B, M)` forward passes of each of them per image.
        other_backwards: `(B, M)` backward passes of each of them per image.
        zero_gradients: `(B,)` gradients that were zero, so that the attack could not take a step.
        class_names: for each image, names of its label, prediction before and prediction after.
        target_names: name of each image's target; empty for an untargeted attack.
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
    l0: Tensor
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

    @property
    def clean_accuracy(self) -> float:
        """Share of images that were classified as labelled before the attack."""
        return float((self.before == self.labels).float().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of images that were classified as labelled before and are not broken.

        Images that are `stuck` count as robust, but the attack has not shown that they are.
        """
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
        """Return one row per image: predictions, success, norms and cost."""
        return [
            {
                "image": row,
                "label": self.class_names[row][0],
                **({"target": self.target_names[row]} if self.target_names else {}),
                "before": self.class_names[row][1],
                "confidence_before": float(self.confidence_before[row]),
                "after": self.class_names[row][2],
                "confidence_after": float(self.confidence_after[row]),
                "success": bool(self.success[row]),
                "success_8bit": bool(self.success_8bit[row]),
                "already_wrong": bool(self.already_wrong[row]),
                "l0_px": int(self.l0[row]),
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


class AttackTechnique(Technique):
    """Base class of attacks; a subclass implements `perturb`."""

    family: ClassVar[str] = "attack"
    base: ClassVar[str] = "attack"
    uses_gradients: ClassVar[bool] = True
    """False for black-box attacks: their forwards count as queries."""

    @abstractmethod
    def perturb(
        self, model: HookedModel, images: Tensor, labels: Tensor, targets: Tensor | None
    ) -> Tensor:
        """Return the changed images, `(B, 3, H, W)` in [0, 1].

        Run forwards of a part of the batch inside `self.only(rows)`, so that passes are counted
        for the right images.

        Args:
            model: the model to fool.
            images: `(B, 3, H, W)` in [0, 1].
            labels: `(B,)` classes to move away from.
            targets: `(B,)` classes to move to, or None for an untargeted attack.
        """

    @contextlib.contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Count forwards inside the context for these rows `(n,)` (int64) of `perturb`'s batch.

        Random defences draw for these images.
        """
        counter = _passes.get()
        with (
            image_rows(rows.tolist()),
            contextlib.nullcontext() if counter is None else counter.only(rows),
        ):
            yield

    def note_gradient(self, gradient: Tensor, rows: Tensor) -> None:
        """Count the images whose gradient is zero, so that the result and a warning name them.

        Args:
            gradient: `(n, 3, H, W)`, the gradient of the loss in the images.
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
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Adversarial:
        """Attack images.

        Args:
            model: the model to fool.
            images: `(B, 3, H, W)` in [0, 1], or anything that `model.images` takes.
            labels: true class, by name or index; once, or once for each image; by default the
                model's own prediction.
            targets: class to aim at; once, or once for each image; by default any other than the
                label.
            seed: seed of random starts.
            batch_size: images per pass; by default as many as fit the memory budget.

        Raises:
            ImageError: the images are not RGB in [0, 1].
            ObjectiveError: the model has no class of that name or index, or has no classes.
            ParameterError: a target equals its label, or `batch_size` is less than 1.
            TechniqueError: the attack did not return images.
            UnsupportedModel: the attack follows a gradient, and a defence of the model has none.
        """
        require_model(model)
        with own_numbers(model, seed):
            return self._attacked(model, images, labels, targets, seed, batch_size)

    def _attacked(
        self,
        model: HookedModel,
        images: Any,
        labels: arguments.Classes,
        targets: arguments.Classes,
        seed: int,
        batch_size: int | None,
    ) -> Adversarial:
        if model.num_classes < 2:
            raise ObjectiveError(
                f"{model.id} has {'one class' if model.num_classes else 'no classes'}, so there is "
                "no wrong class: an attack needs a classifier"
            )
        batch = model.images(images).detach()
        step = chunk_size(model, batch, batch_size)
        with torch.no_grad():
            clean = batch_logits(model, batch, step)
        before = clean.argmax(1)
        truth = before if labels is None else class_indices(model, labels, batch, "labels")
        aims = None if targets is None else class_indices(model, targets, batch, "targets")
        if aims is not None and bool((aims == truth).any()):
            raise ParameterError(
                "a target equals the image's label: aim at another class", parameter="targets"
            )
        already = before == aims if aims is not None else before != truth
        facts = self._provenance(
            model,
            seed,
            labels=truth.tolist(),
            targets=aims.tolist() if aims is not None else None,
        )
        adversarial = batch.clone()
        forwards = torch.zeros(len(batch), dtype=torch.long)
        backwards = torch.zeros(len(batch), dtype=torch.long)
        zeros = torch.zeros(len(batch), dtype=torch.long)
        others: dict[str, tuple[Tensor, Tensor]] = {}
        todo = (~already).nonzero().flatten()
        starts = range(0, len(todo), step)
        for start in self.track(starts, self.title(), total=len(starts)):
            rows = todo[start : start + step]
            with (
                session(seed, rows.tolist()),
                restore_state(self, model, facts.weights_sha256),
                model.count_passes(len(rows)) as counter,
            ):
                part, label = for_autograd(batch[rows]), for_autograd(truth[rows])
                aim = for_autograd(aims[rows]) if aims is not None else None
                zero = torch.zeros(len(rows), dtype=torch.long)
                tokens = _passes.set(counter), _zeros.set(zero)
                try:
                    changed = self.perturb(model, part, label, aim)
                finally:
                    _passes.reset(tokens[0])
                    _zeros.reset(tokens[1])
            checked_pixels(self, changed, tuple(part.shape))
            adversarial[rows] = changed.detach().to(batch)
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
            model, batch, adversarial, truth, aims, clean, already, passes, facts, step
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
        labels: Tensor,
        targets: Tensor | None,
        clean: Tensor,
        already: Tensor,
        passes: _Passes,
        facts: Provenance,
        step: int,
    ) -> Adversarial:
        with torch.no_grad():
            logits = batch_logits(model, adversarial, step)
            rounded = batch_logits(model, (adversarial * 255).round() / 255, step)
        before, after, after_8bit = clean.argmax(1), logits.argmax(1), rounded.argmax(1)

        def fooled(predictions: Tensor) -> Tensor:
            wrong = predictions != labels if targets is None else predictions == targets
            return (wrong & ~already).cpu()

        delta = (adversarial - originals).float().cpu()
        names = [
            [model.class_name(int(index)) for index in row]
            for row in zip(labels, before, after, strict=True)
        ]
        return Adversarial(
            provenance=facts,
            images=adversarial.cpu(),
            originals=originals.cpu(),
            labels=labels.cpu(),
            targets=targets.cpu() if targets is not None else None,
            before=before.cpu(),
            after=after.cpu(),
            confidence_before=clean.softmax(1).amax(1).cpu(),
            confidence_after=logits.softmax(1).amax(1).cpu(),
            success=fooled(after),
            success_8bit=fooled(after_8bit),
            already_wrong=already.cpu(),
            l0=(delta != 0).any(1).flatten(1).sum(1),
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
                model.class_name(int(index)) for index in (targets if targets is not None else ())
            ],
        )
