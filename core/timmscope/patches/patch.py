"""The parts of images that drive units highest, cut out where the unit's cell looks.

A patch is the receptive field of the cell of the maximum, clipped to the image. Where that field is
the whole image, so is the patch, and `Patch.cell` says where in it the maximum is.

Patches of many units are cut image by image, so that every image is read once and only those at
hand are in memory.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from timmscope.images import Images
from timmscope.progress import task, track
from timmscope.store import Store, StoreLayer, StorePictures, TopEntry
from timmscope.store.model import store_model
from timmscope.store.top_k import top_entries
from timmscope_registry import ImageError, StoreError, UnsupportedModel

from .field_cache import cache_field, cached_field
from .strongest_cells import strongest_cells

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.receptive_fields import Box, FieldKind, ReceptiveField


@dataclass(frozen=True)
class Patch:
    """A patch of one of a unit's strongest images.

    Attributes:
        image: the cut-out, RGB.
        whole: the preprocessed image it was cut from.
        box: left, upper, right, lower edge of the patch in pixels of that image.
        cell: the same of the cell of the maximum: its share of the image, one stride wide.
        field: the receptive field, with its kind and size.
        entry: image id, value and cell.
        path: the image's name.
    """

    image: Image.Image
    whole: Image.Image
    box: Box
    cell: Box
    field: ReceptiveField
    entry: TopEntry
    path: str


class Cut(NamedTuple):
    """A patch, and whose it is.

    Attributes:
        place: of the unit among those asked for.
        rank: of the patch among the unit's, from 0.
        patch: the patch.
        pixels: `(C, H, W)` in [0, 1], the image that it was cut from.
    """

    place: int
    rank: int
    patch: Patch
    pixels: Tensor


def top_patches(
    store: Store,
    model: HookedModel | None,
    layer: str,
    unit: int,
    k: int = 9,
    *,
    field: FieldKind = "spatial",
    per_image: bool = True,
    where: str | npt.ArrayLike | None = None,
    images: Images | None = None,
) -> list[Patch]:
    """Cut a unit's `k` strongest patches, best first; reads only the images that they are of.

    Images that can no longer be read are left out, with a warning.

    Args:
        store: the store.
        model: its model, for the receptive field and other positions than the maxima; None loads it
            by its id where it is needed. Exact and spatial fields stay in the store once found.
        layer: name of a mined layer.
        unit: channel.
        k: how many.
        field: which receptive field is cut out: ``exact``, ``spatial`` or ``effective``, as in
            `receptive_field`. The effective one is measured on these very images, at the cells of
            their maxima: one size for all of them.
        per_image: one patch an image, at its maximum; else the strongest of all positions, of which
            several may lie in one image. These are exact: the images of the `k` highest maxima are
            run through the model again.
        where: only images that meet a condition; see `ImageTable.where`.
        images: the store's images; by default opened where they were.

    Raises:
        ImageError: none of the images can be read any more; of all positions, one of them.
        StoreError: no such layer or unit, or the store's images were in memory and `images` is
            missing, or a model that has to be given.
        ParameterError: no such kind of field, or the condition is wrong.
    """
    found = store.layer(layer)
    pictures = StorePictures(store, images)

    def load() -> HookedModel:
        return store_model(store, model)

    entries = ranked(found, load, [unit], k, per_image=per_image, where=where, pictures=pictures)
    fields, _ = fields_of(found, load, [unit], field, entries, pictures)
    cuts = track(cut_patches(found, entries, fields, pictures), "cutting patches", len(entries[0]))
    patches = [cut.patch for cut in sorted(cuts, key=lambda cut: cut.rank)]
    if pictures.lost:
        first = store.images.paths[min(pictures.lost)]
        warnings.warn(
            f"{len(pictures.lost)} of the {k} strongest images can no longer be read and are left "
            f"out, as {first}",
            stacklevel=2,
        )
    return patches


def ranked(
    layer: StoreLayer,
    load: Callable[[], HookedModel],
    units: Sequence[int],
    k: int,
    *,
    per_image: bool,
    where: str | npt.ArrayLike | None,
    pictures: StorePictures,
) -> list[list[TopEntry]]:
    """Of each unit its `k` strongest cells, one an image or of all positions."""
    for unit in units:
        if not 0 <= unit < layer.channels:
            raise StoreError(
                f"layer {layer.name} has units 0 to {layer.channels - 1}, there is no unit {unit}"
            )
    if per_image:
        return top_entries(layer, units, k, where)
    return strongest_cells(layer, load(), units, k, where, pictures)


def fields_of(
    layer: StoreLayer,
    load: Callable[[], HookedModel],
    units: Sequence[int],
    kind: FieldKind,
    entries: Sequence[Sequence[TopEntry]],
    pictures: StorePictures,
) -> tuple[list[ReceptiveField], int]:
    """Each unit's field, and how many of several units have no effective one.

    As the store has it, found by the model, or measured on those of the unit's images that can be
    read. A unit that is silent on all of them has no effective field: alone it is refused, among
    others it gets the spatial one.
    """
    if kind != "effective":
        return [_shared_field(layer, load, kind)] * len(units), 0
    from timmscope.receptive_fields import receptive_field

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
    layer: StoreLayer,
    entries: Sequence[Sequence[TopEntry]],
    fields: Sequence[ReceptiveField],
    pictures: StorePictures,
) -> Iterator[Cut]:
    """Cut all units' patches, in order of the images' ids; `pictures.lost` says which are left out.

    Raises:
        ImageError: none of the images can be read any more.
    """
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, found in enumerate(entries):
        for rank, entry in enumerate(found):
            wanted[entry.image_id].append((place, rank))
    paths = layer.store.images.paths
    for ids, images in pictures.batches(sorted(wanted)):
        for image, pixels in zip(ids.tolist(), images, strict=True):
            whole = _picture(pixels)
            for place, rank in wanted[image]:
                field, entry = fields[place], entries[place][rank]
                box, cell = field.box(entry.position), field.cell(entry.position)
                patch = Patch(whole.crop(box), whole, box, cell, field, entry, paths[image])
                yield Cut(place, rank, patch, pixels)


def _shared_field(
    layer: StoreLayer, load: Callable[[], HookedModel], kind: FieldKind
) -> ReceptiveField:
    """The field of a layer's cells that does not depend on images: kept by the store, or found."""
    from timmscope.receptive_fields import receptive_field

    if (kept := cached_field(layer.store, layer.name, kind)) is not None:
        return kept
    used = load()
    found = receptive_field(used, layer.name, kind)
    cache_field(layer.store, found, used)
    return found


def _picture(pixels: Tensor) -> Image.Image:
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
