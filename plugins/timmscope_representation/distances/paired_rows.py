"""Rows of several layers over the same images, aligned image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from timmscope import ParameterError, Rows
from timmscope_representation.moments import Numbers

_BATCH = 4096
_VALUES = 1 << 23
"""Values of all layers in one batch: 64 MiB."""


class PairedRows:
    """Rows of several layers, for the images that all of them have.

    Images of stores are matched by name, rows of arrays by position.

    Args:
        rows: layers of stores, or arrays.

    Attributes:
        rows: the rows.
        ids: for each layer `(n,)` ids of the shared images, all in the order of the first.

    Raises:
        ParameterError: no image is shared.
    """

    def __init__(self, rows: Sequence[Rows]) -> None:
        self.rows = list(rows)
        self.ids = _shared(self.rows)

    def __len__(self) -> int:
        return len(self.ids[0])

    def take(self, which: int, positions: Numbers | slice) -> Numbers:
        """Rows `(b, d)` of one layer for the shared images at some positions."""
        return self.rows[which].take(self.ids[which][positions])

    def batches(self, which: Sequence[int]) -> Iterator[list[Numbers]]:
        """Yield float64 rows `(b, d)` of each of some layers for the same b images."""
        width = sum(self.rows[layer].dim for layer in which)
        step = max(1, min(_BATCH, _VALUES // width))
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            yield [self.take(layer, part).astype(np.float64, copy=False) for layer in which]


def _shared(rows: list[Rows]) -> list[Numbers]:
    listings = [_listing(each) for each in rows]
    if len(set(listings)) == 1:
        common = rows[0].ids
        for each in rows[1:]:
            common = np.intersect1d(common, each.ids, assume_unique=True)
        found = [common] * len(rows)
    else:
        found = _by_name(rows, listings)
    if not len(found[0]):
        raise ParameterError("the layers share no image that all could read", parameter="where")
    return found


def _listing(rows: Rows) -> tuple[str, int]:
    """Key of the list of images."""
    if rows.layer is None:
        return ("array", len(rows.ids))
    images = rows.layer.store.manifest.images
    return (images.fingerprint, images.count)


def _by_name(rows: list[Rows], listings: list[tuple[str, int]]) -> list[Numbers]:
    """Ids of the images whose names occur in all; every list of images is read once."""
    if any(each.layer is None for each in rows):
        first, other = next((a, b) for a, b in pairwise(rows) if _differ(a, b))
        raise ParameterError(
            f"{first.title} and {other.title} cannot be matched by name: {len(first)} and "
            f"{len(other)} rows; give arrays of the same images, or stores",
            parameter="source",
        )
    tables: list[dict[str, int]] = []
    numbers: dict[tuple[tuple[str, int], bytes], int] = {}
    place = []
    for each, listing in zip(rows, listings, strict=True):
        key = (listing, each.ids.tobytes())
        if key not in numbers:
            numbers[key] = len(tables)
            tables.append(dict(zip(each.names(each.ids), each.ids.tolist(), strict=True)))
        place.append(numbers[key])
    for number, table in enumerate(tables):
        if not table.keys() & tables[0].keys():
            other = rows[place.index(number)]
            raise ParameterError(
                f"{rows[0].title} and {other.title} share no image: the names begin with "
                f"{next(iter(tables[0]))!r} and {next(iter(table))!r}; mine the same images "
                "with both models",
                parameter="source",
            )
    common = [name for name in tables[0] if all(name in table for table in tables)]
    ids = [np.array([table[name] for name in common], np.int64) for table in tables]
    return [ids[number] for number in place]


def _differ(first: Rows, second: Rows) -> bool:
    return _listing(first) != _listing(second)
