"""Ranks a store's images by an objective, reading every row once and keeping none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.progress import task
from timmscope_registry import ParameterError

from .linear_form import LinearForm, linear_form
from .vector_index import Hits

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
    """The images of a store at which an objective is highest, best first, ties by image id.

    The score is the objective itself, computed from the pooled rows of its layers: the inner
    product with a direction, a unit's mean, the logit of a class. Every row is read once, in
    bounded memory; no index is needed.

    Args:
        store: the store.
        objective: units, directions and classes, their sums and multiples.
        k: how many; where fewer images have a score, all of them.
        where: only these images: a condition, a mask (N,) or ids; see `ImageTable.where`.
        layer: the layer that classes are read from, through an affine path to the logits; by
            default the last mined one that has it.
        model: the store's model; by default loaded where the objective needs it.

    Raises:
        ObjectiveError: it is no linear function of the rows that the store keeps.
        LayerNotFound: the store lacks the layer.
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
    """Ids (k,) int64 and scores (k,) float32, best first, equal scores by ascending id.

    Scores are computed in float64, row by row, and rounded. Images that could not be read, and
    those whose score is not finite, are left out.

    Raises:
        ParameterError: `k` is below 1, or the condition is wrong.
        StoreError: the store is not finished.
    """
    if k < 1:
        raise ParameterError(f"k is {k}: ask for at least one image", parameter="k")
    chosen = None if where is None else store.images.where(where)
    manifest = store.manifest
    shards = [
        number
        for number in range(manifest.shard_count)
        if chosen is None or chosen[slice(*manifest.span(number))].any()
    ]
    best, values = np.empty(0, np.int64), np.empty(0, np.float32)
    # Units without weight are left out: zero times a NaN would be one.
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
                kept &= found > values[-1]  # of equal scores the earlier id stays
            best, values = np.append(best, ids[kept]), np.append(values, found[kept])
            order = np.lexsort((best, -values))[:k]
            best, values = best[order], values[order]
            advance(len(ids))
    return best, values
