"""Which rows a search may find: a condition in words, a mask or a list of ids."""

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
    """Ids of the index that a search may find, ascending.

    Args:
        where: a text, a bool mask `(M,)` whose entry number i is about id i, or ids `(n,)`, of
            which those that the index does not hold do not matter.
        ids: of the index.
        store: whose images a text is about.

    Raises:
        VectorIndexError: a text without a store, or a mask of the wrong length.
    """
    ids = np.sort(ids)
    if isinstance(where, str):
        if store is None:
            raise VectorIndexError(
                f"where={where!r} is about the images of a store, and this index is of an array: "
                "give a mask or ids"
            )
        images: Any = store.images
        where = images.where(where)
    chosen = np.asarray(where)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "biu"):
        raise VectorIndexError(
            f"where has shape {chosen.shape} and type {chosen.dtype}: expected a condition in "
            "words, a mask of bools or ids"
        )
    if chosen.dtype != bool:
        return np.asarray(ids[np.isin(ids, chosen)])
    needed = int(ids[-1]) + 1 if len(ids) else 0
    if len(chosen) != len(store) if store is not None else len(chosen) < needed:
        expected = f"{len(store)} images" if store is not None else f"ids up to {needed - 1}"
        raise VectorIndexError(f"where is a mask of {len(chosen)} entries for {expected}")
    return np.asarray(ids[chosen[ids]])
