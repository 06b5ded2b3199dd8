"""Base class and result of attributions, which map how much each pixel matters to an objective."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from timmscope.draws import image_rows
from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.objectives.class_objectives import Top
from timmscope.parameters import origin_of, technique_error
from timmscope.progress import track
from timmscope.results.result import Provenance, Result
from timmscope.short_names import short_names
from timmscope.techniques import arguments
from timmscope.techniques.base import require_model
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.over.base import PerImageTechnique
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import chunk_size, own_numbers, session
from timmscope.techniques.shared_gradients import sharing
from timmscope.techniques.validate_output import checked_numbers
from timmscope_registry import TechniqueError
from timmscope_registry.plugin_faults import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Outcome = Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""Return value of `attribute`: maps, then scores, then pixels per colour channel."""


@dataclass(frozen=True, kw_only=True)
class Attribution(Result):
    """Maps of how much each position of an image matters to an objective.

    Maps and scores are float32, or float64 if the model is.

    Attributes:
        maps: `(B, H, W)` at image size (bilinear, corners not aligned), unnormalised.
        raw: `(B, h, w)` as computed, at the layer's grid.
        images: `(B, 3, H, W)` in [0, 1], as the model sees them.
        scores: `(B,)` value of the objective.
        objective: text of the bound objective: `class:282|504` if each image has its own target.
        labels: name of each image's objective, for titles.
        signed: whether values below zero are evidence against the objective; such maps are drawn
            in two colours around zero.
        pixels: `(B, 3, H, W)` values per colour channel, from which `raw` is computed; None for
            techniques without them.
        names: short names of the image files; empty for images that are no files.
        probabilities: `(B,)` softmax probability of each image's class if the objective is `top`;
            else None.
    """

    maps: Tensor
    raw: Tensor
    images: Tensor
    scores: Tensor
    objective: str
    labels: list[str]
    signed: bool = False
    pixels: Tensor | None = None
    names: list[str] = field(default_factory=list)
    probabilities: Tensor | None = None

    sheet_pictures: ClassVar[str] = "overlay-"

    def normalised(self) -> Tensor:
        """Return `maps` scaled to [0, 1] per image; a constant map becomes 0."""
        low, high = self.maps.amin((1, 2), keepdim=True), self.maps.amax((1, 2), keepdim=True)
        span = high - low
        return torch.where(span > 0, (self.maps - low) / span, torch.zeros_like(self.maps))

    def figure(self) -> Figure:
        """Draw one row per image: image, map with colour bar, overlay, and `pixels` if any."""
        from .attribution_figure import attribution_figure

        return attribution_figure(
            self.images,
            self.maps,
            self._captions(),
            title=self._title(),
            signed=self.signed,
            pixels=self.pixels,
        )

    def _captions(self) -> list[str]:
        """Return a line for each image: file, objective, its probability or value, notes."""
        captions = image_captions(self.labels, self.scores, self.names, self.probabilities)
        notes = [self.note_text(row) for row in range(len(captions))]
        return [
            f"{caption}, {note}" if note else caption
            for caption, note in zip(captions, notes, strict=True)
        ]

    def _probability(self, row: int) -> dict[str, float]:
        known = self.probabilities
        return {} if known is None else {"probability": float(known[row])}

    def _title(self) -> str:
        """Return the technique's name with its layer and its baseline, if it has them."""
        name = self.provenance.technique.rpartition(":")[2]
        layer, baseline = (self.provenance.parameters.get(key) for key in ("layer", "baseline"))
        name += f" at {layer}" if isinstance(layer, str) else ""
        return name + (f", baseline {baseline}" if isinstance(baseline, str) else "")

    def pictures(self) -> dict[str, Any]:
        """Return each image's map in colours, its overlay, and `pixels` in colours if any."""
        from timmscope.drawing import HeatScale, around_grey, colourise, overlay

        pictures: dict[str, Any] = {}
        for row, (image, heat) in enumerate(zip(self.images, self.maps, strict=True)):
            scale = HeatScale.of(heat, signed=self.signed)
            pictures[f"map-{row:03d}"] = colourise(heat, scale)
            pictures[f"overlay-{row:03d}"] = overlay(image, heat, signed=self.signed)
            if self.pixels is not None:
                pictures[f"pixels-{row:03d}"] = around_grey(self.pixels[row])
        return pictures

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per image: objective, score, the pixel where the map is highest, notes."""
        rows: list[dict[str, Any]] = []
        for row, heat in enumerate(self.maps):
            y, x = divmod(int(heat.argmax()), heat.shape[1])
            rows.append(
                {
                    "image": row,
                    **({"file": self.names[row]} if self.names else {}),
                    "objective": self.labels[row],
                    "score": float(self.scores[row]),
                    **self._probability(row),
                    "peak_yx_px": [y, x],
                    "max": float(heat.max()),
                    "min": float(heat.min()),
                }
            )
        return self.with_notes(rows)


class AttributionTechnique(PerImageTechnique):
    """Base class of attributions; a subclass implements `attribute`."""

    family: ClassVar[str] = "attribution"
    base: ClassVar[str] = "attribution"
    over_keeps: ClassVar[str] = "maps"

    @abstractmethod
    def attribute(self, model: HookedModel, images: Tensor, objective: Objective) -> Outcome:
        """Return maps `(B, h, w)` at any grid; `objective` is bound to the model and the images.

        This is called with chunks of the batch, so an image's map must not depend on other images.
        A technique that also computes the objective's values `(B,)` returns `(maps, scores)`, which
        saves a forward pass. A technique that computes values per colour channel returns
        `(maps, scores, pixels)` with `pixels` `(B, 3, H, W)`.
        """

    def why_zero(self) -> str:
        """Return why a map may be zero everywhere and what to do, for the error message."""
        return "the objective does not depend on what is mapped; choose an earlier layer"

    def is_signed(self) -> bool | None:
        """Return whether maps are signed; None if the sign of the values decides.

        Negative values of a signed map are evidence against the objective.
        """
        return None

    def shared_layers(self, model: HookedModel, objective: Objective) -> tuple[str, ...]:
        """Return the layers that `attribute` passes to `layer_view`; `compare` shares them."""
        return ()

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.Images,
        objective: arguments.Objective = "top",
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Attribution:
        """Attribute an objective to the pixels of images.

        Args:
            model: the model to explain.
            images: `(B, 3, H, W)` in [0, 1], or anything that `model.images` takes.
            objective: what to explain: `tiger cat`, `class:282`, a unit `blocks.4[17]`, or `top`,
                the model's own prediction for each image. In Python also an `Objective` or a class
                index.
            seed: seed of random numbers.
            batch_size: images per pass; by default as many as fit the memory budget.

        Raises:
            ImageError: the images do not have the model's channels, or are not in [0, 1].
            ObjectiveError: the objective does not fit the model.
            TechniqueError: a map is zero everywhere, is not finite, or has the same value in all
                cells of a layer's grid, so it explains nothing.
            ParameterError: `batch_size` is less than 1.
        """
        return attribute_together([self], model, images, objective, seed, batch_size)[0]


def attribute_together(
    techniques: Sequence[AttributionTechnique],
    model: HookedModel,
    images: Any,
    objective: Objective | str | int,
    seed: int,
    batch_size: int | None,
) -> list[Attribution]:
    """Run techniques on the same images and objective; shared values are computed once per chunk.

    Arguments, results and errors are the same as for a call of one technique.
    """
    require_model(model)
    with opening(techniques, model, seed) as opened, own_numbers(model, seed):
        results = _attributed(techniques, model, images, objective, seed, batch_size)
    return [
        opened.reported(result, technique)
        for result, technique in zip(results, techniques, strict=True)
    ]


def _attributed(
    techniques: Sequence[AttributionTechnique],
    model: HookedModel,
    images: Any,
    objective: Objective | str | int,
    seed: int,
    batch_size: int | None,
) -> list[Attribution]:
    batch = model.images(images).detach()
    if model.dtype == torch.float64:
        batch = batch.double()
    whole, model = model, model.for_images(batch)
    bound, probabilities = as_objective(objective), None
    if isinstance(bound, Top):
        bound, probabilities = bound.predictions(model, batch)
        probabilities = _result_values(probabilities, model)
    bound = bound.bind(model, batch)
    step = chunk_size(model, batch, batch_size)
    layers = [name for each in techniques for name in each.shared_layers(model, bound)]
    chunks: list[list[_Chunk]] = [[] for _ in techniques]
    facts = [each._provenance(whole, seed, objective=str(bound)) for each in techniques]
    notes = [Notes(each, len(batch)) for each in techniques]
    starts = range(0, len(batch), step)
    name = techniques[0].title() if len(techniques) == 1 else "comparing"
    for start in track(starts, name, total=len(starts)):
        stop = min(start + step, len(batch))
        part, goal = batch[start:stop], bound.rows(start, stop)
        with sharing(layers):
            for technique, fact, noted, done in zip(techniques, facts, notes, chunks, strict=True):
                with (
                    noted.of(range(start, stop)),
                    session(seed, range(start, stop), batch_size),
                    restore_state(technique, model, fact.weights_sha256),
                ):
                    outcome = technique.attribute(model, part.clone(), goal)
                with image_rows(range(start, stop)):
                    done.append(_check_chunk(technique, model, outcome, part, goal, start))
    labels = objective_labels(model, bound, len(batch))
    shown = _Shown(batch.cpu(), str(bound), labels, image_names(images), probabilities)
    return [
        _build_result(technique, fact, noted.joined(), done, shown)
        for technique, fact, noted, done in zip(techniques, facts, notes, chunks, strict=True)
    ]


@dataclass(frozen=True)
class _Chunk:
    raw: Tensor
    scores: Tensor
    pixels: Tensor | None = None


@dataclass(frozen=True)
class _Shown:
    """What the results of all techniques share; see `Attribution`."""

    images: Tensor
    objective: str
    labels: list[str]
    names: list[str]
    probabilities: Tensor | None


def _build_result(
    technique: AttributionTechnique,
    facts: Provenance,
    notes: dict[str, Any],
    chunks: list[_Chunk],
    shown: _Shown,
) -> Attribution:
    raw = torch.cat([chunk.raw for chunk in chunks])
    signed = technique.is_signed()
    if signed is None:
        signed = bool((raw.amin((1, 2)) < -1e-6 * raw.abs().amax((1, 2))).any())
    pixels = [chunk.pixels for chunk in chunks if chunk.pixels is not None]
    return Attribution(
        provenance=facts,
        notes=notes,
        maps=_resize_maps(raw, (shown.images.shape[2], shown.images.shape[3])),
        raw=raw,
        images=shown.images,
        scores=torch.cat([chunk.scores for chunk in chunks]),
        objective=shown.objective,
        labels=list(shown.labels),
        signed=signed,
        pixels=torch.cat(pixels) if pixels else None,
        names=list(shown.names),
        probabilities=shown.probabilities,
    )


def _check_chunk(
    technique: AttributionTechnique,
    model: HookedModel,
    outcome: Outcome,
    images: Tensor,
    objective: Objective,
    start: int,
) -> _Chunk:
    parts = outcome if isinstance(outcome, tuple) else (outcome,)
    if not 1 <= len(parts) <= 3:
        raise technique_error(
            technique,
            f"returned {len(parts)} tensors",
            expected="maps, (maps, scores) or (maps, scores, pixels)",
        )
    raw = _result_values(
        checked_numbers(technique, parts[0], "maps", (len(images), "h", "w")), model
    )
    empty = (raw.abs().amax((1, 2)) == 0).nonzero().flatten().tolist()
    if empty:
        rows = [start + row for row in empty]
        raise _constant_map_error(technique, "zero", rows, technique.why_zero())
    constant = _is_constant(raw).nonzero().flatten().tolist()
    if constant and raw.shape[1:] != images.shape[2:]:  # over a layer's grid
        rows = [start + row for row in constant]
        why = _why_constant(raw, images[constant[0]])
        raise _constant_map_error(technique, "the same", rows, why)
    if len(parts) > 1:
        scores = checked_numbers(technique, parts[1], "scores", (len(images),))
    else:
        with torch.no_grad():
            scores = model.score(images, objective)
    if len(parts) < 3:
        return _Chunk(raw, _result_values(scores, model))
    pixels = checked_numbers(technique, parts[2], "pixels", (len(images), *images.shape[1:]))
    return _Chunk(raw, _result_values(scores, model), _result_values(pixels, model))


def _constant_map_error(
    technique: AttributionTechnique, value: str, images: list[int], why: str
) -> TechniqueError:
    rows = ", ".join(map(str, images[:5]))
    name = described(origin_of(technique))
    return TechniqueError(f"the map of {name} is {value} everywhere for image {rows}: {why}")


def _is_constant(maps: Tensor) -> Tensor:
    """Whether each map `(B, h, w)` has one value, except for rounding, `(B,)`."""
    span = maps.amax((1, 2)) - maps.amin((1, 2))
    return span <= 16 * torch.finfo(maps.dtype).eps * maps.abs().amax((1, 2))


def _why_constant(raw: Tensor, image: Tensor) -> str:
    if raw[0].numel() == 1:
        return "it has one cell; choose an earlier layer, or give larger images"
    if bool(_is_constant(image).all()):
        return "the image has a single colour, so no position differs from another"
    return "all cells of the layer have the same value; choose an earlier layer"


def _result_values(values: Tensor, model: HookedModel) -> Tensor:
    """Return values as results hold them: on the CPU, float32, or float64 if the model is."""
    wanted = torch.float64 if model.dtype == torch.float64 else torch.float32
    return values.detach().to("cpu", wanted)


def _resize_maps(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps `(B, h, w)` to image size: bilinear, `align_corners=False`."""
    if tuple(raw.shape[1:]) == size:
        return raw
    return functional.interpolate(raw[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def image_names(images: Any) -> list[str]:
    """Return short names of images, as passed to a technique; empty if one is no file."""
    items = list(images) if isinstance(images, list | tuple) else [images]
    if not all(isinstance(item, str | PathLike) for item in items):
        return []
    return short_names([str(item) for item in items])


def image_captions(
    labels: Sequence[str], scores: Tensor, names: Sequence[str], probabilities: Tensor | None
) -> list[str]:
    """Return a line for each image: its file, what is explained, and its probability or value."""
    from timmscope.drawing.style import format_number, format_share

    if probabilities is None:
        values = [format_number(score) for score in scores.tolist()]
    else:
        values = [format_share(share) for share in probabilities.tolist()]
    captions = [f"{label} {value}" for label, value in zip(labels, values, strict=True)]
    if not names:
        return captions
    return [f"{name}: {caption}" for name, caption in zip(names, captions, strict=True)]


_CLASS = re.compile(r"(?:(?P<of>p|logp)\()?class:(?P<index>\d+)\)?")


def objective_labels(model: HookedModel, bound: Objective, batch: int) -> list[str]:
    """Return the name of an objective for each image: for a class, `p` or `logp`, with its name."""
    labels = []
    for row in range(batch):
        label = bound.rows(row, row + 1).label
        named = _CLASS.fullmatch(label)
        if named is not None:
            name = model.class_name(int(named["index"]))
            label = f"{named['of']}({name})" if named["of"] else name
        labels.append(label)
    return labels
