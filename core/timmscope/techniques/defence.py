"""Base class and result of defences: changes of the images that a model gets.

A call shows what a defence does to images and to a model's predictions. Every other technique runs
behind defences if its model has some, as by `model.defended(["jpeg"])` or `--defence jpeg`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from timmscope.models import Defence
from timmscope.models.defence import around_networks, defended_images
from timmscope.results.result import Result
from timmscope.techniques import arguments
from timmscope.techniques.base import require_model
from timmscope.techniques.class_indices import class_indices
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.over.base import PerImageTechnique
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, own_numbers, session
from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from timmscope.models import HookedModel


@dataclass(frozen=True, kw_only=True)
class Defended(Result):
    """Images behind a defence, with a model's predictions without it and behind it.

    Attributes:
        images: `(B, C, H, W)` in [0, 1], what the model gets behind the defence.
        originals: `(B, C, H, W)` in [0, 1].
        labels: `(B,)` true classes; None if they are unknown.
        before: `(B,)` predictions without the defence.
        after: `(B,)` predictions behind it.
        confidence_before: `(B,)` softmax probability of `before`.
        confidence_after: `(B,)` softmax probability of `after`.
        l2: `(B,)` Euclidean norm of the change, pixel units [0, 1].
        linf: `(B,)` largest change of a value, pixel units [0, 1].
        class_names: for each image, names of the prediction before and of that after.
        label_names: for each image, the name of its label.
    """

    images: Tensor
    originals: Tensor
    labels: Tensor | None
    before: Tensor
    after: Tensor
    confidence_before: Tensor
    confidence_after: Tensor
    l2: Tensor
    linf: Tensor
    class_names: list[list[str]]
    label_names: list[str] = field(default_factory=list)

    sheet_pictures: ClassVar[str] = "defended-"

    @property
    def agreement(self) -> float:
        """Share of images with the same prediction without the defence and behind it."""
        return float((self.before == self.after).float().mean())

    @property
    def accuracy_before(self) -> float | None:
        """Share of images classified as labelled without the defence; None without labels."""
        return None if self.labels is None else _share(self.before == self.labels)

    @property
    def accuracy_after(self) -> float | None:
        """Share of images classified as labelled behind the defence; None without labels."""
        return None if self.labels is None else _share(self.after == self.labels)

    def figure(self) -> Figure:
        """Draw one row per image: original, magnified change, defended image."""
        from timmscope.techniques.defence_figure import defence_figure

        return defence_figure(self)

    def pictures(self) -> dict[str, Any]:
        """Return the images behind the defence."""
        return {f"defended-{row:03d}": image for row, image in enumerate(self.images)}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image: predictions, the size of the change and notes."""
        rows = [
            {
                "image": row,
                **({"label": self.label_names[row]} if self.label_names else {}),
                "before": self.class_names[row][0],
                "confidence_before": float(self.confidence_before[row]),
                "after": self.class_names[row][1],
                "confidence_after": float(self.confidence_after[row]),
                "l2": float(self.l2[row]),
                "linf": float(self.linf[row]),
            }
            for row in range(len(self.images))
        ]
        return self.with_notes(rows)


def _share(right: Tensor) -> float:
    return float(right.float().mean())


class DefenceTechnique(PerImageTechnique, Defence):
    """Base class of defences; a subclass implements `transform`, and says how it is passed back.

    The class variables `backward` (`exact`, `identity` or `none`) and `random` are promises, which
    the conformance suite checks.
    """

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.Images,
        labels: arguments.Classes = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Defended:
        """Show what the defence does to images and to a model's predictions.

        Args:
            model: the model; if it is defended, this defence comes after those that it has.
            images: `(B, C, H, W)` in [0, 1], or anything that `model.images` takes.
            labels: true class, by name or index; once, or once for each image.
            seed: seed of a random defence.
            batch_size: images per pass; by default as many as fit the memory budget.

        Raises:
            ImageError: the images are not in [0, 1].
            ObjectiveError: the model has no class of that name or index, or has no classes.
            ParameterError: `batch_size` is less than 1.
            TechniqueError: the defence did not return images of the same shape in [0, 1].
        """
        require_model(model)
        with opening([self], model, seed) as opened, own_numbers(model, seed):
            result = self._compared(model, images, labels, seed, batch_size)
        return opened.reported(result)

    def _compared(
        self,
        model: HookedModel,
        images: Any,
        labels: arguments.Classes,
        seed: int,
        batch_size: int | None,
    ) -> Defended:
        if not model.num_classes:
            raise ObjectiveError(
                f"{model.id} has no classes, so there are no predictions to compare: run another "
                "technique on model.defended([…]), or with --defence"
            )
        batch = model.images(images).detach()
        step = chunk_size(model, batch, batch_size)
        truth = None if labels is None else class_indices(model, labels, batch, "labels")
        facts = self._provenance(model, seed, labels=None if truth is None else truth.tolist())
        changed, before, after = [], [], []
        chain = (*model.defences, self)
        bare = model.defended(())
        notes = Notes(self, len(batch))
        starts = range(0, len(batch), step)
        for start in self.track(starts, self.title(), total=len(starts)):
            part = batch[start : start + step]
            rows = range(start, start + len(part))
            with (
                notes.of(rows),
                session(seed, rows),
                restore_state(self, model, facts.weights_sha256),
                torch.no_grad(),
            ):
                seen = defended_images(chain, part)
                changed.append(seen.float().cpu())
                before.append(model(part).float().cpu())
                with around_networks(chain):
                    after.append(bare(seen).float().cpu())
        defended, first, second = torch.cat(changed), torch.cat(before), torch.cat(after)
        originals = batch.float().cpu()
        delta = (defended - originals).flatten(1)
        predicted = [first.argmax(1), second.argmax(1)]
        return Defended(
            provenance=facts,
            notes=notes.joined(),
            images=defended.clamp(0, 1),
            originals=originals,
            labels=None if truth is None else truth.cpu(),
            before=predicted[0],
            after=predicted[1],
            confidence_before=first.softmax(1).amax(1),
            confidence_after=second.softmax(1).amax(1),
            l2=delta.norm(dim=1),
            linf=delta.abs().amax(1),
            class_names=[
                [model.class_name(int(index)) for index in row]
                for row in zip(*predicted, strict=True)
            ],
            label_names=[
                model.class_name(int(index)) for index in (() if truth is None else truth)
            ],
        )
