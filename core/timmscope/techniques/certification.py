"""Base class and result of certifications: radii within which a prediction is proved not to change.

A certificate is about a norm and a size of change, and it counts only where the prediction is the
label. The base class compares the two, so that no technique reports a radius for a wrong answer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope.models import HookedModel
from timmscope.models.pass_counter import counting_only
from timmscope.parameters import technique_error
from timmscope.results.csv_text import csv_text
from timmscope.results.result import Result
from timmscope.techniques import arguments
from timmscope.techniques.attribution import image_names
from timmscope.techniques.base import require_model
from timmscope.techniques.class_indices import class_indices
from timmscope.techniques.expectation import batch_logits
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.over.base import PerImageTechnique
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, own_numbers, session
from timmscope.techniques.validate_output import checked_numbers, checked_type
from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = ("l0", "l1", "l2", "linf")
"""Norms of a change of an image."""
ABSTAINS = -1
"""Prediction of a certifier that gives none."""


@dataclass(frozen=True, kw_only=True)
class CertificationOutcome:
    """What `CertificationTechnique.certify` returns.

    Attributes:
        predictions: `(B,)` int64 predicted classes, -1 where the technique abstains.
        radius: `(B,)` radius in the technique's norm, pixel units [0, 1], within which the
            prediction is proved; its value does not matter where the technique abstains.
        global_bound: an upper bound that holds for all images, such as a Lipschitz constant of the
            logits; None if there is none.
    """

    predictions: Tensor
    radius: Tensor
    global_bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class Certificates(Result):
    """Radii within which no change of an image changes its right prediction.

    Attributes:
        images: `(B, C, H, W)` in [0, 1].
        labels: `(B,)` true classes.
        clean: `(B,)` the model's own predictions on `images`.
        predictions: `(B,)` certified predictions, -1 where the technique abstains.
        radius: `(B,)` float64, pixel units [0, 1] in `norm`; 0 where the prediction is wrong or the
            technique abstains. If only some radii were tried, it is the largest that holds.
        norm: norm of the radii: `l0`, `l1`, `l2` or `linf`.
        global_bound: an upper bound that holds for all images, such as a Lipschitz constant of the
            logits; None if the technique has none.
        forwards: `(B,)` forward passes per image, without the one that gives `clean`.
        class_names: for each image, names of its label, its clean and its certified prediction,
            which is empty where the technique abstains.
        names: short names of the image files; empty for images that are no files.
    """

    images: Tensor
    labels: Tensor
    clean: Tensor
    predictions: Tensor
    radius: Tensor
    norm: str
    global_bound: float | None
    forwards: Tensor
    class_names: list[list[str]]
    names: list[str] = field(default_factory=list)

    @property
    def abstained(self) -> Tensor:
        """`(B,)` whether the technique gives no prediction."""
        return self.predictions == ABSTAINS

    @property
    def correct(self) -> Tensor:
        """`(B,)` whether the certified prediction is the label."""
        return self.predictions == self.labels

    @property
    def clean_accuracy(self) -> float:
        """Share of images that the model itself classifies as labelled."""
        return float((self.clean == self.labels).double().mean())

    @property
    def mean_radius(self) -> float:
        """Mean of `radius` over all images, with 0 for those that are wrong or abstained."""
        return float(self.radius.mean())

    def certified_accuracy(self, radius: float) -> float:
        """Share of images that are right, and proved to stay so within a radius (inclusive)."""
        return float((self.correct & (self.radius >= radius)).double().mean())

    def curve(self) -> tuple[Tensor, Tensor]:
        """Return the certified accuracy over the radius, a step function, as two float64 tensors.

        Returns:
            Radii `(n,)`, from 0 upwards, and the accuracy at each `(n,)`. The accuracy between two
            radii is that at the larger one, and beyond the last it is 0.
        """
        radii = torch.cat([self.radius.new_zeros(1), self.radius]).unique()
        return radii, self.radius.new_tensor([self.certified_accuracy(r) for r in radii.tolist()])

    def figure(self) -> Figure:
        """Draw the certified accuracy over the radius, and the images with their radii."""
        from timmscope.techniques.certification_figure import certification_figure

        return certification_figure(self)

    def pictures(self) -> dict[str, Any]:
        """Return the curve alone."""
        from timmscope.techniques.certification_figure import curve_figure

        return {"curve": lambda: curve_figure(self)}

    def documents(self) -> dict[str, str]:
        """Return `curve.csv`: the certified accuracy at each radius at which it falls."""
        radii, accuracy = (values.tolist() for values in self.curve())
        return {
            "curve.csv": csv_text(
                [
                    {f"radius_{self.norm}": radius, "certified_accuracy": share}
                    for radius, share in zip(radii, accuracy, strict=True)
                ]
            )
        }

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image: label, predictions, radius, cost and notes."""
        rows: list[dict[str, Any]] = [
            {
                "image": row,
                **({"file": self.names[row]} if self.names else {}),
                "label": label,
                "model": clean,
                "certified": certified or None,
                "abstained": bool(self.abstained[row]),
                "correct": bool(self.correct[row]),
                f"radius_{self.norm}": float(self.radius[row]),
                "forwards": int(self.forwards[row]),
            }
            for row, (label, clean, certified) in enumerate(self.class_names)
        ]
        return self.with_notes(rows)


class CertificationTechnique(PerImageTechnique):
    """Base class of certifications; a subclass implements `certify` and has a `norm`.

    The norm of its radii, `l0`, `l1`, `l2` or `linf`, is a class variable, as in `norm = "l2"`, or
    a field if the user may choose it.
    """

    family: ClassVar[str] = "defence"
    base: ClassVar[str] = "certification"
    over_keeps: ClassVar[str] = ""
    norm: ClassVar[str]

    @abstractmethod
    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        """Return a prediction and a radius for each image.

        This is called with chunks of the batch, so an image's certificate must not depend on other
        images. Draw noise from `image_generators(len(images))`. Run forwards of a part of the batch
        inside `self.only(rows)`, so that passes are counted for the right images.

        Args:
            model: the model to certify.
            images: `(B, C, H, W)` in [0, 1].
            labels: `(B,)` true classes, for techniques that prove these instead of the prediction.
        """

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Count forwards inside the context for these rows `(n,)` (int64) of `certify`'s batch.

        Random defences draw for these images.
        """
        with counting_only(rows), image_rows(rows.tolist()):
            yield

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.Images,
        labels: arguments.Classes = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Certificates:
        """Certify the predictions for images.

        Args:
            model: the model to certify.
            images: `(B, C, H, W)` in [0, 1], or anything that `model.images` takes.
            labels: true class, by name or index; once, or once for each image; by default the
                model's own prediction.
            seed: seed of random numbers.
            batch_size: images per pass; by default as many as fit the memory budget.

        Raises:
            ImageError: the images do not have the model's channels, or are not in [0, 1].
            ObjectiveError: the model has no class of that name or index, or fewer than two.
            ParameterError: `batch_size` is less than 1.
            TechniqueError: the technique names no norm, or returned something else than a class and
                a radius for each image.
        """
        require_model(model)
        with opening([self], model, seed) as opened, own_numbers(model, seed):
            result = self._certified(model, images, labels, seed, batch_size)
        return opened.reported(result)

    def _certified(
        self,
        model: HookedModel,
        images: Any,
        labels: arguments.Classes,
        seed: int,
        batch_size: int | None,
    ) -> Certificates:
        norm: object = getattr(self, "norm", None)
        if norm not in NORMS:
            wanted = f"one of {', '.join(NORMS)}, as in norm = 'l2', because a radius is of a norm"
            did = "has no norm" if norm is None else f"has the norm {norm!r}"
            raise technique_error(self, did, expected=wanted)
        if model.num_classes < 2:
            raise ObjectiveError(
                f"{model.id} has {'one class' if model.num_classes else 'no classes'}, so no "
                "prediction could change: a certificate needs a classifier"
            )
        batch = model.images(images).detach()
        step = chunk_size(model, batch, batch_size)
        with torch.no_grad():
            clean = batch_logits(model, batch, step).argmax(1)
        truth = clean if labels is None else class_indices(model, labels, batch, "labels")
        facts = self._provenance(model, seed, labels=truth.tolist())
        outcomes, forwards = [], []
        notes = Notes(self, len(batch))
        starts = range(0, len(batch), step)
        for start in self.track(starts, self.title(), total=len(starts)):
            part, label = batch[start : start + step], truth[start : start + step]
            with (
                notes.of(range(start, start + len(part))),
                session(seed, range(start, start + len(part)), batch_size),
                restore_state(self, model, facts.weights_sha256),
                model.count_passes(len(part)) as counter,
            ):
                outcome = self.certify(model, part.clone(), label.clone())
            outcomes.append(self._checked(outcome, len(part), model.num_classes))
            forwards.append(counter.forwards)
        predictions = torch.cat([each.predictions for each in outcomes])
        radius, truth = torch.cat([each.radius for each in outcomes]), truth.cpu()
        bounds = [each.global_bound for each in outcomes if each.global_bound is not None]
        rows = zip(truth.tolist(), clean.tolist(), predictions.tolist(), strict=True)
        return Certificates(
            provenance=facts,
            notes=notes.joined(),
            images=batch.cpu(),
            labels=truth,
            clean=clean.cpu(),
            predictions=predictions,
            radius=torch.where(predictions == truth, radius, torch.zeros_like(radius)),
            norm=str(norm),
            global_bound=max(bounds, default=None),
            forwards=torch.cat(forwards),
            class_names=[
                ["" if index == ABSTAINS else model.class_name(index) for index in row]
                for row in rows
            ],
            names=image_names(images),
        )

    def _checked(self, outcome: object, count: int, classes: int) -> CertificationOutcome:
        """Return what the method returned, on the CPU, with radii in float64.

        Raises:
            TechniqueError: it is something else than a class and a radius for each image.
        """
        outcome = checked_type(self, outcome, CertificationOutcome)
        predictions = checked_numbers(self, outcome.predictions, "predictions", (count,)).cpu()
        whole = not predictions.is_floating_point() and predictions.dtype is not torch.bool
        if not whole or not bool(((predictions >= ABSTAINS) & (predictions < classes)).all()):
            wanted = f"whole numbers from 0 to {classes - 1}, or -1 to abstain"
            did = f"returned predictions such as {predictions.tolist()[:4]}"
            raise technique_error(self, did, expected=wanted)
        radius = checked_numbers(self, outcome.radius, "radii", (count,)).cpu().double()
        if bool((radius < 0).any()):
            did = f"returned a radius of {float(radius.min()):.3g}"
            raise technique_error(self, did, expected="0 or more")
        bound: object = outcome.global_bound
        if bound is not None and not (isinstance(bound, int | float) and math.isfinite(bound)):
            wanted = "a finite number or None"
            raise technique_error(self, f"returned the global bound {bound!r}", expected=wanted)
        return CertificationOutcome(
            predictions=predictions.long(),
            radius=radius,
            global_bound=None if outcome.global_bound is None else float(outcome.global_bound),
        )
