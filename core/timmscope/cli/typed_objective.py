"""Reads an objective that a user types; only such a text may open files and stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timmscope.objectives import Objective
    from timmscope.objectives.match import Distance


def typed_objective(text: str) -> Objective:
    """Return the objective of a text from the command line.

    Raises:
        ObjectiveError: the text is none, or a file that it names cannot be read.
        StoreError: the store that it names cannot be opened, or has no such row.
    """
    from timmscope.objectives import parse_objective

    return parse_objective(text, files=True, rows=_rows)


def _rows(store: str, layer: str, ids: Sequence[int], distance: Distance) -> Objective:
    from timmscope.store import Store

    return Store.open(store).layer(layer).match(ids, distance=distance)
