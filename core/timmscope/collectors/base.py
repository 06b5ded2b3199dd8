"""What a collector is: a mergeable accumulator fed during a pass over a data set.

``update`` and ``merge`` form one algebra: whatever way the images are split over batches, shards,
processes or machines, merging the parts gives the same state. Resuming a killed run, repairing a
shard and joining the work of several machines are then the same operation.

Two kinds exist. A `RowCollector` turns each activation, on the model's device, into one row per
image; rows live in the store's shards. A plain `Collector` reduces rows over images; its state
lives in ``reduced/``, one part a shard and one merged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from timmscope_registry.hooks import Layer

State = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class LayerBatch:
    """Rows of some images at one layer; images that could not be read are not among them.

    Attributes:
        layer: name of the layer.
        ids: image ids, (n,) int64, ascending.
        rows: row kind (``"pooled"``, ``"max"``, ``"argmax"`` …) to its rows, (n, …).
    """

    layer: str
    ids: np.ndarray
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one kind of row looks like.

    Attributes:
        shape: shape of one image's row.
        dtype: NumPy type.
        fill: value in the rows of images that could not be read.
    """

    shape: tuple[int, ...]
    dtype: str
    fill: float


class Collector(ABC):
    """A mergeable accumulator; one instance serves one layer.

    Subclasses take their parameters by keyword, keep them in attributes of the same names, and
    list those names in `settings`; the store records them and makes the collector again from them.
    """

    name: ClassVar[str]
    """What the store calls it."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Kinds of rows that `update` reads."""

    def parameters(self) -> dict[str, Any]:
        """The parameters, as values that JSON can hold."""
        return {name: getattr(self, name) for name in self.settings}

    def fresh(self) -> Self:
        """Return an empty collector with the same parameters."""
        return type(self)(**self.parameters())

    @abstractmethod
    def update(self, batch: LayerBatch) -> None:
        """Take in some images; each image must come once. Rows cannot be changed."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another collector of the same kind has seen."""

    @abstractmethod
    def state(self) -> State:
        """Return all that was seen as named arrays."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Replace what was seen by a saved state."""


class RowCollector(Collector):
    """Turns a layer's activation into rows, on the device where the model runs.

    A subclass writes `columns` and `reduce`. Its algebra is the union of rows, kept in order of
    image id; a pass over a data set writes the rows to the shards instead of holding them.
    """

    def __init__(self) -> None:
        self._ids = np.empty(0, dtype=np.int64)
        self._rows: dict[str, np.ndarray] = {}

    @abstractmethod
    def columns(self, layer: Layer) -> dict[str, Column]:
        """Describe the rows of that layer, by kind."""

    @abstractmethod
    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Turn an activation in the layer's own layout into rows (B, …), by kind.

        The model goes on with that very tensor: it must not be changed in place.
        """

    def update(self, batch: LayerBatch) -> None:
        """Append rows."""
        self._append(batch.ids, dict(batch.rows))

    def merge(self, other: Self) -> None:
        """Append another's rows."""
        self._append(other._ids, other._rows)

    def state(self) -> State:
        """Return ``ids`` and the rows by kind, in order of id."""
        return {"ids": self._ids, **self._rows}

    def load(self, state: State) -> None:
        """Replace all rows."""
        self._ids = state["ids"]
        self._rows = {kind: rows for kind, rows in state.items() if kind != "ids"}

    def _append(self, ids: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        if not len(ids):  # an empty collector does not know which kinds of rows there are
            return
        if not len(self._ids):
            self._ids, self._rows = ids.copy(), {kind: part.copy() for kind, part in rows.items()}
            return
        joined = np.concatenate([self._ids, ids])
        order = np.argsort(joined, kind="stable")
        self._rows = {
            kind: np.concatenate([part, rows[kind]])[order] for kind, part in self._rows.items()
        }
        self._ids = joined[order]


def check_rows(collector: Collector, batch: LayerBatch) -> None:
    """Raise `ParameterError` when a batch lacks the rows that the collector reads."""
    missing = [kind for kind in collector.needs if kind not in batch.rows]
    if missing:
        raise ParameterError(
            f"collector {collector.name!r} reads {', '.join(missing)} rows, and layer "
            f"{batch.layer} has {', '.join(batch.rows) or 'none'}; mine those too"
        )
