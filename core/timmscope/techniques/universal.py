"""Base class of universal attacks, which fit one change that fools a model on most images.

The base class splits the images, and measures the change on those that it was fitted on and on
others, beside random noise of the same size: only the rate on other images shows that the change is
universal, and only the noise shows that its size alone does not explain the rate.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from pydantic import Field
from torch import Tensor

from timmscope.models import HookedModel, PassCounter
from timmscope.objectives import as_objective, class_logit
from timmscope.progress import track
from timmscope.results.result import Provenance
from timmscope.techniques import arguments
from timmscope.techniques.balls import Ball, Norm
from timmscope.techniques.base import require_model
from timmscope.techniques.bounded import BoundedTechnique
from timmscope.techniques.goal import Goal
from timmscope.techniques.image_set import ImageSet
from timmscope.techniques.image_split import share_of, shuffled, split_by_share
from timmscope.techniques.judging import Judged, judge, require_goal
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import (
    check_seed,
    image_generators,
    images_per_forward,
    own_numbers,
    session,
)
from timmscope.techniques.universal_perturbation import UniversalPerturbation
from timmscope.techniques.validate_output import checked_numbers, checked_pixels
from timmscope_registry import ImageError, ObjectiveError, ParameterError

SHOWN = 6
"""Number of images in the figure."""
SMALLER = (0.25, 0.5, 0.75)
"""Shares of its size at which a perturbation is measured too."""


class ImageBatches:
    """The images that a universal attack is fitted on, read again at each pass.

    Attributes:
        shape: channels, height and width of each image.
    """

    def __init__(
        self, images: ImageSet, numbers: Sequence[int], device: torch.device, seed: int
    ) -> None:
        self.shape = images.shape
        self._images = images
        self._numbers = numbers
        self._device = device
        self._seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self._numbers)

    def epoch(self, number: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, in an order that depends on the seed and on `number` only.

        Args:
            number: number of the pass, from 0.
            size: images per batch; the last may be smaller.

        Yields:
            Images `(n, C, H, W)` in [0, 1], and their rows `(n,)` int64, for `goal.rows`.

        Raises:
            ImageError: an image can no longer be read.
        """
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        batches = torch.randperm(len(self), generator=generator).split(size)
        for rows in track(batches, f"pass {number + 1}", total=len(batches)):
            numbers = [self._numbers[row] for row in rows.tolist()]
            images = torch.stack([self._images.load(each).image for each in numbers])
            yield images.to(self._device), rows.to(self._device)


class UniversalAttack(BoundedTechnique):
    """Base class of attacks that fit one change to many images; a subclass implements `fit`."""

    family: ClassVar[str] = "attack"
    base: ClassVar[str] = "universal-attack"
    radii: ClassVar[Mapping[Norm, float]] = {
        "linf": 10 / 255,
        "l2": 2000 / 255,
        "l1": 60.0,
        "l0": 150.0,
    }

    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Radius in pixel units [0, 1]; by default 10/255 for linf, at 224×224 2000/255 for l2, 60 for
    l1 and 150 pixels for l0."""

    @abstractmethod
    def fit(self, model: HookedModel, batches: ImageBatches, goal: Goal) -> Tensor:
        """Return the perturbation `(C, H, W)`, inside the ball of `self.ball(images)`.

        Args:
            model: the model to fool.
            batches: the images: `batches.epoch(0, 10)` yields `(images, rows)` ten at a time, and
                `batches.shape` is the shape of an image. Run forwards of a batch inside
                `image_rows(rows.tolist())`, so that random defences draw for these images.
            goal: what to reach on all images, `goal.rows(rows)` for those of a batch; its labels
                are the model's own predictions.
        """

    def mask(self, images: Tensor) -> Tensor | None:
        """Return where a patch covers images, `(1, H, W)` in [0, 1]; None for a change of all.

        A subclass whose perturbation replaces pixels instead of changing them overrides this
        method, `changed` and `noisy`.

        Args:
            images: `(B, C, H, W)`, of which only the size matters.
        """
        return None

    def changed(
        self,
        images: Tensor,
        found: Tensor,
        generators: list[torch.Generator],
        share: float = 1.0,
    ) -> Tensor:
        """Return images `(B, C, H, W)` with the perturbation, as they are measured.

        By default it is added. A patch is pasted, at a place that is drawn for each image.

        Args:
            images: `(B, C, H, W)` in [0, 1].
            found: `(C, H, W)`, what `fit` returned.
            generators: one for each image.
            share: share of the perturbation's size, above 0 to 1; of a patch, of its area.
        """
        return (images + share * found).clamp(0, 1)

    def noisy(
        self,
        images: Tensor,
        found: Tensor,
        generators: list[torch.Generator],
        share: float = 1.0,
    ) -> Tensor:
        """Return images `(B, C, H, W)` with noise of the perturbation's size instead.

        Args:
            images: `(B, C, H, W)` in [0, 1].
            found: `(C, H, W)`, what `fit` returned.
            generators: one for each image.
            share: as for `changed`.
        """
        size = share * float(self.ball(found[None]).size(found[None])[0])
        noise = Ball(norm=self.norm, epsilon=size).noise(images, generators)
        return (images + noise).clamp(0, 1)

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.ImageSet,
        *,
        held_out: arguments.HeldOut = 0.2,
        split: Literal["image", "label"] = "image",
        target: int | str | None = None,
        objective: arguments.ObjectiveToReach = None,
        value: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> UniversalPerturbation:
        """Fit one perturbation to many images, and measure it on others.

        Args:
            model: the model to fool.
            images: a folder, a list of files, an array or a tar, as `timmscope.open_images` takes
                them. In Python also a source, or a tensor `(N, C, H, W)` in [0, 1].
            held_out: images that are measured and not fitted on: a share of the images, or a
                location of others. In Python as `images`.
            split: whether single images are held out, or all images of a label (of a folder), as
                crops of the same photographs need it.
            target: class that all images should become; by default any other than the prediction.
            objective: raise this instead of changing the class, until it is at least the value: a
                unit `blocks.4[17]`, a class, a sum. In Python also an `Objective`.
            value: value that the objective should reach.
            seed: seed of the split, of the order of the images and of the noise.
            batch_size: images per pass while rates are measured; by default as many as fit the
                memory budget. The perturbation does not depend on it.

        Raises:
            ImageError: there are no images, or none can be read.
            ObjectiveError: the model has no such class, or no classes, or the objective does not
                fit the model.
            ParameterError: no image is left to fit on, the split needs labels, an objective has no
                value, or `batch_size` is less than 1.
            TechniqueError: the attack did not return a perturbation inside the ball.
        """
        require_model(model)
        check_seed(seed)
        require_goal(model, None, target, objective, value)
        with (
            opening([self], model, seed) as opened,
            own_numbers(model, seed),
            session(seed, batch_size=batch_size),
        ):
            goal = _goal(model, target, objective, value)
            sets, share = [ImageSet(model, images)], share_of(held_out)
            if share is None:
                sets.append(ImageSet(model, held_out))
            subjects = _Subjects.of(model, sets, goal, share, split, seed)
            result = self._fitted(model, subjects, seed)
        return opened.reported(result)

    def _fitted(self, model: HookedModel, subjects: _Subjects, seed: int) -> UniversalPerturbation:
        facts = self._provenance(model, seed, **subjects.facts)
        notes = Notes(self)
        batches = ImageBatches(subjects.sets[0], subjects.fitted, model.device, seed)
        with (
            notes.of(),
            session(seed),
            restore_state(self, model, facts.weights_sha256),
            model.count_passes(1) as counter,
        ):
            found = self.fit(model, batches, subjects.goal_of_fitted())
        found = checked_numbers(self, found, "values of a perturbation", batches.shape)
        found = found.to(model.device, torch.float32)
        self._require_inside(found[None], "a perturbation")
        return self._measured(model, subjects, found, facts, notes, counter)

    def _measured(
        self,
        model: HookedModel,
        subjects: _Subjects,
        found: Tensor,
        facts: Provenance,
        notes: Notes,
        counter: PassCounter,
    ) -> UniversalPerturbation:
        ball = self.ball(found[None])
        before, goal = subjects.before(), subjects.goal
        after, rounded, noisy = subjects.changed(self, model, found, facts.seed)
        smaller = subjects.smaller(self, model, found, facts.seed)
        classes = torch.cat([each.predicted for each in (before, after, noisy)])
        scored = goal.objective is not None
        shown = subjects.held_out[:SHOWN]
        originals = torch.stack([subjects.sets[-1].load(number).image for number in shown])
        places = _positions(subjects.sets, len(subjects.sets) - 1, shown)
        with session(facts.seed, places):
            pictures = self.changed(originals.to(found), found, image_generators(len(shown)))
        mask = self.mask(found[None])
        return UniversalPerturbation(
            provenance=facts,
            notes=notes.joined(),
            perturbation=found.cpu(),
            norm=self.norm,
            epsilon=ball.epsilon,
            names=subjects.names,
            held_out=subjects.is_held_out,
            before=before.predicted.cpu(),
            after=after.predicted.cpu(),
            after_noise=noisy.predicted.cpu(),
            confidence_before=before.confidence.cpu(),
            confidence_after=after.confidence.cpu(),
            already=before.reached.cpu(),
            fooled=(after.reached & ~before.reached).cpu(),
            fooled_8bit=(rounded.reached & ~before.reached).cpu(),
            fooled_by_noise=(noisy.reached & ~before.reached).cpu(),
            shown=torch.tensor([subjects.row(number) for number in shown]),
            originals=originals.cpu(),
            changed=pictures.cpu(),
            mask=None if mask is None else mask.cpu(),
            smaller=torch.tensor(SMALLER, dtype=torch.float64),
            fooled_smaller=smaller[0],
            fooled_by_smaller_noise=smaller[1],
            class_names={str(each): model.class_name(each) for each in sorted({*classes.tolist()})},
            target_name="" if goal.targets is None else model.class_name(int(goal.targets[0])),
            objective=goal.objective.label if goal.objective is not None else "",
            value=goal.value if scored else None,
            scores_before=before.scores.cpu() if scored else None,
            scores_after=after.scores.cpu() if scored else None,
            unreadable=[name for each in subjects.examined for name in each.unreadable],
            forwards=int(counter.forwards[0]),
            backwards=int(counter.backwards[0]),
        )


class _Verdicts(NamedTuple):
    """What a model says about images, one value each; `scores` is empty without an objective."""

    predicted: Tensor
    confidence: Tensor
    reached: Tensor
    scores: Tensor

    @classmethod
    def of(cls, goal: Goal, judged: Judged) -> _Verdicts:
        outputs = judged.outputs
        scores = outputs if goal.objective is not None else outputs.new_zeros(0)
        return cls(judged.predicted, judged.confidence, goal.reached(outputs), scores)

    @classmethod
    def joined(cls, parts: Sequence[_Verdicts]) -> _Verdicts:
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Examined:
    """The readable images of a set, in their order, and what the model says about them."""

    numbers: list[int]
    digests: list[bytes]
    before: _Verdicts
    unreadable: list[str]


@dataclass(frozen=True)
class _Subjects:
    """The images of a call, examined and split; `goal` has no labels, and targets for one image."""

    sets: list[ImageSet]
    examined: list[_Examined]
    fitted: list[int]
    held_out: list[int]
    goal: Goal
    facts: dict[str, Any]
    step: int

    @classmethod
    def of(
        cls,
        model: HookedModel,
        sets: list[ImageSet],
        goal: Goal,
        share: float | None,
        split: str,
        seed: int,
    ) -> _Subjects:
        """Let the model predict all images once, and split them."""
        step = images_per_forward(model, torch.empty((1, *sets[0].shape), device="meta"))
        if not isinstance(step, int) or step < 1:
            raise ParameterError(
                f"batch_size is {step!r}: expected an int, 1 or more", parameter="batch_size"
            )
        if split not in ("image", "label") or (share is None and split == "label"):
            wanted = "image or label, and label only with a share of the images to hold out"
            raise ParameterError(f"split is {split!r}: expected {wanted}", parameter="split")
        if sets[-1].shape != sets[0].shape:
            raise ImageError(
                f"held-out images have shape {sets[-1].shape}, the others {sets[0].shape}"
            )
        examined = [_examine(model, sets, place, goal, step, seed) for place in range(len(sets))]
        generator = torch.Generator().manual_seed(seed)
        if share is None:
            fitted = shuffled(examined[0].numbers, generator)
            held = shuffled(examined[1].numbers, generator)
        else:
            numbers = examined[0].numbers
            fitted, held = split_by_share(sets[0], numbers, share, split, generator)
        _warn_of_leaks(examined, fitted, held)
        facts = _facts(sets, share, split, goal, len(fitted), len(held))
        return cls(sets, examined, fitted, held, goal, facts, step)

    @property
    def names(self) -> list[str]:
        """Names of all readable images."""
        every = zip(self.sets, self.examined, strict=True)
        return [images.names[number] for images, own in every for number in own.numbers]

    @property
    def is_held_out(self) -> Tensor:
        """Whether each image is held out, `(N,)`."""
        fitted = set(self.fitted)
        first, *others = self.examined
        held = [bool(others) is False and number not in fitted for number in first.numbers]
        return torch.tensor(held + [True] * sum(len(each.numbers) for each in others))

    def row(self, number: int) -> int:
        """Position among all readable images of a held-out image."""
        *earlier, last = self.examined
        return sum(len(each.numbers) for each in earlier) + last.numbers.index(number)

    def before(self) -> _Verdicts:
        """What the model says about all images."""
        return _Verdicts.joined([each.before for each in self.examined])

    def goal_of_fitted(self) -> Goal:
        """The goal for the images that are fitted on, in their order."""
        place = {number: row for row, number in enumerate(self.examined[0].numbers)}
        rows = torch.tensor([place[number] for number in self.fitted])
        labels = self.examined[0].before.predicted
        return _for_images(self.goal, labels[rows.to(labels.device)] if len(labels) else labels)

    def changed(
        self, attack: UniversalAttack, model: HookedModel, found: Tensor, seed: int
    ) -> tuple[_Verdicts, _Verdicts, _Verdicts]:
        """What the model says with a perturbation, with it in 8 bits, and with noise instead."""
        verdicts: list[list[_Verdicts]] = [[], [], []]
        for place, own in enumerate(self.examined):
            for batch, goal, where in self._batches(place, own.numbers, found, "measuring"):
                with session(seed, where), torch.no_grad():
                    moved = attack.changed(batch, found, image_generators(len(batch)))
                    checked_pixels(attack, moved, tuple(batch.shape))
                    noisy = attack.noisy(batch, found, image_generators(len(batch)))
                    views = moved, (moved * 255).round() / 255, noisy
                    for told, view in zip(verdicts, views, strict=True):
                        told.append(_Verdicts.of(goal, judge(model, view, goal, self.step)))
        after, rounded, noise = map(_Verdicts.joined, verdicts)
        return after, rounded, noise

    def smaller(
        self, attack: UniversalAttack, model: HookedModel, found: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Which held-out images smaller perturbations fool, and which noise of their size does.

        Both are `(S, n)`, with the images in their order.
        """
        place, own = len(self.sets) - 1, self.examined[-1]
        numbers = sorted(self.held_out)
        rows = torch.tensor([own.numbers.index(number) for number in numbers])
        already = own.before.reached.cpu()[rows]
        parts: list[Tensor] = []
        for batch, goal, where in self._batches(place, numbers, found, "measuring smaller ones"):
            reached = []
            with session(seed, where), torch.no_grad():
                for make in (attack.changed, attack.noisy):
                    for share in SMALLER:
                        view = make(batch, found, image_generators(len(batch)), share)
                        outputs = judge(model, view, goal, self.step).outputs
                        reached.append(goal.reached(outputs).cpu())
            parts.append(torch.stack(reached))
        fooled = torch.cat(parts, 1) & ~already
        return fooled[: len(SMALLER)], fooled[len(SMALLER) :]

    def _batches(
        self, place: int, numbers: Sequence[int], found: Tensor, what: str
    ) -> Iterator[tuple[Tensor, Goal, list[int]]]:
        """Yield images of one of the sets, with their goal and their places among all images."""
        images, own = self.sets[place], self.examined[place]
        rows = {number: row for row, number in enumerate(own.numbers)}
        every = _for_images(self.goal, own.before.predicted)
        for start in track(range(0, len(numbers), self.step), what):
            some = list(numbers[start : start + self.step])
            batch = torch.stack([images.load(each).image for each in some]).to(found)
            goal = every.rows(torch.tensor([rows[each] for each in some], device=found.device))
            yield batch, goal, _positions(self.sets, place, some)


def _goal(model: HookedModel, target: Any, objective: Any, value: float | None) -> Goal:
    """Return the goal of a call, without labels; `targets` has one class."""
    none = torch.zeros(0, dtype=torch.long, device=model.device)
    if objective is not None and value is not None:
        bound = as_objective(objective).bind(model, None)
        if bound.num_targets:
            raise ObjectiveError(
                f"{bound} names targets for {bound.num_targets} images: name one for all"
            )
        return Goal(labels=none, objective=bound, value=float(value))
    if target is None:
        return Goal(labels=none, classes=model.num_classes)
    classes = class_logit(target).bind(model, None).classes
    return Goal(
        labels=none,
        targets=torch.tensor(classes, device=model.device),
        classes=model.num_classes,
    )


def _for_images(goal: Goal, labels: Tensor) -> Goal:
    """Return the goal for images with these labels."""
    targets = None if goal.targets is None else goal.targets.expand(len(labels))
    return replace(goal, labels=labels, targets=targets)


def _positions(sets: list[ImageSet], place: int, numbers: Sequence[int]) -> list[int]:
    """Return where images of one of the sets are among all images, for their random numbers."""
    return [len(sets) * number + place for number in numbers]


def _examine(
    model: HookedModel, sets: list[ImageSet], place: int, goal: Goal, step: int, seed: int
) -> _Examined:
    """Let the model predict images; those that cannot be read are left out."""
    images = sets[place]
    numbers: list[int] = []
    digests: list[bytes] = []
    unreadable: list[str] = []
    reason = ""
    parts: list[_Verdicts] = []
    for start in track(range(0, len(images), step), "predicting"):
        loaded = []
        for number in range(start, min(start + step, len(images))):
            try:
                image = images.load(number).image
            except ImageError as error:
                unreadable.append(images.names[number])
                reason = reason or str(error)
                continue
            numbers.append(number)
            loaded.append(image)
            pixels = image.detach().cpu().contiguous().numpy().tobytes()
            digests.append(hashlib.blake2b(pixels, digest_size=16).digest())
        if loaded:
            positions = _positions(sets, place, numbers[-len(loaded) :])
            with session(seed, positions), torch.no_grad():
                judged = judge(model, torch.stack(loaded).to(model.device), goal, step)
            parts.append(_Verdicts.of(_for_images(goal, judged.predicted), judged))
    if not parts:
        raise ImageError(f"none of the {len(images)} images can be read: {reason}")
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(images)} images cannot be read and are left out; the first "
            f"error is: {reason}",
            stacklevel=2,
        )
    return _Examined(numbers, digests, _Verdicts.joined(parts), unreadable)


def _warn_of_leaks(examined: list[_Examined], fitted: list[int], held: list[int]) -> None:
    """Warn if held-out images have the same pixels as images that are fitted on."""
    first, last = (
        dict(zip(e.numbers, e.digests, strict=True)) for e in (examined[0], examined[-1])
    )
    seen = {first[number] for number in fitted}
    same = sum(last[number] in seen for number in held)
    if same:
        warnings.warn(
            f"{same} of {len(held)} held-out images equal images that are fitted on, so that the "
            "rate on held-out images is too high: remove them from one of the two",
            stacklevel=2,
        )


def _facts(
    sets: list[ImageSet], share: float | None, split: str, goal: Goal, fitted: int, held: int
) -> dict[str, Any]:
    """Return the facts of a call that decide its result."""
    facts: dict[str, Any] = {"split": split, "counts": [fitted, held]}
    if goal.objective is not None:
        facts |= {"objective": str(goal.objective), "value": goal.value}
    elif goal.targets is not None:
        facts["target"] = int(goal.targets[0])
    described = [
        {"location": each.location, "count": len(each), "fingerprint": each.fingerprint()}
        for each in sets
    ]
    facts["images"] = described[0]
    facts["held_out"] = described[1] if share is None else share
    return facts
