"""Base class and result of syntheses, which make images that maximise an objective."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from timmscope.draws import image_rows
from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.parameters import technique_error
from timmscope.results.result import Result
from timmscope.techniques import arguments
from timmscope.techniques.ascent.outcome import SynthesisOutcome
from timmscope.techniques.attribution import objective_labels
from timmscope.techniques.base import Technique, require_model
from timmscope.techniques.names import ModelName
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.pictures import pictures_of
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, own_numbers, session
from timmscope.techniques.validate_output import (
    checked_frames,
    checked_numbers,
    checked_pixels,
    checked_type,
)
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (Rec. 601), for models of one channel."""


def per_image(
    objective: Objective, init: Tensor | None, count: int = 1
) -> tuple[Tensor, Objective, Tensor | None]:
    """Give every image of a synthesis its target and its start, `count` images per target.

    The images of a target follow each other. Several initial images for an objective with one
    target make an image each.

    Args:
        objective: a bound objective.
        init: the initial images, `(1, …)` or one per target; None without.
        count: number of images per target.

    Returns:
        The target of each image, `(B,)` int64; the objective for these images; the initial image of
        each, `(B, C, H, W)` or None.

    Raises:
        ParameterError: the numbers do not fit together.
    """
    named, starts = objective.num_targets, 1 if init is None else len(init)
    if named is None and starts > 1 and count == 1:
        count = starts
    if starts not in (1, named or count):
        other = f"{named} targets" if named else f"{count} count"
        raise ParameterError(
            f"these numbers differ: {other}, {starts} initial images", parameter="count"
        )
    targets = torch.arange(named or 1).repeat_interleave(count)
    if init is not None:
        init = init[targets] if starts == named else init.expand(len(targets), -1, -1, -1)
    return targets, objective.take(targets.tolist()), init


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
        targets: `(B,)` int64, the objective's target (from 0) that each image is for.
        classes: `(B,)` int64, the class that each image is for, or None if the objective is no
            class. They are the labels of `arrays.h5` as an image set.
        facets: `(B,)` int64, the facet of its target that each image shows, or None.
        originals: `(T, 3, H, W)` in [0, 1], the images whose features the objective matches, one
            per target; None for other objectives.
        frames: `(F, B, 3, H, W)` uint8, the images at some steps, if the technique keeps them.
        opacity: `(B, H, W)` in [0, 1], how much each pixel mattered to the optimisation, relative
            to its 90th percentile; None if the technique does not measure it.
    """

    images: Tensor
    scores: Tensor
    best_step: Tensor
    final_scores: Tensor
    objective: str
    labels: list[str]
    targets: Tensor
    classes: Tensor | None = None
    facets: Tensor | None = None
    originals: Tensor | None = None
    frames: Tensor | None = None
    opacity: Tensor | None = None

    sheet_pictures: ClassVar[str] = "image-"

    @property
    def psnr_db(self) -> Tensor | None:
        """Peak signal-to-noise ratio of each image to its original, `(B,)` in dB, or None."""
        if self.originals is None or self.originals.shape[1:] != self.images.shape[1:]:
            return None
        errors = (self.images - self.originals[self.targets]).square().mean((1, 2, 3))
        return -10 * errors.log10()

    def figure(self) -> Figure:
        """Draw the images, with their originals if there are any, beside the curves."""
        from timmscope.drawing import MAX_ROWS, curves_figure, format_number

        count = min(len(self.images), MAX_ROWS)
        names = [f"{row + 1}" for row in range(count)] if count > 1 else [""]
        psnr, shown, captions = self.psnr_db, [], []
        for row, name in enumerate(names):  # the legend names each image by its number
            target = int(self.targets[row])
            if self.originals is not None and self._is_new(target, row):
                shown.append(self.originals[target])
                captions.append(("original", ""))
            shown.append(self._over_white(row))
            facts = f"objective {format_number(float(self.final_scores[row]))}"
            facts += "" if psnr is None else f", {float(psnr[row]):.1f} dB"
            facts += "" if self.facets is None else f", facet {int(self.facets[row])}"
            facts = ", ".join(filter(None, [facts, self.note_text(row)]))
            captions.append((f"{name}  {self.labels[row]}".lstrip(), facts))
        curves = {name: self.scores[:, row] for row, name in enumerate(names)}
        return curves_figure(shown, captions, curves, "objective")

    def _is_new(self, target: int, row: int) -> bool:
        """Whether no image before this one has the same original."""
        assert self.originals is not None, "the caller has them"
        own = self.originals[target]
        return not any(
            torch.equal(self.originals[before], own) for before in set(self.targets[:row].tolist())
        )

    def _over_white(self, row: int) -> Tensor:
        """An image, with white where it did not matter."""
        if self.opacity is None:
            return self.images[row]
        return 1 - self.opacity[row] * (1 - self.images[row])

    def pictures(self) -> dict[str, Any]:
        """Return the images, over white if they have an opacity, and the strips of their frames."""
        pictures = {f"image-{row:03d}": image for row, image in enumerate(self.images)}
        if self.opacity is not None:
            rows = range(len(self.images))
            pictures |= {f"over-white-{row:03d}": self._over_white(row) for row in rows}
        for row in range(len(self.images) if self.frames is not None else 0):
            assert self.frames is not None, "checked in the loop's range"
            pictures[f"frames-{row:03d}"] = torch.cat(list(self.frames[:, row] / 255), dim=2)
        return pictures

    def animation_frames(self) -> Tensor | None:
        """Return the frames."""
        return self.frames

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image: objective, target, final score, best step, notes."""
        psnr = self.psnr_db
        rows: list[dict[str, Any]] = [
            {
                "image": row,
                "objective": self.labels[row],
                "target": int(self.targets[row]),
                **({} if self.facets is None else {"facet": int(self.facets[row])}),
                "first_score": float(self.scores[0, row]),
                "final_score": float(self.final_scores[row]),
                **({} if psnr is None else {"psnr_db": float(psnr[row])}),
                "best_step": int(self.best_step[row]),
                "steps": len(self.scores),
            }
            for row in range(len(self.images))
        ]
        return self.with_notes(rows)


class SynthesisTechnique(Technique):
    """Base class of syntheses; a subclass implements `synthesize`."""

    family: ClassVar[str] = "synthesis"
    base: ClassVar[str] = "synthesis"

    keeps_init_size: ClassVar[bool] = False
    """Whether a picture to start from keeps its own size, instead of becoming the model's input."""

    judge: ModelName | None = None
    """Model that took no part, which says what it sees: the results note its rank of the class
    (`transfer_rank`, 1 for its top class) and its probability (`transfer_probability`)."""

    @abstractmethod
    def synthesize(
        self, model: HookedModel, objective: Objective, init: Tensor | None
    ) -> SynthesisOutcome:
        """Make images for a bound objective.

        `per_image` gives every image its target and its start.

        Args:
            model: the model.
            objective: what to maximise, with one or several targets.
            init: `(1, 3, H, W)` or one image per target in [0, 1], or None.
        """

    def score(self, model: HookedModel, images: Tensor, objective: Objective) -> Tensor:
        """Return the objective of finished images, `(B,)`; by default of whole images at once.

        A technique for images that fit no memory overrides it.

        Args:
            model: the model.
            images: `(B, C, H, W)` in [0, 1], on the model's device.
            objective: the bound objective of these images.
        """
        return model.score(images, objective)

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
        with opening([self], model, seed) as opened, own_numbers(model, seed):
            result = self._synthesized(model, objective, init, seed)
        return opened.reported(result)

    def _synthesized(self, model: HookedModel, objective: Any, init: Any, seed: int) -> Synthesis:
        start = None if init is None else _initial(model, init, own_size=self.keeps_init_size)
        goal = as_objective(objective).resolve(model)
        if start is not None and len(start) == 1 and goal.num_targets:
            start = start.expand(goal.num_targets, -1, -1, -1)
        bound = goal.bind(model, start)
        facts = self._provenance(model, seed, objective=str(bound))
        notes = Notes(self)
        self._check_judge(model, bound)
        with notes.of():
            with session(seed), restore_state(self, model, facts.weights_sha256):
                outcome = self.synthesize(model, bound, None if start is None else start.clone())
            checked_type(self, outcome, SynthesisOutcome)
            images = checked_pixels(self, outcome.images, ("B", model.input_size[0], "H", "W"))
            targets = self._targets(outcome, len(images), bound)
            each = bound.take(targets.tolist())
            if self.judge is not None:
                with session(seed), restore_state(self, model, facts.weights_sha256):
                    self._note_transfer(self.open_model(self.judge), images, each)
        scores = checked_numbers(
            self,
            outcome.scores,
            "scores",
            ("steps", len(images)),
            "lower the step size or learning rate",
        )
        best = self._numbered(outcome.best_step, "best steps", len(images), len(scores))
        assert best is not None, "it is no optional part of the outcome"
        originals = bound.reference_images
        return Synthesis(
            provenance=facts,
            notes=notes.joined(len(images)),
            images=images,
            scores=scores.float().cpu(),
            best_step=best,
            final_scores=self._final_scores(model, images, each),
            objective=str(bound),
            labels=objective_labels(model, each, len(images)),
            targets=targets,
            classes=_classes(each, len(images)),
            facets=self._numbered(outcome.facets, "facets", len(images), None),
            originals=None if originals is None else originals.float().cpu(),
            frames=checked_frames(self, outcome.frames, images),
            opacity=self._opacity(outcome.importance, images),
        )

    def _check_judge(self, model: HookedModel, bound: Objective) -> None:
        """Refuse a judge that has other classes, or is asked about something else."""
        if self.judge is None:
            return
        judge = self.open_model(self.judge)
        if bound.classes is None:
            raise ParameterError(
                f"{judge.id} can judge images of a class, and {bound} is none: leave judge unset",
                parameter="judge",
            )
        if judge.num_classes != model.num_classes or judge.input_size[0] != model.input_size[0]:
            raise ParameterError(
                f"the judge {judge.id} has {judge.num_classes} classes and {judge.input_size[0]} "
                f"channels, {model.id} has {model.num_classes} and {model.input_size[0]}: take a "
                "judge of the same classes",
                parameter="judge",
            )
        ours, theirs = model.classes, judge.classes
        index = None if ours is None or theirs is None else ours.differs_at(theirs)
        if index is not None:
            raise ParameterError(
                f"class {index} of the judge {judge.id} is {judge.class_name(index)!r}, and of "
                f"{model.id} {model.class_name(index)!r}: take a judge of the same classes",
                parameter="judge",
            )

    def _note_transfer(self, judge: HookedModel, images: Tensor, each: Objective) -> None:
        """Note the judge's rank and probability of each image's class."""
        classes = each.classes
        assert classes is not None, "checked before the images were made"
        ranks, probabilities = [], []
        for row, image in enumerate(images.split(1)):
            seen = functional.interpolate(
                image.to(judge.device), judge.input_size[1:], mode="bicubic", antialias=True
            ).clamp(0, 1)
            with torch.no_grad(), image_rows([row]):
                logits = judge(seen)[0]
            target = classes[row if len(classes) > 1 else 0]
            ranks.append(int((logits > logits[target]).sum()) + 1)
            probabilities.append(float(logits.softmax(0)[target]))
        self.note("transfer_rank", ranks)
        self.note("transfer_probability", probabilities)

    def _final_scores(self, model: HookedModel, images: Tensor, bound: Objective) -> Tensor:
        step = chunk_size(model, images, None)
        parts = []
        for row in range(0, len(images), step):
            part = images[row : row + step].to(model.device)
            with torch.no_grad(), image_rows(range(row, row + len(part))):
                parts.append(self.score(model, part, bound.rows(row, row + step)))
        scores = checked_numbers(self, torch.cat(parts), "final scores", (len(images),))
        return scores.float().cpu()

    def _opacity(self, importance: Tensor | None, images: Tensor) -> Tensor | None:
        """Return the importance of pixels, divided by its 90th percentile and clipped."""
        if importance is None:
            return None
        shape = (len(images), *images.shape[2:])
        values = checked_numbers(self, importance, "importance", shape).float().cpu()
        limits = torch.stack([torch.quantile(one.flatten(), 0.9) for one in values])
        return (values / limits[:, None, None].clamp(min=1e-30)).clamp(0, 1)

    def _targets(self, outcome: SynthesisOutcome, count: int, bound: Objective) -> Tensor:
        """Return the target of each image."""
        known = bound.num_targets or 1
        targets = self._numbered(outcome.targets, "targets", count, known)
        if targets is not None:
            return targets
        if count != known > 1:
            did = f"returned {count} images for {known} targets"
            wanted = "one image of each, or the target of each image in targets"
            raise technique_error(self, did, expected=wanted)
        return torch.arange(known) if known > 1 else torch.zeros(count, dtype=torch.long)

    def _numbered(
        self, value: Tensor | None, what: str, count: int, end: int | None
    ) -> Tensor | None:
        """Return whole numbers `(B,)` from 0, below `end`, as they were returned."""
        if value is None:
            return None
        numbers = checked_numbers(self, value, what, (count,)).cpu()
        whole = not numbers.is_floating_point() and numbers.dtype != torch.bool
        if not whole or bool((numbers < 0).any()) or (end is not None and numbers.max() >= end):
            wanted = "whole numbers from 0" + ("" if end is None else f" to {end - 1}")
            raise technique_error(self, f"returned {what} {numbers.tolist()}", expected=wanted)
        return numbers.long()


def _classes(bound: Objective, count: int) -> Tensor | None:
    """Return the class of each image, if the objective is one."""
    classes = bound.classes
    if classes is None:
        return None
    return torch.tensor(classes if len(classes) > 1 else [*classes] * count)


def _initial(model: HookedModel, init: Any, *, own_size: bool) -> Tensor:
    """Return images to start from, `(B, C, H, W)`: as the model takes them, or at their size."""
    if not own_size or isinstance(init, Tensor | list | tuple):
        return model.images(init).detach()
    picture = pictures_of(None, init)
    if model.input_size[0] == 1:
        picture = (picture * picture.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    return model.check_images(picture)
