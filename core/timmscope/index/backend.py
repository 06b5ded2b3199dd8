"""What an index engine must offer, and how one is found.

`VectorIndex` knows stores, models, files and what is searched for; a backend only holds rows and
finds the nearest. A plugin offers one through ``timmscope_index_backends``; ``flat``, ``ivf`` and
``hnsw`` are built in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from timmscope_registry import PluginError, VectorIndexError, get_registry
from timmscope_registry.contributions import described

Rows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Space = Literal["ip", "l2"]
"""What a backend compares by. Cosine is `ip` between rows that `VectorIndex` has normalised."""


@dataclass(frozen=True, kw_only=True)
class BuildHints:
    """What is known and wanted before the first row comes; a backend may ignore all of it.

    Attributes:
        count: how many rows will come at most; 0 when unknown.
        memory: bytes that the index may keep in memory while it is searched; None for no limit.
        seed: of everything random.
        scratch: folder for large temporary files; None for the system's.
    """

    count: int = 0
    memory: int | None = None
    seed: int = 0
    scratch: Path | None = None


class RecallBenchmark(NamedTuple):
    """Queries whose true neighbours are known; what recall is measured by.

    A row that is found counts when its value is as good as the k-th true neighbour's, so equal
    rows count whichever is found.

    Attributes:
        queries: `(Q, dim)`, rows of the index.
        own: `(Q,)` their ids, left out of what is found.
        worst: `(Q,)` value of the k-th true neighbour.
        k: how many neighbours.
        space: `ip` or `l2`.
    """

    queries: Rows
    own: Ids
    worst: Rows
    k: int
    space: Space

    def part(self, some: slice) -> RecallBenchmark:
        """Some of the queries."""
        return self._replace(queries=self.queries[some], own=self.own[some], worst=self.worst[some])

    def recall(self, values: Rows, ids: Ids) -> float:
        """Share of the true neighbours among the k best that `search` found, asked for k + 1."""
        others = ids != self.own[:, None]
        first = others & (np.cumsum(others, axis=1) <= self.k)
        worst = self.worst[:, None]
        good = values >= worst if self.space == "ip" else values <= worst
        return float((good & first).sum() / (len(ids) * self.k))


class Backend(Protocol):
    """A nearest-neighbour engine over float32 rows with int64 ids.

    Rows and queries come finite and of the right width; ids come unique and not negative.
    """

    def __init__(self, dim: int, space: Space, hints: BuildHints) -> None:
        """Begin empty, for rows of width `dim` compared by `space`."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def ids(self) -> Ids:
        """Ids of the rows `(N,)`, in the order they were added."""
        ...

    def add(self, rows: Rows, ids: Ids) -> None:
        """Append rows `(n, dim)` under ids `(n,)`, none of which is there; called once a batch."""
        ...

    def finish(self, held_out: Ids) -> None:
        """All rows of a build have come: train, if there is something to train.

        Called once, before anything but `add` and `ids`; rows added later come to the trained
        engine.

        Args:
            held_out: ids of rows that recall is measured by, so better not trained on.
        """
        ...

    def remove(self, ids: Ids) -> None:
        """Drop rows, all of which are there. They are found no more, and their ids are free."""
        ...

    def compact(self) -> None:
        """Give back what removed rows still take up."""
        ...

    def search(self, queries: Rows, k: int, allowed: Ids | None = None) -> tuple[Rows, Ids]:
        """Find the `k` best rows of each query.

        Args:
            queries: `(Q, dim)`.
            k: from 1 to the number of rows that may be found.
            allowed: ids of the rows that may be found, ascending and all there; all by default.

        Returns:
            Values `(Q, k)` and ids `(Q, k)`, never fewer than `k`, best first and equal values by
            ascending id: inner products, or Euclidean distances (not squared).
        """
        ...

    def rows(self, ids: Ids) -> Rows:
        """Rows `(n, dim)`; `KeyError` for an id that is not there."""
        ...

    def tune(self, exam: RecallBenchmark, recall: float, *, timed: bool) -> float:
        """Use the cheapest search parameters that reach a recall, or else the best there are.

        Args:
            exam: what recall is measured by.
            recall: the share of true neighbours wanted.
            timed: whether to time the parameters, or to estimate their cost so that the choice
                is the same on every machine.

        Returns:
            The recall reached; 1 for an exact engine.
        """
        ...

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        ...

    @classmethod
    def load(cls, path: Path, dim: int, space: Space, facts: dict[str, Any], *, mmap: bool) -> Self:
        """Read what `save` wrote; any exception means that the file cannot be used.

        Args:
            path: the file.
            dim: width of a row.
            space: what to compare by.
            facts: what the engine said of itself last, search parameters among it.
            mmap: read rows from the file as they are needed, where the engine can.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Plain values kept beside the file: type, parameters, versions.

        `exact` (bool) says whether answers are; `tombstones` how many removed rows are still in
        the file.
        """
        ...


def begin(name: str, dim: int, space: Space, hints: BuildHints) -> Backend:
    """An empty engine.

    Raises:
        VectorIndexError, PluginError: as `find_backend`; or it cannot be made of these arguments.
    """
    kind = find_backend(name)
    try:
        return kind(dim, space, hints)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # in its own code
        entry = get_registry().index_backend(name)
        raise PluginError(f"{described(entry)} cannot be made: {error}") from error


def checked_found(
    name: str, found: object, shape: tuple[int, int], space: Space, limit: int | None = None
) -> tuple[Rows, Ids]:
    """Values and ids as an engine found them.

    Args:
        name: of the engine.
        found: what it returned.
        shape: how many queries, and how many rows for each.
        space: what it compares by.
        limit: above every id, where it is known.

    Raises:
        PluginError: they are no two arrays of that shape, not in order, or ids that none can be.
    """
    if isinstance(found, tuple) and len(found) == 2:
        values, ids = found
        arrays = all(isinstance(each, np.ndarray) and each.shape == shape for each in found)
        if arrays and values.dtype.kind == "f" and ids.dtype.kind == "i":
            before, after = values[:, :-1], values[:, 1:]
            back = after > before if space == "ip" else after < before
            ascending = np.sort(ids, axis=1)
            twice = ascending[:, 1:] == ascending[:, :-1]
            unknown = (ids < 0) | (False if limit is None else ids >= limit)
            if not (back.any() or twice.any() or unknown.any()):
                return values, ids
    entry = get_registry().index_backend(name)
    raise PluginError(
        f"what {described(entry)} found is not what was asked for: expected a tuple of values and "
        f"ids, arrays of shape {shape} of floats and of integers, best first, each row that there "
        "is at most once"
    )


def find_backend(name: str) -> type[Backend]:
    """Find a backend's class by name.

    Raises:
        VectorIndexError: no plugin offers it; the message lists what there is.
        PluginError: it cannot be loaded, or lacks methods.
    """
    registry = get_registry()
    try:
        entry = registry.index_backend(name)
    except PluginError as error:
        known = ", ".join(entry.spec.name for entry in registry.index_backends())
        raise VectorIndexError(f"{error} (index backends: {known})") from error
    backend: type[Backend] = entry.load()
    needed = [*(name for name in vars(Backend) if not name.startswith("_")), "__len__"]
    if lacking := [name for name in needed if not hasattr(backend, name)]:
        raise PluginError(f"{described(entry)} has no {', '.join(lacking)}")
    return backend
