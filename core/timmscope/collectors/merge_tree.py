"""`MergeTree` merges the states of all shards in an order that depends only on their number.

Floating-point sums depend on the order of the additions. Here it is that of a binary tree over the
shards' numbers: shards 0 and 1, then 2 and 3, then both pairs, and so on. So processes that merge
aligned runs of 2ⁿ shards in parallel get the same bits as one that merges all of them.
"""

from __future__ import annotations

from .base import Collector, State


class MergeTree:
    """Merges states that are added in the order of the shards; keeps log₂ of their number.

    Args:
        empty: a collector without a state.
    """

    def __init__(self, empty: Collector) -> None:
        self.empty = empty
        self._count = 0
        self._pending: list[Collector] = []

    def add(self, state: State) -> None:
        """Add the state of the next shard."""
        part = self.empty.fresh()
        part.load(state)
        self._count += 1
        pairs = (self._count & -self._count).bit_length() - 1  # trailing zeros in binary
        for _ in range(pairs):
            left = self._pending.pop()
            left.merge(part)
            part = left
        self._pending.append(part)

    def merged(self) -> Collector:
        """Return the merged state; nothing can be added afterwards."""
        whole = self._pending.pop() if self._pending else self.empty.fresh()
        while self._pending:
            left = self._pending.pop()
            left.merge(whole)
            whole = left
        return whole
