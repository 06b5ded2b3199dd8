"""Where an index's rows come from: a store's layer, or an array of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids, Rows
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store, StoreLayer


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows to index, and all that the index must remember of where they are from.

    Attributes:
        name: for messages.
        layer: for the record.
        dim: width of a row.
        count: number of rows at most.
        batches: ids `(n,)` and float32 rows `(n, dim)`, a pass over all.
        failed: ids without a row, because the image could not be read.
        model: id of the model that made them.
        weights_sha256: of that model.
        precision: in which it ran.
        shards: digest of every shard of the store, by number.
        store: the store itself.
    """

    name: str
    layer: str
    dim: int
    count: int
    batches: Iterable[tuple[Ids, Rows]]
    failed: int = 0
    model: str | None = None
    weights_sha256: str | None = None
    precision: str = "float32"
    shards: dict[int, str] = field(default_factory=dict)
    store: Store | None = None


def store_source(layer: StoreLayer, batch: int) -> RowSource:
    """The pooled rows of a store's layer, without images that could not be read.

    Raises:
        StoreError: the store is not finished, or keeps no pooled rows of the layer.
    """
    store = layer.store
    manifest = store.manifest
    (dim,) = layer.pooled.shape[1:]
    failed = sum(shard.unreadable for shard in manifest.shards.values())

    def batches() -> Iterator[tuple[Ids, Rows]]:
        for ids, rows in layer.iter_rows("pooled", batch):
            yield np.asarray(ids, np.int64), np.asarray(rows, np.float32)

    return RowSource(
        name=f"layer {layer.name} of {store.path}",
        layer=layer.name,
        dim=dim,
        count=len(store) - failed,
        batches=batches(),
        failed=failed,
        model=manifest.model.id,
        weights_sha256=manifest.model.weights_sha256,
        precision=manifest.precision,
        shards={number: shard.rows.sha256 for number, shard in manifest.shards.items()},
        store=store,
    )


def array_source(
    rows: npt.ArrayLike, ids: npt.ArrayLike | None, name: str, batch: int
) -> RowSource:
    """Rows of an array `(N, d)`, read in batches (so a memory map stays one).

    Raises:
        VectorIndexError: the array or the ids do not fit.
    """
    table = rows if isinstance(rows, np.ndarray) else np.asarray(rows)
    if table.ndim != 2 or not table.shape[1] or table.dtype.kind not in "fiu":
        raise VectorIndexError(
            f"{name} has shape {table.shape} and type {table.dtype}: expected numbers (N, d)"
        )
    numbers = np.arange(len(table)) if ids is None else np.asarray(ids)
    if numbers.shape != (len(table),) or (numbers.size and numbers.dtype.kind not in "iu"):
        raise VectorIndexError(
            f"ids have shape {numbers.shape} and type {numbers.dtype} for {len(table)} rows: "
            "expected one integer each"
        )
    numbers = numbers.astype(np.int64)
    ordered = np.sort(numbers)
    if len(ordered) and (ordered[0] < 0 or (np.diff(ordered) == 0).any()):
        raise VectorIndexError("ids must not be negative, and none may come twice")

    def batches() -> Iterator[tuple[Ids, Rows]]:
        for start in range(0, len(table), batch):
            with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
                part = np.asarray(table[start : start + batch], np.float32)
            yield numbers[start : start + batch], part

    return RowSource(
        name=name,
        layer=name,
        dim=table.shape[1],
        count=len(table),
        batches=batches(),
    )
