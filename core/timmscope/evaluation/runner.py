"""`evaluate`: explanations of many images judged by several metrics, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from timmscope.evaluation.journal import Journal, Record
from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.evaluation.metrics import BY_NAME, default_metrics
from timmscope.evaluation.pointing import Box, Boxes, PointingGame
from timmscope.evaluation.result import Evaluation, summarise
from timmscope.evaluation.subjects import Subject, Subjects
from timmscope.images import Images
from timmscope.models import HookedModel
from timmscope.objectives import Objective, as_objective
from timmscope.progress import task
from timmscope.results.result import Provenance
from timmscope.techniques.attribution import AttributionTechnique
from timmscope.techniques.base import Technique, require_rgb
from timmscope.techniques.lookup import attribution, told_apart
from timmscope.techniques.session import session
from timmscope_registry import ImageError, ParameterError, StoreError, TechniqueError, nearest

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
    """Explain images by several techniques and judge every map by several metrics.

    Args:
        model: the model explained.
        images: a folder, list, array or tar (`timmscope.open_images`), or `(B, 3, H, W)`.
        techniques: techniques, texts of them (`grad-cam`, `occlusion patch_px=56`), or techniques
            by the names they shall have in the table.
        objective: what to explain; `top` is the model's prediction for each image.
        metrics: names or metrics; by default insertion, deletion, sensitivity-n and randomisation,
            and the pointing game where there are boxes.
        boxes: of the objects, for the pointing game: a CSV file with the columns path, left, upper,
            right and lower in pixels of the image file, or a mapping from names to boxes.
        out: a folder for the records. Started again on it, an evaluation that was killed goes on,
            and ends as one that was not.
        seed: of random numbers.
        batch_size: images a forward; by default what fits memory.

    Returns:
        Values of every map, their means with confidence intervals, and the mean curves.

    Raises:
        StoreMismatch: `out` holds an evaluation of something else.
        UnsupportedModel, LayerNotFound: a technique does not fit the model.
        ObjectiveError: the objective does not fit the model.
        ParameterError: an unknown name, or a metric lacks what it needs.
        ImageError: no image can be read.
        TechniqueError: not one technique has a map of any image.
        StoreError: `out` is no folder, or holds other things.
    """
    require_rgb(model)
    chosen = _techniques(techniques)
    judges = _metrics(metrics, boxes is not None)
    places = None if boxes is None else Boxes(boxes)
    subjects = Subjects(model, images)
    if places is not None and not any(places.of(name) for name in subjects.names):
        raise ParameterError(
            f"not one image has a box: boxes are of {places.example}, images are called "
            f"{subjects.names[0]!r}",
            parameter="boxes",
        )
    goal = as_objective(objective)
    if goal.images_named not in (None, len(subjects)):
        raise ParameterError(
            f"{goal} names targets for {goal.images_named} images, and there are {len(subjects)}",
            parameter="objective",
        )
    settings = {
        "model": model.id,
        "weights_sha256": model.weights_sha256,
        "preprocessing": model.preprocessing.to_dict(),
        "images": {"count": len(subjects), "fingerprint": subjects.fingerprint()},
        "techniques": {
            label: {"technique": each.technique_id(), "parameters": each.model_dump(mode="json")}
            for label, each in chosen.items()
        },
        "objective": str(goal),
        "metrics": {each.name: each.model_dump(mode="json") for each in judges},
        "boxes": None if places is None else places.digest(),
        "seed": seed,
    }
    folder = None if out is None else Path(out)
    with _only_one(folder):
        journal = Journal(folder, settings)
        _complete(journal, model, subjects, chosen, judges, places, goal, seed, batch_size)
        result = summarise(
            journal,
            subjects.names,
            list(chosen),
            judges,
            {each.name: list(each.axis(model, subjects.pixels)) for each in judges},
            Provenance.now(
                technique="timmscope:evaluate",
                family="evaluation",
                parameters={key: settings[key] for key in ("techniques", "metrics", "boxes")},
                model=model.id,
                weights_sha256=model.weights_sha256,
                seed=seed,
                call={"objective": str(goal), "images": settings["images"]},
            ),
        )
        if len(result.unreadable) == len(subjects):
            raise ImageError(
                f"not one of the {len(subjects)} images can be read; the first says: "
                f"{result.unreadable[0]['reason']}"
            )
        maps = len(chosen) * (len(subjects) - len(result.unreadable))
        if len(result.refused) == maps:
            first = result.refused[0]
            raise TechniqueError(
                f"not one of the {maps} maps can be made; of {first['technique']} on "
                f"{first['image']}: {first['reason']}"
            )
        if folder is not None:
            result.save(folder)
    return result


def _complete(
    journal: Journal,
    model: HookedModel,
    subjects: Subjects,
    techniques: Mapping[str, AttributionTechnique],
    metrics: Sequence[Metric],
    boxes: Boxes | None,
    goal: Objective,
    seed: int,
    batch_size: int | None,
) -> None:
    """Add the records that are missing, image by image, technique by technique."""
    labels = list(techniques)
    total = len(subjects) * len(labels)
    subject: Subject | None = None
    at = -1
    with task("evaluating", total=total) as advance:
        advance(journal.count)
        for place in range(journal.count, total):
            number, label = place // len(labels), labels[place % len(labels)]
            record: Record = {"image": number, "name": subjects.names[number], "technique": label}
            if at != number:
                at, reason = number, ""
                try:
                    subject = subjects.load(number)
                except ImageError as error:
                    subject, reason = None, str(error)
            if subject is None:
                record["unreadable"] = reason
            else:
                bound = goal.rows(number, number + 1) if goal.images_named else goal
                name = subjects.names[number]
                inside = None if boxes is None else boxes.inside(model, name, subject.size)
                record |= _judge(
                    model,
                    subject.image,
                    techniques[label],
                    bound,
                    metrics,
                    inside,
                    (seed, number),
                    batch_size,
                )
            journal.add(record)
            advance(1)


def _judge(
    model: HookedModel,
    image: Tensor,
    technique: AttributionTechnique,
    objective: Objective,
    metrics: Sequence[Metric],
    inside: Tensor | None,
    seeds: tuple[int, int],
    batch_size: int | None,
) -> Record:
    """Explain one image and judge the map."""
    seed, number = seeds
    own = (seed + number) % 2**31
    bound = objective.bind(model, image[None])
    settings: dict[str, Any] = {"seed": own, "batch_size": batch_size}
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
        with session(own, [0], batch_size), torch.no_grad():
            measured = metric.measure(case)
        found[metric.name] = measured and _plain(measured)
    return {"objective": str(bound), "score": float(result.scores[0]), "metrics": found}


def _plain(measured: Measurement) -> dict[str, Any]:
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
        _only_attributions(zip(titles, made, strict=True))
        labels = told_apart(made, titles)
        for label in labels:
            if labels.count(label) > 1:
                raise ParameterError(
                    f"{label} is there twice: judge different things, or name them, as in "
                    f"{{'a': technique({label!r})(…), 'b': …}}",
                    parameter="techniques",
                )
        chosen = dict(zip(labels, made, strict=True))
    _only_attributions(chosen.items())
    if not chosen:
        raise ParameterError("name at least one technique to evaluate", parameter="techniques")
    return chosen


def _only_attributions(named: Iterable[tuple[str, object]]) -> None:
    for label, each in named:
        if not isinstance(each, AttributionTechnique):
            raise ParameterError(
                f"{label!r} is {each!r}: expected an attribution technique", parameter="techniques"
            )


def _metrics(given: Sequence[str | Metric] | None, boxes: bool) -> list[Metric]:
    if given is None:
        return default_metrics(boxes)
    chosen: dict[str, Metric] = {}
    for each in [given] if isinstance(given, str) else given:
        if isinstance(each, str):
            if each not in BY_NAME:
                close = nearest(each, BY_NAME)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(BY_NAME)}"
                raise ParameterError(f"no metric is called {each!r}; {hint}", parameter="metrics")
            each = BY_NAME[each]()
        if each.name in chosen:
            raise ParameterError(f"the metric {each.name} is there twice", parameter="metrics")
        chosen[each.name] = each
    if not chosen:
        raise ParameterError("name at least one metric", parameter="metrics")
    if PointingGame.name in chosen and not boxes:
        raise ParameterError(
            "the pointing game needs the boxes of the objects: give boxes, a CSV file with the "
            "columns path, left, upper, right, lower",
            parameter="boxes",
        )
    return list(chosen.values())


def _only_one(folder: Path | None) -> Any:
    """Hold the folder against other processes."""
    from timmscope.store.lock import StoreLock

    if folder is None:
        return nullcontext()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: no folder can be made there ({error.strerror}); choose another"
        ) from error
    return cast("Any", StoreLock(folder, "evaluation"))
