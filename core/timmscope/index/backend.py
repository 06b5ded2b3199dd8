"""What an index engine must offer, and how one is found.

`VectorIndex` knows stores, models, files and what is searched for; a backend only holds rows and
finds the nearest. A plugin offers one through ``timmscope_index_backends``; ``flat`` is built in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from timmscope_registry import PluginError, VectorIndexError, get_registry

Rows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Space = Literal["ip", "l2"]
"""What a backend compares by. Cosine is `ip` between rows that `VectorIndex` has normalised."""


class Backend(Protocol):
    """A nearest-neighbour engine over float32 rows with int64 ids.

    Rows and queries come finite and of the right width; ids come unique and not negative.
    Engines that must see data before they can take rows train inside the first `add`.
    """

    def __init__(self, dim: int, space: Space, *, capacity: int = 0) -> None:
        """Begin empty.

        Args:
            dim: width of a row.
            space: what to compare by.
            capacity: how many rows will come, where it is known; a hint.
        """
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def ids(self) -> Ids:
        """Ids of the rows `(N,)`, in the order they were added."""
        ...

    def add(self, rows: Rows, ids: Ids) -> None:
        """Append rows `(n, dim)` under ids `(n,)`; called once a batch."""
        ...

    def search(self, queries: Rows, k: int) -> tuple[Rows, Ids]:
        """Find the `k` best rows of each query, where ``1 <= k <= len(self)``.

        Returns:
            Values `(Q, k)` and ids `(Q, k)`, best first and equal values by ascending id: inner
            products, or Euclidean distances (not squared).
        """
        ...

    def rows(self, ids: Ids) -> Rows:
        """Rows `(n, dim)` of ids that are all present."""
        ...

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        ...

    @classmethod
    def load(cls, path: Path, dim: int, space: Space) -> Self:
        """Read what `save` wrote; any exception means that the file cannot be used."""
        ...

    def facts(self) -> dict[str, Any]:
        """Plain values worth keeping beside the file: versions, settings, measured recall."""
        ...


def find_backend(name: str) -> type[Backend]:
    """Find a backend's class by name.

    Raises:
        VectorIndexError: no plugin offers it; the message lists what there is.
    """
    registry = get_registry()
    try:
        entry = registry.index_backend(name)
    except PluginError as error:
        known = ", ".join(entry.spec.name for entry in registry.index_backends())
        raise VectorIndexError(f"{error} (index backends: {known})") from error
    backend: type[Backend] = entry.load()
    return backend
