"""`evaluate` measures explanations of many images with several metrics, and can be resumed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.evaluation.metrics import BY_NAME, default_metrics
from timmscope.evaluation.pointing import Box, Boxes, PointingGame
from timmscope.evaluation.randomisation import CascadingRandomisation
from timmscope.evaluation.result import Evaluation, summarise
from timmscope.evaluation.steps import Steps, complete
from timmscope.images import Images
from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.results.result import Provenance
from timmscope.store.records import Journal, Record
from timmscope.techniques.attribution import AttributionTechnique
from timmscope.techniques.base import Technique, require_model
from timmscope.techniques.image_set import ImageSet, SetImage
from timmscope.techniques.lookup import attribution, unique_names
from timmscope.techniques.opening import opening
from timmscope.techniques.session import own_numbers, session
from timmscope_registry import (
    ImageError,
    ParameterError,
    TechniqueError,
    did_you_mean,
)

Techniques = Sequence[str | AttributionTechnique] | Mapping[str, AttributionTechnique]


def evaluate(
    model: HookedModel,
    images: Images | Tensor,
    techniques: Techniques,
    *,
    objective: Objective | str | int = "top",
    metrics: Sequence[str | Metric] | None = None,
    boxes: str | Path | Mapping[str, Sequence[Box]] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Evaluation:
    """Explain images by several techniques and measure every map with several metrics.

    Args:
        model: the model to explain.
        images: a folder, list, array or tar (`timmscope.open_images`), or `(B, 3, H, W)`.
        techniques: techniques, texts of techniques (`grad-cam`, `occlusion patch_px=56`), or a
            mapping from names in the result to techniques.
        objective: what to explain; `top` is the model's prediction for each image.
        metrics: metrics or their names; by default insertion, deletion and sensitivity-n,
            randomisation if the model has weights, and the pointing game if there are boxes.
        boxes: boxes of the objects, for the pointing game: a CSV file with the columns path, left,
            upper, right and lower in pixels of the image file, or a mapping from names to boxes.
        out: a folder for the records. If an evaluation was killed, the same call with the same
            folder resumes it, with the same result.
        seed: seed of random numbers.
        batch_size: images per forward; by default as many as fit into memory.

    Returns:
        Values of every map, their means with confidence intervals, and the mean curves.

    Raises:
        StoreMismatch: `out` holds an evaluation with other settings.
        UnsupportedModel, LayerNotFound: a technique does not fit the model.
        ObjectiveError: the objective does not fit the model.
        ParameterError: a name is unknown, or a metric lacks what it needs.
        ImageError: no image can be read.
        TechniqueError: no technique has a map of any image.
        StoreError: `out` is not a folder, or holds other files.
        StoreCorrupted: the records in `out` were damaged or edited.
    """
    require_model(model)
    chosen = _techniques(techniques)
    measures = _metrics(metrics, boxes is not None, model)
    box_table = None if boxes is None else Boxes(boxes)
    subjects = ImageSet(model, images)
    if box_table is not None and not any(box_table.of(name) for name in subjects.names):
        raise ParameterError(
            f"no image has a box: boxes are of {box_table.example}, images are called "
            f"{subjects.names[0]!r}",
            parameter="boxes",
        )
    target = as_objective(objective).resolve(model)
    if target.num_targets not in (None, len(subjects)):
        raise ParameterError(
            f"{target} names targets for {target.num_targets} images, but there are "
            f"{len(subjects)}",
            parameter="objective",
        )
    with opening(list(chosen.values()), model, seed):  # once, not for each image
        steps = _Maps(model, subjects, chosen, measures, box_table, target, seed, batch_size)
        return complete(steps, None if out is None else Path(out))


class _Maps(Steps[Evaluation]):
    """A step for each map: of every image, one for each technique."""

    name = "evaluation"
    what = "an evaluation"
    title = "evaluating"

    def __init__(
        self,
        model: HookedModel,
        subjects: ImageSet,
        techniques: Mapping[str, AttributionTechnique],
        metrics: Sequence[Metric],
        boxes: Boxes | None,
        target: Objective,
        seed: int,
        batch_size: int | None,
    ) -> None:
        self._model, self._subjects, self._techniques = model, subjects, techniques
        self._metrics, self._boxes, self._target = metrics, boxes, target
        self._seed, self._batch_size = seed, batch_size
        self._labels = list(techniques)
        self._loaded: tuple[int, SetImage | None, str] = (-1, None, "")
        self.total = len(subjects) * len(techniques)
        self.settings = {
            "model": model.id,
            "weights_sha256": model.weights_sha256,
            "preprocessing": model.preprocessing.to_dict(),
            "images": {"count": len(subjects), "fingerprint": subjects.fingerprint()},
            "techniques": {
                label: {"technique": each.technique_id(), "parameters": each._recorded_in_call()}
                for label, each in techniques.items()
            },
            "objective": str(target),
            "metrics": {each.name: each.model_dump(mode="json") for each in metrics},
            "boxes": None if boxes is None else boxes.digest(),
            "seed": seed,
        }

    def run(self, index: int) -> Record:
        """Compute a map, and measure it."""
        number, place = divmod(index, len(self._labels))
        label, name = self._labels[place], self._subjects.names[number]
        record: Record = {"image": number, "name": name, "technique": label}
        subject, reason = self._image(number)
        if subject is None:
            return record | {"unreadable": reason}
        target, boxes = self._target, self._boxes
        own = target.rows(number, number + 1) if target.num_targets else target
        inside = None if boxes is None else boxes.inside(self._model, name, subject.size)
        image_seed = (self._seed + number) % 2**31
        with own_numbers(self._model, image_seed):
            return record | _measure(
                self._model,
                subject.image,
                self._techniques[label],
                own,
                self._metrics,
                inside,
                seed=self._seed,
                image_seed=image_seed,
                batch_size=self._batch_size,
            )

    def _image(self, number: int) -> tuple[SetImage | None, str]:
        """Return an image, or why it cannot be read; the same one is not read again."""
        if self._loaded[0] != number:
            try:
                self._loaded = number, self._subjects.load(number), ""
            except ImageError as error:
                self._loaded = number, None, str(error)
        return self._loaded[1:]

    def summarise(self, journal: Journal) -> Evaluation:
        """Combine the values of all maps.

        Raises:
            ImageError: no image can be read.
            TechniqueError: no map can be computed.
        """
        model, subjects, settings = self._model, self._subjects, self.settings
        axes = {each.name: list(each.axis(model, subjects.pixels)) for each in self._metrics}
        provenance = Provenance.now(
            technique="timmscope:evaluate",
            family="evaluation",
            parameters={key: settings[key] for key in ("techniques", "metrics", "boxes")},
            model=model.id,
            weights_sha256=model.weights_sha256,
            seed=self._seed,
            call={"objective": str(self._target), "images": settings["images"]},
            named={
                f"{label}.{parameter}": named
                for label, each in self._techniques.items()
                for parameter, named in each._named_in_call().items()
            },
        )
        result = summarise(journal, subjects.names, self._labels, self._metrics, axes, provenance)
        if len(result.unreadable) == len(subjects):
            raise ImageError(
                f"none of the {len(subjects)} images can be read; the first error is: "
                f"{result.unreadable[0]['reason']}"
            )
        maps = len(self._labels) * (len(subjects) - len(result.unreadable))
        if len(result.refused) == maps:
            first = result.refused[0]
            raise TechniqueError(
                f"none of the {maps} maps can be computed; {first['technique']} on "
                f"{first['image']}: {first['reason']}"
            )
        return result


def _measure(
    model: HookedModel,
    image: Tensor,
    technique: AttributionTechnique,
    objective: Objective,
    metrics: Sequence[Metric],
    inside: Tensor | None,
    *,
    seed: int,
    image_seed: int,
    batch_size: int | None,
) -> Record:
    """Explain one image, and measure the map with all metrics."""
    bound = objective.bind(model, image[None])
    settings: dict[str, Any] = {"seed": image_seed, "batch_size": batch_size}
    try:
        result = technique(model, image[None], bound, **settings)
    except TechniqueError as error:
        return {"objective": str(bound), "refused": str(error)}

    def explain(other: HookedModel) -> Tensor:
        return technique(other, image[None], bound, **settings).raw[0]

    case = Case(
        model=model,
        image=image,
        objective=bound,
        heat=result.maps[0],
        raw=result.raw[0],
        explain=explain,
        inside=inside,
        seed=seed,
    )
    found: dict[str, Any] = {}
    for metric in metrics:
        with session(image_seed, [0], batch_size), torch.no_grad():
            measured = metric.measure(case)
        found[metric.name] = measured and _as_json(measured)
    return {"objective": str(bound), "score": float(result.scores[0]), "metrics": found}


def _as_json(measured: Measurement) -> dict[str, Any]:
    if not measured.curve:
        return {"value": measured.value}
    return {"value": measured.value, "curve": measured.curve}


def _techniques(given: Techniques) -> dict[str, AttributionTechnique]:
    if isinstance(given, Mapping):
        chosen = dict(given)
    else:
        listed = [given] if isinstance(given, str) else given
        made = [attribution(each) if isinstance(each, str) else each for each in listed]
        titles = [each.title() if isinstance(each, Technique) else repr(each) for each in made]
        _require_attributions(zip(titles, made, strict=True))
        labels = unique_names(made, titles)
        for label in labels:
            if labels.count(label) > 1:
                raise ParameterError(
                    f"{label} is given twice: give different techniques, or name them, as in "
                    f"{{'a': technique({label!r})(…), 'b': …}}",
                    parameter="techniques",
                )
        chosen = dict(zip(labels, made, strict=True))
    _require_attributions(chosen.items())
    if not chosen:
        raise ParameterError("name at least one technique to evaluate", parameter="techniques")
    return chosen


def _require_attributions(named: Iterable[tuple[str, object]]) -> None:
    for label, each in named:
        if not isinstance(each, AttributionTechnique):
            raise ParameterError(
                f"{label!r} is {each!r}: expected an attribution technique", parameter="techniques"
            )


def _metrics(given: Sequence[str | Metric] | None, boxes: bool, model: HookedModel) -> list[Metric]:
    has_weights = next(model.module.parameters(), None) is not None
    randomisation = CascadingRandomisation.name
    if given is None:
        return [m for m in default_metrics(boxes) if has_weights or m.name != randomisation]
    chosen: dict[str, Metric] = {}
    for each in [given] if isinstance(given, str) else given:
        if isinstance(each, str):
            if each not in BY_NAME:
                hint = did_you_mean(each, BY_NAME) or f"the metrics are {', '.join(BY_NAME)}"
                raise ParameterError(f"no metric is called {each!r}; {hint}", parameter="metrics")
            each = BY_NAME[each]()
        if each.name in chosen:
            raise ParameterError(f"the metric {each.name} is given twice", parameter="metrics")
        chosen[each.name] = each
    if not chosen:
        raise ParameterError("name at least one metric", parameter="metrics")
    if randomisation in chosen and not has_weights:
        raise ParameterError(
            f"the metric {randomisation} replaces weights, and {model.id} has none: choose others",
            parameter="metrics",
        )
    if PointingGame.name in chosen and not boxes:
        raise ParameterError(
            "the pointing game needs the boxes of the objects: pass boxes, a CSV file with the "
            "columns path, left, upper, right, lower",
            parameter="boxes",
        )
    return list(chosen.values())
