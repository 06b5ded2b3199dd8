"""Finds the strongest cells of units over all positions of all images, by running few images again.

A store has one maximum per image and unit, so its top list has one cell per image. If cell p of
image X is among a unit's K strongest cells, the maximum of X is among its K strongest maxima,
because every image with a stronger maximum holds a cell stronger than p. So only the images of
these K maxima go through the model again, and all of their cells are ranked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timmscope.draws import image_positions
from timmscope.progress import task
from timmscope.store import StorePictures, TopEntry
from timmscope.store.top_k import top_entries

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.store import StoreLayer


def strongest_cells(
    layer: StoreLayer,
    model: HookedModel,
    units: Sequence[int],
    k: int,
    where: str | npt.ArrayLike | None,
    pictures: StorePictures,
) -> list[list[TopEntry]]:
    """Return each unit's `k` strongest cells, best first; ties by image id, then by position.

    Values are computed again and may differ in the last digits from the store's, which another
    copy of the model computed (in more digits if that ran in bfloat16).

    Raises:
        ImageError: one of the images no longer exists.
    """
    point = model.layers[layer.name]
    wanted: dict[int, list[int]] = defaultdict(list)  # image to places in `units`
    for place, entries in enumerate(top_entries(layer, units, k, where)):
        for entry in entries:
            wanted[entry.image_id].append(place)
    best = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)) for _ in units]
    seen: list[Tensor] = []

    def keep(output: Tensor) -> None:
        seen.append(point.spatial(output).detach().flatten(2).float().cpu())  # (B, C, P)

    with task("ranking all positions", total=len(wanted)) as advance:
        for ids, images in pictures.whole(sorted(wanted)):
            seen.clear()
            with torch.no_grad(), image_positions(ids.tolist()), model.watch({layer.name: keep}):
                model(images.to(model.device))
            for image, maps in zip(ids.tolist(), seen[0], strict=True):
                for place in wanted[image]:
                    cells = maps[units[place]].numpy()
                    best[place] = _merge(best[place], image, cells, k)
            advance(len(ids))
    return [
        [
            TopEntry(image, value, layer.record.cell(cell))
            for image, cell, value in zip(*(part.tolist() for part in found), strict=True)
        ]
        for found in best
    ]


def _merge(
    best: tuple[np.ndarray, np.ndarray, np.ndarray], image: int, cells: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, cells and values of the k strongest cells after adding those of an image."""
    at = np.flatnonzero(np.isfinite(cells))
    ids = np.append(best[0], np.full(len(at), image))
    places, values = np.append(best[1], at), np.append(best[2], cells[at])
    order = np.lexsort((places, ids, -values))[:k]
    return ids[order], places[order], values[order]
