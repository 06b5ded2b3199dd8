"""Disjoint sets of the numbers 0 to n - 1, which join many pairs at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class DisjointSets:
    """Union-find in one array of `n` integers; the root of a set is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent: Ids = np.arange(count, dtype=np.int64)

    def roots(self, members: npt.NDArray[Any] | None = None) -> Ids:
        """For each of some members, by default all, the smallest member of its set."""
        if members is None:
            members = np.arange(len(self._parent))
        found = self._parent[members]
        while (found != (further := self._parent[found])).any():
            found = further
        self._parent[members] = found
        return found

    def join(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
        """Make one set of the sets of each pair `(first[k], second[k])`."""
        while len(first):
            one, other = self.roots(first), self.roots(second)
            apart = one != other
            first, second, one, other = first[apart], second[apart], one[apart], other[apart]
            # Each root joins the smallest one it is paired with; the loop repeats for the others.
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))
