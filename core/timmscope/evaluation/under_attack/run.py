"""`robustness` attacks a model, alone and behind defences, and checks what that is worth."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timmscope.draws import ImageNumbers, image_numbers
from timmscope.evaluation.steps import Steps, complete
from timmscope.evaluation.under_attack.checks import measure_gradients, measure_outputs
from timmscope.evaluation.under_attack.frames import Frames
from timmscope.evaluation.under_attack.labels import Labels, Truth
from timmscope.evaluation.under_attack.plan import Plan
from timmscope.evaluation.under_attack.radii import Radii, radii_by_norm
from timmscope.evaluation.under_attack.result import Robustness
from timmscope.evaluation.under_attack.runs import (
    Attacks,
    Chain,
    Run,
    named_attacks,
    subjects_of,
)
from timmscope.evaluation.under_attack.summarise import summarise
from timmscope.images import Images, open_images
from timmscope.models import HookedModel
from timmscope.progress import quiet, remark
from timmscope.store.records import Journal, Record
from timmscope.techniques.attack import Adversarial, AttackTechnique
from timmscope.techniques.balls import Ball
from timmscope.techniques.base import require_model
from timmscope.techniques.goal import Goal
from timmscope.techniques.image_set import ImageSet
from timmscope.techniques.judging import judge
from timmscope.techniques.opening import opening
from timmscope.techniques.session import check_seed, chunk_size, own_numbers
from timmscope.techniques.warn_once import each_warning_once
from timmscope_registry import (
    ImageError,
    ObjectiveError,
    ParameterError,
    TechniqueError,
    UnsupportedModel,
)

_MOST_PER_CHUNK = 32
_PROBED = 16
"""Images at which outputs and gradients are measured."""
_REFUSALS = (TechniqueError, UnsupportedModel, ParameterError, ObjectiveError)
"""Errors with which an attack says that it does not work on a model, or on an image."""


def robustness(
    model: HookedModel,
    images: Images | Tensor,
    attacks: Attacks,
    *,
    defences: Sequence[Chain] = (),
    epsilons: Radii | None = None,
    labels: Labels | None = None,
    others: Sequence[str | HookedModel] = (),
    checks: bool = False,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Robustness:
    """Judge how robust a model is, what defences add to it, and whether that can be believed.

    Every attack runs at every radius: on the model, through each defence (adaptive), and around it
    (oblivious: made on the model without the defence, judged on the one with it). An image is
    robust if it is classified right and no attack within the radius changes that.

    Args:
        model: the model to attack.
        images: a folder, list, array or tar (`timmscope.open_images`), or `(B, C, H, W)`.
        attacks: attacks or texts of attacks, as in `pgd steps=50`. One with an `epsilon` of its own
            runs at this radius only; one of least norm runs once, and gives all radii.
        defences: each is judged for itself: a defence, a text such as `jpeg quality=50`, or several
            that act one after the other, as a list or joined by `+`.
        epsilons: radii in pixel units [0, 1], as numbers or texts such as `1/255`; if the attacks
            keep several norms, by norm: `{"linf": ["1/255", "4/255"], "l2": [0.5, 1]}`. By default
            1, 2, 4 and 8 of 255 for L∞, and shares of the usual radius for other norms.
        labels: the true classes: a CSV file with the columns path and label, one class per image,
            or a mapping from names to classes; by default the labels of the images (names of
            folders), or the model's own predictions if they have none. `predictions` always takes
            these.
        others: further models or their ids; attacks are made on each and judged on all.
        checks: also check the model, and the model behind each defence, for gradients that mislead
            attacks, on at most 100 of the images.
        out: a folder for records and report. If a run was killed, the same call with the same
            folder resumes it, with the same result.
        seed: seed of random numbers.
        batch_size: images per pass; by default as many as fit the memory budget, at most 32. It is
            part of the run, since another one may change the last bits.

    Returns:
        Accuracy of all models under all attacks with confidence intervals, its curves over the
        radius, costs, and the checks.

    Raises:
        ParameterError: an attack, defence, radius or label is wrong, or something is given twice.
        ObjectiveError: the model has no classes.
        ModelError: another model cannot be loaded, or has other classes.
        ImageError: no image can be read.
        UnsupportedModel, TechniqueError: no attack can run on the model, such as one that follows
            gradients through a defence without any.
        StoreMismatch: `out` holds a report with other settings.
        StoreError: `out` is not a folder, or holds other files.
        StoreCorrupted: the records in `out` were damaged or edited.
    """
    require_model(model)
    check_seed(seed)
    if model.num_classes < 2:
        raise ObjectiveError(
            f"{model.id} has {'one class' if model.num_classes else 'no classes'}, so there is no "
            "accuracy to lose: robustness needs a classifier"
        )
    chosen = named_attacks(attacks)
    source = images if isinstance(images, Tensor) else open_images(images)
    main = ImageSet(model, source)
    radii = radii_by_norm(epsilons, [each.norm for each in chosen.values()], main.shape)
    if epsilons is not None and all(_has_own_radius(each) for each in chosen.values()):
        raise ParameterError(
            "every attack has an epsilon of its own: leave these out, or epsilons",
            parameter="epsilons",
        )
    subjects = subjects_of(model, defences, others)
    truth = Truth.of(model, main, labels)
    with opening(list(chosen.values()), model, seed):
        plan = Plan.of(chosen, radii, subjects, truth, main, checks)
        frames = Frames(subjects, source, main)
        return complete(
            _Attacks(plan, frames, seed, batch_size), None if out is None else Path(out)
        )


def _has_own_radius(attack: AttackTechnique) -> bool:
    return attack.kind == "fixed" and attack.epsilon is not None


class _Attacks(Steps[Robustness]):
    """The clean images chunk by chunk, each with all attacks; then attacks and probes of checks."""

    name = "robustness"
    what = "a report on robustness"
    title = "judging robustness"

    def __init__(self, plan: Plan, frames: Frames, seed: int, batch_size: int | None) -> None:
        self._plan, self._frames, self._seed = plan, frames, seed
        one = torch.empty((1, *frames.main.shape), device="meta")
        chunk = chunk_size(plan.subjects[0].model, one, batch_size)
        self._chunk = chunk if batch_size is not None else min(chunk, _MOST_PER_CHUNK)
        self._once = each_warning_once()
        self._labels: dict[int, int] = {}
        self._right: dict[int, list[bool]] = {}
        self._broken: dict[int, set[int]] = {}
        self._steps = list(self._planned(len(frames.main)))
        self.total = len(self._steps)
        self.settings = plan.settings(seed, self._chunk, frames.main.fingerprint())

    def _planned(self, count: int) -> Iterator[tuple[str, Any, Sequence[int]]]:
        """Yield each step: its kind, what it is about, and numbers of images."""
        plan = self._plan
        for start in range(0, count, self._chunk):
            numbers = range(start, min(start + self._chunk, count))
            yield "images", None, numbers
            for place, run in enumerate(plan.runs):
                if not run.check:
                    yield "run", place, numbers
        sample = plan.sample()
        for subject in plan.checked:
            for start in range(0, len(sample), self._chunk):
                for place, run in enumerate(plan.runs):
                    if run.check and run.source == subject:
                        yield "run", place, sample[start : start + self._chunk]
            yield "probe", subject, sample

    def run(self, index: int) -> Record:
        """Judge clean images, run an attack on a chunk, or measure a model for checks."""
        kind, what, numbers = self._steps[index]
        if kind == "run":
            run = self._plan.runs[what]
            remark(f"{run.title}, {self._plan.subjects[run.source].name}")
        with self._once(), quiet():
            if kind == "images":
                return self._clean(numbers)
            return self._attacked(what, numbers) if kind == "run" else self._probed(what, numbers)

    def seen(self, record: Record) -> None:
        """Remember labels, what is classified right, and what is broken."""
        if record["step"] == "images":
            for row, number in enumerate(record["numbers"]):
                self._labels[number] = record["labels"][row]
                self._right[number] = [right[row] for right in record["right"]]
        elif record["step"] == "run":
            own = record["targets"][str(self._plan.runs[record["run"]].source)]
            broken = self._broken.setdefault(record["run"], set())
            facts = zip(record["numbers"], record["size"], own["broken"], strict=True)
            broken.update(
                number
                for number, size, is_broken in facts
                if is_broken and self._plan.counts(record["run"], size)
            )

    def summarise(self, journal: Journal) -> Robustness:
        """Combine the records of all steps.

        Raises:
            ImageError: no image can be read.
            TechniqueError: no attack can run.
        """
        return summarise(journal, self._plan, self.settings, self._seed)

    # Steps

    def _clean(self, numbers: Sequence[int]) -> Record:
        """Let all models classify images."""
        missing: dict[str, str] = {}
        found = []
        places = range(len(self._plan.subjects))
        for number in numbers:
            try:
                for place in places:
                    self._frames.image(place, number)
                found.append(number)
            except ImageError as error:
                missing[str(number)] = str(error)
        record: Record = {"step": "images", "numbers": found, "missing": missing}
        if not found:
            return record | {"labels": [], "right": [[] for _ in places]}
        predicted = [
            self._predicted(place, self._frames.images(place, found), found) for place in places
        ]
        classes = self._plan.truth.classes
        labels = predicted[0]
        if classes is not None:
            labels = torch.tensor([classes[number] for number in found])
        right = [(each == labels).tolist() for each in predicted]
        return record | {"labels": labels.tolist(), "right": right}

    def _attacked(self, place: int, numbers: Sequence[int]) -> Record:
        """Run an attack on the images that are left to it, and judge what it returns."""
        run = self._plan.runs[place]
        left_out = {number for each in run.after for number in self._broken.get(each, ())}
        wanted = [each for each in numbers if each in self._labels and each not in left_out]
        made: list[Record] = []
        refused: dict[str, str] = {}
        parts = [wanted] if wanted else []
        while parts:
            part = parts.pop(0)
            try:
                made.append(self._attacked_together(run, part))
            except _REFUSALS as error:
                if isinstance(error, TechniqueError) and len(part) > 1:  # perhaps of one image
                    parts = [[number] for number in part]
                    continue
                refused |= dict.fromkeys(map(str, part), " ".join(str(error).split()))
        names = ("numbers", "size", "forwards", "backwards", "queries", "zero_gradients")
        return {
            "step": "run",
            "run": place,
            **{name: [value for each in made for value in each[name]] for name in names},
            "targets": {
                str(target): {
                    name: [value for each in made for value in each["targets"][target][name]]
                    for name in ("right", "broken", "broken_8bit")
                }
                for target in run.targets
            },
            "refused": refused,
        }

    def _attacked_together(self, run: Run, numbers: Sequence[int]) -> Record:
        images = self._frames.images(run.source, numbers)
        labels = [self._labels[number] for number in numbers]
        model = self._plan.subjects[run.source].model
        with image_numbers(ImageNumbers(tuple(numbers))):
            result = run.attack(model, images, labels, seed=self._seed, batch_size=self._chunk)
        size = getattr(result, result.norm).double()
        if run.epsilon is not None:
            size = size.clamp(max=run.epsilon)  # what exceeds it is rounding
        return {
            "numbers": list(numbers),
            "size": size.tolist(),
            "forwards": result.forwards.tolist(),
            "backwards": result.backwards.tolist(),
            "queries": result.queries.tolist(),
            "zero_gradients": result.zero_gradients.tolist(),
            "targets": {
                target: self._judged(run, target, images, numbers, result) for target in run.targets
            },
        }

    def _judged(
        self, run: Run, target: int, images: Tensor, numbers: Sequence[int], result: Adversarial
    ) -> dict[str, list[bool]]:
        """Return what a model makes of attacked images, by image."""
        if target == run.source:
            right, broken, rounded = ~result.already_wrong, result.success, result.success_8bit
        else:
            labels = torch.tensor([self._labels[number] for number in numbers])
            changed = result.images.to(images)
            clean, after, after_8bit = (
                self._predicted(target, self._frames.moved(each, run.source, target), numbers)
                == labels
                for each in (images, changed, (changed * 255).round() / 255)
            )
            right, broken, rounded = clean, clean & ~after, clean & ~after_8bit
        return {
            "right": right.tolist(),
            "broken": broken.tolist(),
            "broken_8bit": (broken & rounded).tolist(),
        }

    def _predicted(self, place: int, images: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the classes `(n,)` that a model gives images."""
        model = self._plan.subjects[place].model
        none = torch.zeros(0, dtype=torch.long, device=model.device)
        goal = Goal(labels=none, classes=model.num_classes)
        with (
            image_numbers(ImageNumbers(tuple(numbers))),
            own_numbers(model, self._seed),
            torch.no_grad(),
        ):
            return judge(model, images, goal, self._chunk).predicted.cpu()

    def _probed(self, place: int, numbers: Sequence[int]) -> Record:
        """Measure outputs and gradients of a model at a few images that it classifies right."""
        readable = [number for number in numbers if number in self._labels]
        right = [number for number in readable if self._right[number][place]] or readable
        chosen = sorted({right[len(right) * n // _PROBED] for n in range(_PROBED)} if right else ())
        record: Record = {"step": "probe", "model": place, "outputs": None, "gradients": None}
        bench = self._plan.bench
        if not chosen or bench is None:
            return record
        model = self._plan.subjects[place].model
        images = self._frames.images(place, chosen)
        labels = torch.tensor([self._labels[number] for number in chosen], device=model.device)
        ball = Ball(norm=bench.norm, epsilon=bench.epsilon)
        return record | {
            "outputs": measure_outputs(model, images, self._seed),
            "gradients": measure_gradients(model, images, labels, ball, self._seed),
        }
