"""Reads the rows of an index in batches, from a store's layer or from an array."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids, Rows
from timmscope_registry import StoreError, VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import StoreLayer

BATCH = 4096
"""Number of rows that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Rows to index, and what the index record keeps about their origin.

    Attributes:
        name: the source's name in messages.
        layer: the layer's name, or the array's, in the record.
        dim: width of a row.
        count: largest number of rows.
        batches: ids `(n,)` and float32 rows `(n, dim)`; can be read once.
        failed: number of ids without a row, because the image could not be read.
        model: id of the model that computed the rows.
        weights_sha256: SHA-256 of that model's weights.
        defences: texts of that model's defences.
        precision: precision in which that model ran.
        shards: SHA-256 of every shard that is read, by number.
    """

    name: str
    layer: str
    dim: int
    count: int
    batches: Iterable[tuple[Ids, Rows]]
    failed: int = 0
    model: str | None = None
    weights_sha256: str | None = None
    defences: tuple[str, ...] = ()
    precision: str = "float32"
    shards: dict[int, str] = field(default_factory=dict)


def store_source(layer: StoreLayer, seen: Collection[int] = ()) -> RowSource:
    """Return the pooled rows of a store's layer, without images that could not be read.

    Only finished shards are read, so the pass that writes the store may still be running.

    Args:
        layer: the layer, from `store.layer(name)`.
        seen: numbers of the shards to leave out.

    Raises:
        StoreError: the store keeps no pooled rows of the layer.
        VectorIndexError: none of its shards is finished.
    """
    store = layer.store
    manifest = store.manifest
    wanted = {n: shard for n, shard in manifest.shards.items() if n not in seen}
    if "pooled" not in layer.record.kinds:
        raise StoreError(
            f"{store.path.name} keeps no 'pooled' rows of {layer.name}, which an index needs, only "
            f"{', '.join(layer.record.kinds)}; mine again with it"
        )
    if not manifest.shards:
        raise VectorIndexError(
            f"{store.path.name} has no finished shard yet, so there is no row to index: "
            "run timmscope mine first"
        )
    failed = sum(shard.unreadable for shard in wanted.values())
    return RowSource(
        name=f"layer {layer.name} of {store.path}",
        layer=layer.name,
        dim=layer.channels,
        count=sum(shard.stop - shard.start for shard in wanted.values()) - failed,
        batches=(
            (ids, np.asarray(rows, np.float32))
            for ids, rows in layer.iter_rows("pooled", BATCH, shards=list(wanted))
        ),
        failed=failed,
        model=manifest.model.id,
        weights_sha256=manifest.model.weights_sha256,
        defences=manifest.model.defences,
        precision=manifest.precision,
        shards={number: shard.rows.sha256 for number, shard in wanted.items()},
    )


def array_source(rows: npt.ArrayLike, ids: npt.ArrayLike | None, name: str) -> RowSource:
    """Return the rows of an array `(N, d)`; it is read in batches, and may be a memory map.

    Raises:
        VectorIndexError: the array is not a table of numbers, or there is not one id per row.
    """
    table = rows if isinstance(rows, np.ndarray) else np.asarray(rows)
    if table.ndim != 2 or not table.shape[1] or table.dtype.kind not in "fiu":
        raise VectorIndexError(
            f"{name} has shape {table.shape} and type {table.dtype}: expected numbers (N, d)"
        )
    numbers = checked_ids(np.arange(len(table)) if ids is None else ids)
    if len(numbers) != len(table):
        raise VectorIndexError(
            f"{len(numbers)} ids for {len(table)} rows: expected one integer each"
        )

    def batches() -> Iterator[tuple[Ids, Rows]]:
        for start in range(0, len(table), BATCH):
            with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
                part = np.asarray(table[start : start + BATCH], np.float32)
            yield numbers[start : start + BATCH], part

    return RowSource(
        name=name,
        layer=name,
        dim=table.shape[1],
        count=len(table),
        batches=batches(),
    )


def checked_ids(ids: npt.ArrayLike) -> Ids:
    """Return ids `(n,)` as int64.

    Raises:
        VectorIndexError: an id is not a whole number, is negative, or occurs twice.
    """
    numbers = np.asarray(ids)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise VectorIndexError(
            f"ids have shape {numbers.shape} and type {numbers.dtype}: expected one integer each"
        )
    numbers = numbers.astype(np.int64)
    ordered = np.sort(numbers)
    if len(ordered) and (ordered[0] < 0 or (np.diff(ordered) == 0).any()):
        raise VectorIndexError("ids must not be negative, and none may occur twice")
    return numbers
