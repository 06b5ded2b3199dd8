"""`Collector` is a mergeable accumulator that a pass over a data set updates.

However the images are split over batches, shards, processes or machines, ``update`` and ``merge``
give the same state. Resuming a killed run, repairing a shard and combining the work of several
machines are therefore the same operation.

There are two kinds. A `RowCollector` turns each activation, on the model's device, into one row per
image; the store keeps the rows in its shards. A plain `Collector` reduces rows over images; the
store keeps its state in ``reduced/``, one part per shard and one merged.
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
"""A collector's state as named arrays."""


@dataclass(frozen=True, kw_only=True)
class LayerBatch:
    """Rows of some images at one layer, without images that could not be read.

    Attributes:
        layer: name of the layer.
        ids: image ids, (n,) int64, ascending.
        rows: by kind (``"pooled"``, ``"max"``, ``"argmax"`` …) the rows, (n, …).
    """

    layer: str
    ids: np.ndarray
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Column:
    """Shape and type of one kind of row.

    Attributes:
        shape: shape of one image's row.
        dtype: name of the NumPy dtype.
        fill: value in the rows of images that could not be read.
    """

    shape: tuple[int, ...]
    dtype: str
    fill: float


class Collector(ABC):
    """A mergeable accumulator for one layer.

    A subclass takes its parameters by keyword, keeps them in attributes of the same names, and
    lists those names in `settings`; the store records them and creates the collector from them.
    """

    name: ClassVar[str]
    """Name of the collector in the store."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the constructor's parameters."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Kinds of rows that `update` reads."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters as values that can be stored as JSON."""
        return {name: getattr(self, name) for name in self.settings}

    def fresh(self) -> Self:
        """Return an empty collector with the same parameters."""
        return type(self)(**self.parameters())

    @abstractmethod
    def update(self, batch: LayerBatch) -> None:
        """Add the rows of some images; each image comes once. The rows are read-only."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the state of another collector of the same class and parameters."""

    @abstractmethod
    def state(self) -> State:
        """Return the state as named arrays."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Replace the state by a saved one."""


class RowCollector(Collector):
    """Turns a layer's activation into rows, on the device where the model runs.

    A subclass implements `columns` and `reduce`. Its state is all rows in the order of image ids; a
    pass over a data set writes the rows to the shards instead of keeping them in memory.
    """

    def __init__(self) -> None:
        self._ids = np.empty(0, dtype=np.int64)
        self._rows: dict[str, np.ndarray] = {}

    @abstractmethod
    def columns(self, layer: Layer) -> dict[str, Column]:
        """Describe the rows of a layer, by kind."""

    @abstractmethod
    def reduce(self, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        """Turn an activation in the layer's own layout into rows (B, …), by kind.

        The activation must not be changed in place, because the model still uses it.
        """

    def update(self, batch: LayerBatch) -> None:
        """Append rows."""
        self._append(batch.ids, dict(batch.rows))

    def merge(self, other: Self) -> None:
        """Append the rows of another collector."""
        self._append(other._ids, other._rows)

    def state(self) -> State:
        """Return ``ids`` and the rows by kind, in order of id."""
        return {"ids": self._ids, **self._rows}

    def load(self, state: State) -> None:
        """Replace all rows."""
        self._ids = state["ids"]
        self._rows = {kind: rows for kind, rows in state.items() if kind != "ids"}

    def _append(self, ids: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        if not len(ids):  # an empty collector does not know its kinds of rows
            return
        if not len(self._ids):
            self._ids, self._rows = ids.copy(), {kind: part.copy() for kind, part in rows.items()}
            return
        all_ids = np.concatenate([self._ids, ids])
        order = np.argsort(all_ids, kind="stable")
        self._rows = {
            kind: np.concatenate([part, rows[kind]])[order] for kind, part in self._rows.items()
        }
        self._ids = all_ids[order]


def check_state(state: State, like: State) -> None:
    """Raise `ValueError` if a saved state lacks an array, or one has another kind or dimension.

    Args:
        state: the saved state, which may come from a damaged or forged file.
        like: the state of an empty collector.
    """
    if missing := like.keys() - state.keys():
        raise ValueError(f"the state has no {min(missing)}")
    for name, array in like.items():
        found = state[name]
        if found.ndim != array.ndim or found.dtype.kind != array.dtype.kind:
            raise ValueError(f"{name} of the state is {found.dtype}{found.shape}")


def check_rows(collector: Collector, batch: LayerBatch) -> None:
    """Raise `ParameterError` if a batch lacks rows that the collector reads."""
    missing = [kind for kind in collector.needs if kind not in batch.rows]
    if missing:
        raise ParameterError(
            f"collector {collector.name!r} reads {', '.join(missing)} rows, but layer "
            f"{batch.layer} has {', '.join(batch.rows) or 'none'}; mine those too"
        )
