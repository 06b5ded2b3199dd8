"""Cuts out the patches of images that activate units most: the receptive fields of their cells.

A patch is the receptive field of the cell of the maximum, clipped to the image. If the field is the
whole image, the patch is too, and `Patch.cell` gives the place of the maximum.

Patches of several units are cut image by image, so that every image is read once and only one batch
of images is in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from timmscope.progress import task
from timmscope.receptive_fields import receptive_field
from timmscope.store import StoreLayer, StorePictures, TopEntry
from timmscope.store.top_k import top_entries
from timmscope_registry import ImageError, StoreError, UnsupportedModel

from .field_cache import cache_field, cached_field
from .strongest_cells import strongest_cells

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.receptive_fields import Box, FieldKind, ReceptiveField


@dataclass(frozen=True)
class Patch:
    """One of a unit's strongest cells, in its image.

    Attributes:
        place: index of the unit in the list of requested units.
        rank: rank among the unit's patches, from 0.
        entry: image id, value and cell.
        field: the receptive field, with its kind and size.
        whole: the image as the model sees it, RGB.
        pixels: the same image, `(C, H, W)` in [0, 1].
    """

    place: int
    rank: int
    entry: TopEntry
    field: ReceptiveField
    whole: Image.Image
    pixels: Tensor

    @property
    def box(self) -> Box:
        """Left, upper, right and lower edge of the patch in pixels of the image."""
        return self.field.box(self.entry.position)

    @property
    def cell(self) -> Box:
        """The same edges of the cell of the maximum, which is one stride wide."""
        return self.field.cell(self.entry.position)


def rank_entries(
    layer: StoreLayer,
    load: Callable[[], HookedModel],
    units: Sequence[int],
    k: int,
    *,
    per_image: bool,
    where: str | npt.ArrayLike | None,
    pictures: StorePictures,
) -> list[list[TopEntry]]:
    """Return each unit's `k` strongest cells: at most one per image, or of all positions.

    Raises:
        StoreError: the layer has no such unit.
    """
    for unit in units:
        if not 0 <= unit < layer.channels:
            raise StoreError(
                f"layer {layer.name} has units 0 to {layer.channels - 1}, there is no unit {unit}"
            )
    if per_image:
        return top_entries(layer, units, k, where)
    return strongest_cells(layer, load(), units, k, where, pictures)


def unit_fields(
    layer: StoreLayer,
    load: Callable[[], HookedModel],
    units: Sequence[int],
    kind: FieldKind,
    entries: Sequence[Sequence[TopEntry]],
    pictures: StorePictures,
) -> tuple[list[ReceptiveField], int]:
    """Return each unit's field, and how many units got the spatial field instead of the effective.

    Exact and spatial fields come from the store's cache or the model. Effective fields are measured
    on those of the unit's images that can be read. A unit without a gradient on all of them has no
    effective field, which is an error for a single unit.
    """
    if kind != "effective":
        return [_shared_field(layer, load, kind)] * len(units), 0
    used = load()
    fields: list[ReceptiveField] = []
    silent = 0
    with task("effective fields", total=len(units)) as advance:
        for unit, found in zip(units, entries, strict=True):
            distinct = {entry.image_id: entry.position for entry in reversed(found)}
            parts: list[tuple[npt.NDArray[np.int64], Tensor]] = []
            try:
                parts += pictures.batches(list(distinct))
                if not parts:
                    raise UnsupportedModel(f"{layer.name}[{unit}] has no strongest image")
                fields.append(
                    receptive_field(
                        used,
                        layer.name,
                        kind,
                        torch.cat([pixels for _, pixels in parts]),
                        unit=unit,
                        positions=[distinct[image] for ids, _ in parts for image in ids.tolist()],
                    )
                )
            except (UnsupportedModel, ImageError):
                if len(units) == 1 and parts:
                    raise
                fields.append(_shared_field(layer, load, "spatial"))
                silent += 1
            advance(1)
    return fields, silent


def cut_patches(
    entries: Sequence[Sequence[TopEntry]],
    fields: Sequence[ReceptiveField],
    pictures: StorePictures,
) -> Iterator[Patch]:
    """Cut all units' patches in order of the images' ids, without the images in `pictures.lost`.

    Raises:
        ImageError: none of the images can be read any more.
    """
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, found in enumerate(entries):
        for rank, entry in enumerate(found):
            wanted[entry.image_id].append((place, rank))
    for ids, images in pictures.batches(sorted(wanted)):
        for image, pixels in zip(ids.tolist(), images, strict=True):
            whole = to_pil(pixels)
            for place, rank in wanted[image]:
                yield Patch(place, rank, entries[place][rank], fields[place], whole, pixels)


def to_pil(pixels: Tensor) -> Image.Image:
    """Convert pixels `(C, H, W)` in [0, 1] to an 8-bit RGB image."""
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")


def _shared_field(
    layer: StoreLayer, load: Callable[[], HookedModel], kind: FieldKind
) -> ReceptiveField:
    """Return the exact or spatial field of a layer from the store's cache, or compute it."""
    if (cached := cached_field(layer.store, layer.name, kind)) is not None:
        return cached
    model = load()
    field = receptive_field(model, layer.name, kind)
    cache_field(layer.store, field, model)
    return field
