"""The parts of images that drive a unit highest, cut out where the unit's cell looks.

A patch is the receptive field of the cell of the maximum, clipped to the image. Where that field is
the whole image, so is the patch, and `Patch.cell` says where in it the maximum is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from timmscope.images import Images
from timmscope.store import Store, TopEntry

from .kept_fields import keep_field, kept_field
from .mine import model_of

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


def top_patches(
    store: Store,
    model: HookedModel | None,
    layer: str,
    unit: int,
    k: int = 9,
    *,
    field: FieldKind = "spatial",
    where: str | npt.ArrayLike | None = None,
    images: Images | None = None,
) -> list[Patch]:
    """Cut the patches of a unit's `k` strongest images, best first; reads those images only.

    Args:
        store: the store.
        model: its model, for the receptive field; None loads it by its id where the store does
            not know the field yet. Exact and spatial fields stay in the store once found.
        layer: name of a mined layer.
        unit: channel.
        k: how many.
        field: which receptive field is cut out: ``exact``, ``spatial`` or ``effective``, as in
            `receptive_field`. The effective one is measured on these very images, at the cells of
            their maxima: one size for all of them.
        where: only images that meet a condition; see `ImageTable.where`.
        images: the store's images; by default opened where they were.

    Raises:
        ImageError: the images are no longer there.
        StoreError: no such layer or unit, or the store's images were in memory and `images` is
            missing, or a model that has to be given.
        ParameterError: no such kind of field, or the condition is wrong.
    """
    from timmscope.models import Preprocessing

    source = store.source(images)
    entries = store.layer(layer).top(unit, k, where=where)
    if not entries:
        return []
    prepare = Preprocessing.restored(store.manifest.model.preprocessing)
    pixels = torch.stack([prepare(source.load(entry.image_id)) for entry in entries])
    pixels = pixels.clamp(0, 1)  # (k, C, H, W)
    found = _field(store, model, layer, unit, field, pixels, entries)
    patches = []
    for entry, image in zip(entries, pixels, strict=True):
        whole, box = _picture(image), found.box(entry.position)
        cell = found.cell(entry.position)
        path = source.paths[entry.image_id]
        patches.append(Patch(whole.crop(box), whole, box, cell, found, entry, path))
    return patches


def _field(
    store: Store,
    model: HookedModel | None,
    layer: str,
    unit: int,
    kind: FieldKind,
    pixels: Tensor,
    entries: list[TopEntry],
) -> ReceptiveField:
    """The layer's field: as the store has it, found by the model, or measured on these images."""
    from timmscope.receptive_fields import receptive_field

    if kind != "effective" and (kept := kept_field(store, layer, kind)) is not None:
        return kept
    used = model or model_of(store.manifest)
    if kind == "effective":
        cells = [entry.position for entry in entries]
        return receptive_field(used, layer, kind, pixels, unit=unit, positions=cells)
    found = receptive_field(used, layer, kind)
    keep_field(store, found, used)
    return found


def _picture(pixels: Tensor) -> Image.Image:
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
