"""`UnitRows` is the input of `judge_units`: rows and maxima of images, and the images' classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from timmscope.images import LabelTable
from timmscope.progress import task

if TYPE_CHECKING:
    from timmscope.store import StoreLayer, UnitStatistics
    from timmscope.techniques import Rows

LABEL = "label"

Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class UnitRows:
    """Rows of units over images.

    Attributes:
        name: name of the layer.
        channels: number of units.
        stream: yields ids and rows of all images, by kind (``pooled`` or ``max``) and a text for
            the progress bar.
        known: returns statistics of maxima and means, or None if the store does not have them.
        names: names of the classes.
        codes: by id, index of the image's class in `names`, -1 for none.
        readable: by id, whether the image could be read and is chosen.
        numbers: by id, a number instead of the class, NaN for none; None if there are classes.
        facts: source of the rows, for a result's provenance.
    """

    name: str
    channels: int
    stream: Callable[[str, str], Batches]
    known: Callable[[], tuple[UnitStatistics, UnitStatistics] | None]
    names: Sequence[str]
    codes: np.ndarray
    readable: np.ndarray
    numbers: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_layer(
        cls, layer: StoreLayer, where: str | npt.ArrayLike | None, by: str | None
    ) -> UnitRows:
        """Return the rows of a store's layer, with a column's values as classes or numbers.

        Raises:
            ParameterError: the condition is wrong, or there is no such column.
            StoreError: the store is not finished.
        """
        store = layer.store
        chosen = None if where is None else store.images.where(where)
        table, numbers = store.images.labels, None
        if by is not None and by != LABEL:
            found = store.images.column(by)
            if isinstance(found, LabelTable):
                table = found
            else:
                table, numbers = LabelTable([None] * len(store)), found
        collected = {record.name for record in store.manifest.collectors}

        def known() -> tuple[UnitStatistics, UnitStatistics] | None:
            if chosen is not None or "statistics" not in collected:
                return None
            return layer.statistics("max"), layer.statistics("pooled")

        readable = store.images.readable if chosen is None else store.images.readable & chosen
        facts = {
            "images": int(readable.sum()),
            "where": where if isinstance(where, str | None) else f"{readable.sum()} images",
            "store": str(store.path),
            "layer": layer.name,
        }
        if store.images.metadata is not None:
            facts["metadata"] = str(store.images.metadata.path)
        return cls(
            name=layer.name,
            channels=layer.channels,
            stream=lambda kind, what: _rows(layer, kind, chosen, what),
            known=known,
            names=table.names,
            codes=table.codes if chosen is None else np.where(chosen, table.codes, -1),
            readable=readable,
            numbers=numbers,
            facts=facts,
        )

    @classmethod
    def of_rows(cls, rows: Rows, by: str | None) -> UnitRows:
        """Return the rows of a technique's input; rows of an array are both means and maxima.

        Errors for rows of a store are those of `of_layer`.
        """
        if rows.layer is not None:
            return cls.of_layer(rows.layer, rows.chosen, by)
        count = int(rows.ids[-1]) + 1
        return cls(
            name=rows.title,
            channels=rows.dim,
            stream=lambda kind, what: rows.batches(what),
            known=lambda: None,
            names=(),
            codes=np.full(count, -1),
            readable=np.ones(count, bool),
        )


def _rows(layer: StoreLayer, kind: str, chosen: np.ndarray | None, what: str) -> Batches:
    """Yield ids and rows of the chosen images; shards without chosen images are not read."""
    manifest = layer.store.manifest
    shards = list(range(manifest.shard_count))
    if chosen is not None:
        shards = [n for n in shards if chosen[slice(*manifest.span(n))].any()]
    with task(what, total=len(layer)) as advance:
        for ids, rows in layer.iter_rows(kind, shards=shards):
            advance(len(ids))
            if chosen is not None:
                kept = chosen[ids]
                ids, rows = ids[kept], rows[kept]
            if len(ids):
                yield ids, rows
