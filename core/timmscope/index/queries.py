"""Answers queries on the rows of an index: checks them, searches the engine, and returns hits.

`VectorIndex` offers these functions as its methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Backend, Ids, Rows, validated_hits
from timmscope.index.files import IndexRecord
from timmscope.index.filters import Where, allowed_ids
from timmscope.index.metrics import space_of
from timmscope.store.model import require_same_model
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.objectives import Objective
    from timmscope.store import Store


class Hits(NamedTuple):
    """Nearest rows of some queries, nearest first, equal scores by ascending id.

    Attributes:
        ids: `(Q, k)` int64, store image ids.
        scores: `(Q, k)` float32. By the index's metric: `cosine` similarity in [-1, 1], higher is
            nearer, 0 where a vector has length 0; `l2` Euclidean distance (not squared), lower is
            nearer; `ip` inner product, higher is nearer.
    """

    ids: Ids
    scores: Rows


def search_engine(
    engine: Backend,
    record: IndexRecord,
    store: Store | None,
    queries: Rows,
    k: int,
    where: Where | None,
) -> Hits:
    """Search an engine for checked queries that are prepared for the index's metric.

    Raises:
        VectorIndexError: the filter does not fit the index.
        PluginError: the engine returned invalid hits.
    """
    allowed = None if where is None else allowed_ids(where, engine.ids, store)
    count = min(k, len(engine) if allowed is None else len(allowed))
    if not count:
        empty = (len(queries), 0)
        return Hits(np.empty(empty, np.int64), np.empty(empty, np.float32))
    if allowed is not None and len(allowed) == len(engine):
        allowed = None
    found = engine.search(queries, count, allowed)
    shape, space = (len(queries), count), space_of(record.metric)
    limit = None if store is None else store.manifest.images.count
    values, ids = validated_hits(record.backend, found, shape, space, limit)
    if record.metric == "cosine":
        values = np.clip(values, -1, 1)  # rounding of normalised rows
    return Hits(ids, values)


def checked_k(k: int) -> int:
    """Return the number of neighbours as an int.

    Raises:
        VectorIndexError: it is not a whole number, or below 1.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise VectorIndexError(f"k is {k}: expected a whole number of at least 1")
    return int(k)


def checked_queries(vectors: npt.ArrayLike, record: IndexRecord) -> Rows:
    """Return vectors as queries `(Q, dim)` in float32.

    Raises:
        VectorIndexError: they have another width, or values that are not finite.
    """
    try:
        with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused
            queries = np.atleast_2d(np.asarray(vectors, np.float32))
    except (TypeError, ValueError) as error:
        raise VectorIndexError(
            f"queries are not a table of numbers ({error}): expected (Q, {record.dim})"
        ) from error
    if queries.ndim != 2 or queries.shape[1] != record.dim:
        raise VectorIndexError(
            f"queries have shape {np.shape(vectors)}, but the rows of {record.layer!r} have "
            f"{record.dim} values: expected (Q, {record.dim})"
        )
    bad = np.flatnonzero(~np.isfinite(queries).all(1))
    if len(bad):
        raise VectorIndexError(
            f"{len(bad)} of {len(queries)} queries hold NaN or infinity, the first is {bad[0]}"
        )
    return queries


def row_query(engine: Backend, layer: str, row_id: int) -> Rows:
    """Return a row of an index as a query `(1, dim)`.

    Raises:
        VectorIndexError: the index has no such row.
    """
    try:
        return engine.rows(np.asarray([row_id], np.int64))
    except KeyError:
        known = engine.ids
        raise VectorIndexError(
            f"the index of {layer!r} has no row {row_id}: it holds {len(known)} ids from "
            f"{known.min()} to {known.max()}, without images that failed or are not finite"
        ) from None


def image_queries(record: IndexRecord, model: HookedModel, images: Any) -> Rows:
    """Return the features of images at an index's layer, `(Q, dim)`.

    Raises:
        StoreMismatch: the model is not the one that computed the index's rows.
        VectorIndexError: the index is of an array, or features are not finite.
        ImageError: an image cannot be read.
    """
    from timmscope.models.pooled_features import pooled_features

    if record.weights_sha256 is None:
        raise VectorIndexError(
            f"the index of {record.layer!r} was built from an array, so no model can be compared "
            "with it: search by vector"
        )
    owner = f"{record.model}, which computed the rows of {record.layer!r}"
    require_same_model(model, record.weights_sha256, record.defences, owner)
    pictures = model.images(images)
    return pooled_features(model, pictures, record.layer, precision=record.precision)


def objective_query(
    record: IndexRecord,
    store: Store | None,
    objective: Objective | str | int,
    model: HookedModel | None,
) -> np.ndarray:
    """Return the direction of an objective at an index's layer, `(dim,)`.

    Raises:
        VectorIndexError: the index is of an array, or the objective reads another layer.
        ObjectiveError: the objective is not a linear function of the layer's rows.
    """
    from timmscope.index.linear_form import linear_form

    layer = record.layer
    if store is None:
        raise VectorIndexError(f"the index of {layer!r} belongs to no store: search by vector")
    form = linear_form(objective, store, layer=layer, model=model)
    if set(form.vectors) != {layer}:
        raise VectorIndexError(
            f"{objective} reads {', '.join(form.vectors)}, the index holds rows of {layer}"
        )
    return form.vectors[layer]
