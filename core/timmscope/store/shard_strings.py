"""`ShardStrings` is a column of text that stays on disk and is read shard by shard.

The names of a billion images take 50 GB. Only those of the shards that were used last are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from timmscope.images.tables import StringTable, TextColumn

from .shards import ShardFiles

_KEPT = 1 << 20
"""Number of strings that are kept in memory, about; at least one shard's."""


class ShardStrings(TextColumn):
    """A text column of the images of all shards, by image id.

    Reading raises `StoreCorrupted` if the shard is damaged, and `StoreError` if it is missing.
    """

    def __init__(self, files: ShardFiles, column: str) -> None:
        self._files = files
        self._column = column
        self._kept: OrderedDict[int, StringTable] = OrderedDict()

    def __len__(self) -> int:
        return self._files.manifest.images.count

    def __iter__(self) -> Iterator[str]:
        for number in range(self._files.manifest.shard_count):
            yield from self._shard(number)

    def take(self, indices: npt.ArrayLike) -> list[str]:
        """Return the strings at some indices, which must not be negative."""
        ids = np.asarray(indices, dtype=np.int64)
        numbers, places = np.divmod(ids, self._files.manifest.shard_size)
        found = np.empty(len(ids), object)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            found[here] = self._shard(number).take(places[here])
        return found.tolist()

    def _get(self, index: int) -> str:
        number, place = divmod(index, self._files.manifest.shard_size)
        return self._shard(number)[place]

    def _shard(self, number: int) -> StringTable:
        table = self._kept.pop(number, None)
        if table is None:
            table = StringTable.of_columns([self._files.column(number, self._column)])
            most = max(1, _KEPT // self._files.manifest.shard_size)
            while len(self._kept) >= most:
                with suppress(KeyError):  # another thread has just done so
                    self._kept.popitem(last=False)
        self._kept[number] = table
        return table
