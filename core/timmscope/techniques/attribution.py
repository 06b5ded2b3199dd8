"""Attribution: which pixels an objective depends on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.techniques.base import Technique, require_rgb
from timmscope.techniques.result import Result
from timmscope.techniques.session import chunk_size, session, usable
from timmscope_registry import TechniqueError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Attribution(Result):
    """Maps of how much each place of an image matters to an objective.

    Attributes:
        maps: `(B, H, W)` float32 at image size (bilinear, corners not aligned), unnormalised.
        raw: `(B, h, w)` float32 as computed, at the layer's grid.
        images: `(B, 3, H, W)` in [0, 1], what the model saw.
        scores: `(B,)` value of the objective.
        objective: its text, bound: `class:282|504` where images have targets of their own.
        labels: what each image's objective is called, for titles.
    """

    maps: Tensor
    raw: Tensor
    images: Tensor
    scores: Tensor
    objective: str
    labels: list[str]

    def normalised(self) -> Tensor:
        """`maps` with each image's own range stretched to [0, 1]; a constant map becomes 0."""
        low, high = self.maps.amin((1, 2), keepdim=True), self.maps.amax((1, 2), keepdim=True)
        span = high - low
        return torch.where(span > 0, (self.maps - low) / span, torch.zeros_like(self.maps))

    def figure(self) -> Figure:
        """A row an image: the image, the map with its colour bar, the overlay."""
        from timmscope.figures import attribution_figure

        title = self.provenance.technique.rpartition(":")[2]
        return attribution_figure(self.images, self.maps, self.labels, title=title)

    def pictures(self) -> dict[str, Any]:
        """The overlay of each image."""
        from timmscope.figures import overlay

        return {
            f"overlay-{row:03d}": overlay(image, heat)
            for row, (image, heat) in enumerate(zip(self.images, self.maps, strict=True))
        }

    def summary(self) -> list[dict[str, Any]]:
        """An image a row: objective, score, and where the map peaks in pixels."""
        rows = []
        for row, heat in enumerate(self.maps):
            y, x = divmod(int(heat.argmax()), heat.shape[1])
            rows.append(
                {
                    "image": row,
                    "objective": self.labels[row],
                    "score": float(self.scores[row]),
                    "peak_yx_px": [y, x],
                    "max": float(heat.max()),
                    "min": float(heat.min()),
                }
            )
        return rows


class AttributionTechnique(Technique):
    """Base of attributions; a subclass writes `attribute`."""

    family: ClassVar[str] = "attribution"

    @abstractmethod
    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Maps `(B, h, w)` at any grid; `objective` is bound to the model and these images.

        Called with chunks of the batch; an image's map must not depend on its neighbours. A
        technique that has the objective's values `(B,)` at hand returns `(maps, scores)`, which
        saves a forward.
        """

    def why_zero(self) -> str:
        """What to tell people whose map came out zero everywhere, and what to do about it."""
        return "the objective does not depend on what is mapped; choose an earlier layer"

    @final
    def __call__(
        self,
        model: HookedModel,
        images: Any,
        objective: Objective | str | int = "top",
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Attribution:
        """Attribute an objective to the pixels of images.

        Args:
            model: the model to explain.
            images: `(B, 3, H, W)` in [0, 1], or anything that `model.images` takes.
            objective: an objective, its text or a class index; `top` is the model's prediction.
            seed: of techniques that draw random numbers.
            batch_size: images a pass; by default what fits the memory budget.

        Raises:
            ImageError: the images are not RGB in [0, 1].
            ObjectiveError: the objective does not fit the model.
            TechniqueError: a map is all zero or not finite, so it explains nothing.
            ParameterError: `batch_size` is less than 1.
        """
        require_rgb(model)
        batch = model.images(images).detach()
        bound = as_objective(objective).bind(model, batch)
        step = chunk_size(model, batch, batch_size)
        raws: list[Tensor] = []
        scores: list[Tensor] = []
        starts = range(0, len(batch), step)
        for start in self.track(starts, self.title(), total=len(starts)):
            stop = min(start + step, len(batch))
            part, goal = batch[start:stop], bound.rows(start, stop)
            with session(seed, range(start, stop)):
                outcome = self.attribute(model, usable(part), goal)
            raw, score = outcome if isinstance(outcome, tuple) else (outcome, None)
            raws.append(self._checked(raw, part, start))
            if score is None:
                with torch.no_grad():
                    score = model.score(part, goal)
            scores.append(score.detach().float().cpu())
        raw = torch.cat(raws)
        return Attribution(
            provenance=self._provenance(model, seed, objective=str(bound)),
            maps=resize_maps(raw, (batch.shape[2], batch.shape[3])),
            raw=raw,
            images=batch.cpu(),
            scores=torch.cat(scores),
            objective=str(bound),
            labels=describe(model, bound, len(batch)),
        )

    def _checked(self, raw: Tensor, images: Tensor, start: int) -> Tensor:
        maps = raw.detach().float().cpu()
        if maps.ndim != 3 or len(maps) != len(images):
            raise TechniqueError(
                f"{self.title()} returned maps of shape {tuple(raw.shape)} for {len(images)} "
                "images; expected (B, h, w)"
            )
        if not bool(torch.isfinite(maps).all()):
            raise TechniqueError(f"{self.title()} returned NaN or infinite values")
        empty = (maps.abs().amax((1, 2)) == 0).nonzero().flatten().tolist()
        if empty:
            rows = ", ".join(str(start + row) for row in empty[:5])
            raise TechniqueError(
                f"the map of {self.title()} is zero everywhere for image {rows}: {self.why_zero()}"
            )
        return maps


def resize_maps(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(B, h, w)` at image size: bilinear, `align_corners=False`."""
    if tuple(raw.shape[1:]) == size:
        return raw
    return functional.interpolate(raw[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def describe(model: HookedModel, bound: Objective, batch: int) -> list[str]:
    """What an objective is called for each image: the class's name where it is a class."""
    labels = []
    for row in range(batch):
        text = str(bound.rows(row, row + 1))
        index = text.removeprefix("class:")
        labels.append(model.class_name(int(index)) if text != index and index.isdecimal() else text)
    return labels
