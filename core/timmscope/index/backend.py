"""`Backend` defines what a nearest-neighbour engine must implement, and functions find one by name.

`VectorIndex` handles stores, models, files and kinds of queries; a backend only holds rows and
finds the nearest. Plugins register backends through ``timmscope_index_backends``; ``flat``, ``ivf``
and ``hnsw`` are built in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from timmscope_registry import PluginError, VectorIndexError, get_registry
from timmscope_registry.contributions import missing_plugin
from timmscope_registry.plugin_faults import brief, fault

Rows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Space = Literal["ip", "l2"]
"""How a backend compares rows: by inner product or Euclidean distance. Cosine similarity is `ip`
between rows that `VectorIndex` has normalised."""


@dataclass(frozen=True, kw_only=True)
class BuildHints:
    """Information for a backend before its first row; a backend may ignore all of it.

    Attributes:
        count: largest number of rows that will be added; 0 if it is unknown.
        memory: bytes that the index may keep in memory while it is searched; None for no limit.
        seed: seed of everything random.
        scratch: folder for large temporary files; None for the system's.
    """

    count: int = 0
    memory: int | None = None
    seed: int = 0
    scratch: Path | None = None


class RecallBenchmark(NamedTuple):
    """Queries whose true neighbours are known, to measure recall with.

    A row that is found counts if its value is as good as that of the k-th true neighbour, so that
    of equal rows any may be found.

    Attributes:
        queries: `(Q, dim)`, rows of the index.
        query_ids: `(Q,)` their ids; a query itself does not count as its neighbour.
        kth_values: `(Q,)` value of the k-th true neighbour.
        k: number of neighbours.
        space: `ip` or `l2`.
    """

    queries: Rows
    query_ids: Ids
    kth_values: Rows
    k: int
    space: Space

    def part(self, some: slice) -> RecallBenchmark:
        """Return the benchmark with only some of the queries."""
        return self._replace(
            queries=self.queries[some],
            query_ids=self.query_ids[some],
            kth_values=self.kth_values[some],
        )

    def recall(self, values: Rows, ids: Ids) -> float:
        """Return the share of true neighbours among the k best of a search for k + 1."""
        others = ids != self.query_ids[:, None]
        first = others & (np.cumsum(others, axis=1) <= self.k)
        kth = self.kth_values[:, None]
        good = values >= kth if self.space == "ip" else values <= kth
        return float((good & first).sum() / (len(ids) * self.k))


class Backend(Protocol):
    """A nearest-neighbour engine over float32 rows with int64 ids.

    The caller guarantees that rows and queries are finite and have the right width, and that ids
    are unique and not negative.
    """

    def __init__(self, dim: int, space: Space, hints: BuildHints) -> None:
        """Create an empty engine for rows of width `dim` that are compared by `space`."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def ids(self) -> Ids:
        """Ids of the rows `(N,)`, in the order they were added."""
        ...

    def add(self, rows: Rows, ids: Ids) -> None:
        """Append a batch of rows `(n, dim)` under ids `(n,)`, none of which is in the engine."""
        ...

    def finish(self, held_out: Ids) -> None:
        """Train the engine, if it needs training, after all rows of a build have been added.

        It is called once; before it only `add` and `ids` are used. Later rows are added to the
        trained engine.

        Args:
            held_out: ids of rows that recall is measured with, so training should not use them.
        """
        ...

    def remove(self, ids: Ids) -> None:
        """Remove rows, all of which are in the engine. Their ids may be used again."""
        ...

    def compact(self) -> None:
        """Free the memory and disk space of removed rows."""
        ...

    def search(self, queries: Rows, k: int, allowed: Ids | None = None) -> tuple[Rows, Ids]:
        """Find the `k` best rows of each query.

        Args:
            queries: `(Q, dim)`.
            k: from 1 to the number of rows that may be found.
            allowed: ids of the rows that may be found, ascending and all in the engine; by default
                all rows.

        Returns:
            Values `(Q, k)` and ids `(Q, k)`, never fewer than `k`, best first and equal values by
            ascending id. Values are inner products, or Euclidean distances (not squared).
        """
        ...

    def rows(self, ids: Ids) -> Rows:
        """Return rows `(n, dim)`; raise `KeyError` for an id that is not in the engine."""
        ...

    def tune(self, benchmark: RecallBenchmark, recall: float, *, timed: bool) -> float:
        """Use the cheapest search parameters that reach a recall, or else those with the highest.

        Args:
            benchmark: the queries to measure recall with.
            recall: the wanted share of true neighbours.
            timed: measure the time of each search; otherwise estimate its cost, so that the choice
                is the same on every machine.

        Returns:
            The measured recall; 1 for an exact engine.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the engine to a file, and whatever else it needs to files beside it.

        The name of a file beside it is the whole name of the file, a dot and a suffix of letters,
        digits, ``-`` and ``_``: ``path.with_name(path.name + ".graph")``. All are renamed
        afterwards, recorded with their digests, and replaced and removed together.
        """
        ...

    @classmethod
    def load(cls, path: Path, dim: int, space: Space, facts: dict[str, Any], *, mmap: bool) -> Self:
        """Read the files that `save` wrote; any exception means that they cannot be used.

        Args:
            path: the file; those beside it have been compared with their digests too.
            dim: width of a row.
            space: how rows are compared.
            facts: the last value of `facts`, which includes the search parameters.
            mmap: read rows from the file only when they are needed, if the engine can.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return plain values that are kept beside the file: type, parameters, versions.

        `exact` (bool) says whether answers are exact, `tombstones` how many removed rows the file
        still holds.
        """
        ...


def new_backend(name: str, dim: int, space: Space, hints: BuildHints) -> Backend:
    """Create an empty engine.

    Raises:
        VectorIndexError: as `find_backend`.
        PluginError: as `find_backend`, or its class does not take these arguments.
    """
    kind = find_backend(name)
    try:
        return kind(dim, space, hints)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # the error is in the backend's own code
        entry = get_registry().index_backend(name)
        raise PluginError(fault(entry, f"cannot be made: {error}")) from error


_ORDERS = {"ip": "descending inner product", "l2": "ascending distance"}


def validated_hits(
    name: str, found: object, shape: tuple[int, int], space: Space, limit: int | None = None
) -> tuple[Rows, Ids]:
    """Return the values and ids that an engine found, if they are valid.

    Args:
        name: name of the engine.
        found: what its `search` returned.
        shape: number of queries, and of rows for each.
        space: how the engine compares rows.
        limit: a number above every id, if it is known.

    Raises:
        PluginError: `found` is not two arrays of that shape, is not in order, or has impossible
            ids.
    """

    def refused(did: str, wanted: str) -> PluginError:
        return PluginError(fault(get_registry().index_backend(name), did, expected=wanted))

    arrays = f"values and ids, arrays of shape {shape} of floats and of integers"
    if not (isinstance(found, tuple) and len(found) == 2):
        raise refused(f"found {brief(found)}", f"a tuple of {arrays}")
    if not all(isinstance(each, np.ndarray) and each.shape == shape for each in found):
        shapes = " and ".join(str(getattr(each, "shape", brief(each))) for each in found)
        raise refused(f"found {shapes}", arrays)
    values, ids = found
    if values.dtype.kind != "f" or ids.dtype.kind != "i":
        raise refused(f"found values of {values.dtype} and ids of {ids.dtype}", arrays)
    before, after = values[:, :-1], values[:, 1:]
    if np.isnan(values).any():
        raise refused("found values that are NaN", "numbers")
    if (after > before if space == "ip" else after < before).any():
        raise refused("found rows out of order", f"the best first, by {_ORDERS[space]}")
    ascending = np.sort(ids, axis=1)
    if (twice := ascending[:, 1:][ascending[:, 1:] == ascending[:, :-1]]).size:
        raise refused(f"found row {twice[0]} twice", "each row at most once")
    if (unknown := ids[(ids < 0) | (False if limit is None else ids >= limit)]).size:
        raise refused(f"found row {unknown[0]}, which there is not", "ids of rows in the index")
    return values, ids


def find_backend(name: str) -> type[Backend]:
    """Find a backend's class by name or registered id.

    Raises:
        VectorIndexError: no plugin registers it; the message lists the registered ones.
        PluginError: it cannot be loaded, or lacks methods.
    """
    registry = get_registry()
    try:
        entry = registry.index_backend(name)
    except PluginError as error:
        ids = [each.id for each in registry.index_backends()]
        if ":" in name and name not in ids:
            raise VectorIndexError(missing_plugin("index backend", name)) from error
        known = ", ".join(entry.spec.name for entry in registry.index_backends())
        raise VectorIndexError(f"{error} (index backends: {known})") from error
    backend: type[Backend] = entry.load()
    needed = [*(name for name in vars(Backend) if not name.startswith("_")), "__len__"]
    if lacking := [name for name in needed if not hasattr(backend, name)]:
        raise PluginError(fault(entry, f"has no {', '.join(lacking)}"))
    return backend
