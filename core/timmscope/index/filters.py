"""Resolves which rows a search may find, from a condition, a mask or a list of ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store

Where = str | npt.ArrayLike
"""A condition as ``store.images.where`` takes it, a mask over ids, or ids."""


def allowed_ids(where: Where, ids: Ids, store: Store | None) -> Ids:
    """Return the ids of the index that a search may find, ascending.

    Args:
        where: a condition as text, a bool mask `(M,)` whose entry number i is for id i, or ids
            `(n,)`; ids that the index does not hold are ignored.
        ids: ids of the index.
        store: the store to whose images a condition applies.

    Raises:
        VectorIndexError: `where` is a condition without a store, or a mask of the wrong length.
    """
    ids = np.sort(ids)
    if isinstance(where, str):
        if store is None:
            raise VectorIndexError(
                f"where={where!r} is about the images of a store, and this index is of an array: "
                "pass a mask or ids"
            )
        images: Any = store.images
        where = images.where(where)
    chosen = np.asarray(where)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "biu"):
        raise VectorIndexError(
            f"where has shape {chosen.shape} and type {chosen.dtype}: expected a condition as "
            "text, a mask of bools, or ids"
        )
    if chosen.dtype != bool:
        return np.asarray(ids[np.isin(ids, chosen)])
    needed = int(ids[-1]) + 1 if len(ids) else 0
    if len(chosen) != len(store) if store is not None else len(chosen) < needed:
        expected = f"{len(store)} images" if store is not None else f"ids up to {needed - 1}"
        raise VectorIndexError(f"where is a mask of {len(chosen)} entries for {expected}")
    return np.asarray(ids[chosen[ids]])
