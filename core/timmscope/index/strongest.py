"""The images at which a linear objective is highest: every row scored, none kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.progress import task
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.index.linear_form import LinearForm
    from timmscope.store.store import Store


def strongest(
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
