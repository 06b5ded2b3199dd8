"""What the points of a map are coloured by: labels, predictions, a unit, clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import ClassNames, ParameterError, Rows, StoreLayer, task

Numbers = npt.NDArray[Any]
Colouring = tuple[dict[str, Any], Numbers]
"""Title and names of classes (None for numbers), and a value `(n,)` float64 a point."""

_LOGITS = "logits"
_POINTS_PER_CLUSTER = 256
"""FAISS's own default: of more rows a sample decides the centres."""


def by_label(rows: Rows) -> Colouring:
    """Labels of the images, -1 for those without."""
    labels = list(rows.labels)
    names = sorted({label for label in labels if label})
    number = {name: code for code, name in enumerate(names)}
    codes = [float(number[label]) if label else -1.0 for label in labels]
    return {"title": "label", "classes": names}, np.array(codes)


def by_prediction(rows: Rows, layer: StoreLayer, names: ClassNames | None) -> Colouring:
    """The class with the highest logit of each image, as the store holds them.

    Args:
        rows: that are laid out.
        layer: any layer of their store.
        names: of the model's classes, where they are known.

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
    logits = Rows(store.layer(_LOGITS), rows.chosen)
    best = np.concatenate([block.argmax(1) for _, block in logits.batches("predictions")])
    found, codes = np.unique(best, return_inverse=True)
    classes = [names.short(index) if names else f"class {index}" for index in found.tolist()]
    return {"title": "prediction", "classes": _told_apart(classes, found)}, codes.astype(float)


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
    """Clusters of the rows by k-means, the largest first.

    Centres are those of at most 256 rows a cluster, which are drawn at random; every row then
    goes to the nearest.

    Raises:
        ParameterError: there are fewer rows than clusters, or all are equal.
    """
    import faiss

    rows.require(count, f"{count} clusters", "clusters")
    sample = rows.take(rows.sample(count * _POINTS_PER_CLUSTER, seed)).astype(np.float32)
    kmeans = faiss.Kmeans(
        rows.dim,
        count,
        niter=25,
        nredo=3,
        seed=seed & 0x7FFFFFFF,
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS_PER_CLUSTER,
    )
    with task("clusters"):
        kmeans.train(np.ascontiguousarray(sample))
    nearest = [
        kmeans.index.search(np.ascontiguousarray(block, np.float32), 1)[1][:, 0]
        for _, block in rows.batches("nearest clusters")
    ]
    codes = np.concatenate(nearest)
    sizes = np.bincount(codes, minlength=count)
    rank = np.empty(count, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(count)
    filled = int((sizes > 0).sum())
    names = [f"cluster {number + 1}" for number in range(filled)]
    return {"title": "cluster", "classes": names}, rank[codes].astype(float)


def _told_apart(names: Sequence[str], numbers: Numbers) -> list[str]:
    """Names with the class's number where several classes share one, as ImageNet's `crane`."""
    return [
        f"{name} ({number})" if names.count(name) > 1 else name
        for name, number in zip(names, numbers.tolist(), strict=True)
    ]
