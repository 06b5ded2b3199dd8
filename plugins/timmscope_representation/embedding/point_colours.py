"""Colourings of the points of a map: by labels, predictions, a column, a unit or clusters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import ClassNames, ParameterError, Rows, StoreLayer, task
from timmscope_representation.clustering.partition import kmeans
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]
Colouring = tuple[dict[str, Any], Numbers]
"""Title and names of classes (None for numbers), and values `(n,)` float64, one per point.

A point without a class has -1, one without a number NaN."""

_LOGITS = "logits"
_ITERATIONS, _RESTARTS = 25, 3
_BATCH, _NAMED = 4096, 5
_TAKEN = ("id", "name", "x", "y", "z", "prediction", "cluster")
"""Columns of the table of points, whose names a column of the store cannot have there."""


def by_label(rows: Rows) -> Colouring:
    """Labels of the images, -1 for those without."""
    return _by_text("label", rows.labels)


def by_column(rows: Rows, name: str) -> Colouring:
    """A column of the store's images or metadata: numbers, or classes if it holds text.

    Raises:
        ParameterError: there is no such column, no image has a value in it, or the rows come from
            an array.
    """
    found = rows.column(name)
    title = f"column {name}" if name in _TAKEN else name
    if isinstance(found, np.ndarray):
        colouring: Colouring = {"title": title, "classes": None}, found
        empty = not np.isfinite(found).any()
    else:
        colouring = _by_text(title, found)
        empty = not colouring[0]["classes"]
    if empty:
        raise ParameterError(
            f"no image of {rows.title} has a value in the column {name}: choose another column or "
            "other images",
            parameter="column",
        )
    return colouring


def by_prediction(rows: Rows, layer: StoreLayer, names: ClassNames | None) -> Colouring:
    """The class with the highest logit of each image, as the store holds them.

    Images whose logits hold NaN or infinite values get no class (-1), and a warning names them.

    Args:
        rows: the rows of the map.
        layer: any layer of their store.
        names: names of the model's classes, if known.

    Raises:
        ParameterError: the store does not hold logits.
    """
    store = layer.store
    if _LOGITS not in store.layers:
        raise ParameterError(
            f"{store.path} holds no logits, so predictions are unknown: mine it again with the "
            f"layer {_LOGITS} as well",
            parameter="colour",
        )
    logits, best = store.layer(_LOGITS).pooled, np.full(len(rows), -1)
    with task("predictions", total=len(rows)) as advance:
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            block = np.asarray(logits[rows.ids[part]])
            best[part] = np.where(np.isfinite(block).all(1), block.argmax(1), -1)
            advance(len(block))
    without = np.flatnonzero(best < 0)
    if len(without):
        named = ", ".join(rows.names(rows.ids[without[:_NAMED]]))
        more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
        warnings.warn(
            f"the logits of {len(without)} of {len(rows)} images hold NaN or infinite values, so "
            f"they have no prediction: {named}{more}",
            stacklevel=2,
        )
    found = np.unique(best[best >= 0])
    codes = np.where(best < 0, -1, np.searchsorted(found, best))
    classes = [names.short(index) if names else f"class {index}" for index in found.tolist()]
    return {"title": "prediction", "classes": _distinct_names(classes, found)}, codes.astype(float)


def by_unit(rows: Rows, unit: int) -> Colouring:
    """A unit's value for each image.

    Raises:
        ParameterError: there is no such unit.
    """
    if not 0 <= unit < rows.dim:
        raise ParameterError(
            f"{rows.title} has units 0 to {rows.dim - 1}, there is no unit {unit}",
            parameter="unit",
        )
    values = [block[:, unit] for _, block in rows.batches("unit")]
    return {"title": f"unit {unit}", "classes": None}, np.concatenate(values).astype(float)


def by_cluster(rows: Rows, count: int, seed: int) -> Colouring:
    """Clusters of the rows by k-means with Euclidean distance, as on a PCA map, largest first.

    Raises:
        ParameterError: there are fewer rows than clusters, or all are equal.
    """
    rows.require(count, f"{count} clusters", "clusters")
    space = RowSpace(rows, "l2")
    space.require_spread("there is nothing to separate")
    found = kmeans(space, count, iterations=_ITERATIONS, restarts=_RESTARTS, seed=seed)
    names = [f"cluster {number + 1}" for number in range(len(found.centroids))]
    return {"title": "cluster", "classes": names}, (found.clusters - 1).astype(float)


def _by_text(title: str, texts: Iterable[str | None]) -> Colouring:
    """Texts as classes in alphabetical order."""
    texts = list(texts)
    names = sorted({text for text in texts if text})
    number = {name: code for code, name in enumerate(names)}
    codes = [float(number[text]) if text else -1.0 for text in texts]
    return {"title": title, "classes": names}, np.array(codes)


def _distinct_names(names: Sequence[str], numbers: Numbers) -> list[str]:
    """Class names, with the class's number where several classes share one (ImageNet's `crane`)."""
    return [
        f"{name} ({number})" if names.count(name) > 1 else name
        for name, number in zip(names, numbers.tolist(), strict=True)
    ]
