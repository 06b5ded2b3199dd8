"""`strongest` ranks a store's images by an objective; it reads every row and needs no index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.progress import task
from timmscope_registry import ParameterError

from .linear_form import LinearForm, linear_form
from .queries import Hits

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.objectives import Objective
    from timmscope.store import Store


def strongest(
    store: Store,
    objective: Objective | str | int,
    k: int = 10,
    *,
    where: str | npt.ArrayLike | None = None,
    layer: str | None = None,
    model: HookedModel | None = None,
) -> Hits:
    """Return the images of a store at which an objective is highest, best first, ties by image id.

    The score is the objective itself, computed from the pooled rows of its layers: the inner
    product with a direction, a unit's mean, the logit of a class. Memory is bounded.

    Args:
        store: the store.
        objective: units, directions and classes, and sums and multiples of them.
        k: number of images; all images with a score if there are fewer.
        where: only these images: a condition, a mask (N,) or ids; see `ImageTable.where`.
        layer: the layer from which class logits are computed, which needs an affine path to them;
            by default the last mined layer that has one.
        model: the store's model; by default it is loaded if the objective needs it.

    Returns:
        Hits for one query: ids and scores `(1, k)`.

    Raises:
        ObjectiveError: the objective is not a linear function of the rows that the store keeps.
        LayerNotFound: the layer was not mined.
        StoreMismatch: `model` is not the one that the store was mined with.
        ParameterError: the condition is wrong, or `k` is below 1.
        StoreError: the store is not finished.
    """
    ids, scores = score_rows(
        store, linear_form(objective, store, layer=layer, model=model), k, where
    )
    return Hits(ids[None], scores[None])


def score_rows(
    store: Store, form: LinearForm, k: int, where: str | npt.ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (k,) int64 and scores (k,) float32, best first, equal scores by ascending id.

    Scores are computed in float64, row by row, and rounded. Images that could not be read or whose
    score is not finite are left out.

    Raises:
        ParameterError: `k` is below 1, or the condition is wrong.
        StoreError: the store is not finished.
    """
    if k < 1:
        raise ParameterError(f"k is {k}: expected at least 1", parameter="k")
    chosen = None if where is None else store.images.where(where)
    manifest = store.manifest
    shards = [
        number
        for number in range(manifest.shard_count)
        if chosen is None or chosen[slice(*manifest.span(number))].any()
    ]
    best, values = np.empty(0, np.int64), np.empty(0, np.float32)
    # Units of weight zero are left out, because zero times NaN is NaN.
    weights = [(np.flatnonzero(vector), vector[vector != 0]) for vector in form.vectors.values()]
    streams = [store.layer(name).iter_rows(shards=shards) for name in form.vectors]
    with task("scoring", total=len(store)) as advance:
        for parts in zip(*streams, strict=True):
            ids = parts[0][0]
            scores = np.full(len(ids), form.offset)
            with np.errstate(invalid="ignore", over="ignore"):
                for (_, rows), (units, weight) in zip(parts, weights, strict=True):
                    part = rows if len(units) == rows.shape[1] else rows[:, units]
                    scores += (part * weight).sum(axis=1)
                found = scores.astype(np.float32)
            kept = np.isfinite(found)
            if chosen is not None:
                kept &= chosen[ids]
            if len(values) >= k:
                kept &= found > values[-1]  # among equal scores the smaller id is kept
            best, values = np.append(best, ids[kept]), np.append(values, found[kept])
            order = np.lexsort((best, -values))[:k]
            best, values = best[order], values[order]
            advance(len(ids))
    return best, values
