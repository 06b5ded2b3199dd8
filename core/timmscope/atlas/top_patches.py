"""`TopPatches` cuts the top patches of a layer's units, and draws those of a unit as one."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from timmscope.patches.figure import field_text, panels
from timmscope.patches.patch import cut_patches, rank_entries, unit_fields
from timmscope.store import StorePictures
from timmscope.store.pictures import MISSING
from timmscope_registry import ImageError, StoreError, UnsupportedModel

from .result import grid

if TYPE_CHECKING:
    from timmscope.images import Images
    from timmscope.models import HookedModel
    from timmscope.receptive_fields import FieldKind, ReceptiveField
    from timmscope.store import StoreLayer, TopEntry

SIDE = 128
"""Height of a patch in pixels."""
_QUALITY = 90
_NONE = (-1,) * 4


class TopPatches:
    """The top patches of units, one per image, as `timmscope top` shows them.

    Args:
        layer: layer of the store.
        load: returns the layer's model.
        k: number of patches per unit; 0 for none.
        field: receptive field to cut out.
        images: where the store's images are now; by default where they were during the pass.

    Raises:
        ImageError: the images are not at `images`.
        StoreError: the store is not complete, or not trusted.
    """

    def __init__(
        self,
        layer: StoreLayer,
        load: Callable[[], HookedModel],
        k: int,
        field: FieldKind,
        images: Images | None = None,
    ) -> None:
        self._layer, self._load, self._field, self._k = layer, load, field, k
        self._pictures = _pictures(layer, images) if k else None
        self._entries: dict[int, list[TopEntry]] = {}

    @property
    def shown(self) -> bool:
        """Whether there are patches."""
        return self._pictures is not None

    def rank(self, units: Sequence[int]) -> None:
        """Find the images of units, together, because that may read all rows of the store."""
        if self._pictures is not None and units:
            ranked = rank_entries(
                self._layer, self._load, units, self._k,
                per_image=True, where=None, pictures=self._pictures,
            )  # fmt: skip
            self._entries = dict(zip(units, ranked, strict=True))

    def of_unit(self, unit: int) -> tuple[dict[str, Any], bytes | None]:
        """Return the facts of a unit's patches, and one picture of all; None without any."""
        found = self._entries.get(unit, [])
        if self._pictures is None or not found:
            return _facts([], [], None, [], set()), None
        field = self._field_of(unit, found)
        drawn = [self._grey(field)] * len(found)
        known = len(self._pictures.lost)
        try:
            for patch in cut_patches([found], [field], self._pictures):
                pixels = panels(patch, None, SIDE, placed=False)[0]
                drawn[patch.rank] = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        except ImageError:  # none of the unit's images can be read
            if len(self._pictures.lost) == known and not self._all_lost(found):
                raise
        names = [self._layer.store.images.paths[entry.image_id] for entry in found]
        lost = self._pictures.lost & {entry.image_id for entry in found}
        return _facts(found, names, field, drawn, lost), self._joined(drawn)

    def _all_lost(self, entries: Sequence[TopEntry]) -> bool:
        assert self._pictures is not None, "only read images are lost"
        return {entry.image_id for entry in entries} <= self._pictures.lost

    def _field_of(self, unit: int, entries: list[TopEntry]) -> ReceptiveField:
        assert self._pictures is not None, "a field is only asked for patches"
        arguments = self._layer, self._load, [unit]
        try:
            fields, _ = unit_fields(*arguments, self._field, [entries], self._pictures)
        except (UnsupportedModel, ImageError):  # a unit without a gradient on these images
            if self._field != "effective":
                raise
            fields, _ = unit_fields(*arguments, "spatial", [entries], self._pictures)
        return fields[0]

    def _grey(self, field: ReceptiveField) -> Image.Image:
        height, width = field.image_size
        return Image.new("RGB", (round(width * SIDE / height), SIDE), (round(255 * MISSING),) * 3)

    def _joined(self, drawn: Sequence[Image.Image]) -> bytes:
        rows, columns = grid(self._k)
        width, height = drawn[0].size
        sheet = Image.new("RGB", (columns * width, rows * height), "white")
        for rank, picture in enumerate(drawn):
            sheet.paste(picture, (rank % columns * width, rank // columns * height))
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=_QUALITY, method=4)
        return buffer.getvalue()


def _facts(
    entries: Sequence[TopEntry],
    names: list[str],
    field: ReceptiveField | None,
    drawn: Sequence[Image.Image],
    lost: set[int],
) -> dict[str, Any]:
    """Return what the record of a unit holds of its patches."""
    boxes = [
        _NONE if field is None or entry.image_id in lost else field.box(entry.position)
        for entry in entries
    ]
    return {
        "image_ids": [entry.image_id for entry in entries],
        "values": [entry.value for entry in entries],
        "positions": [list(entry.position) for entry in entries],
        "boxes": [list(map(int, np.asarray(box))) for box in boxes],
        "names": names,
        "field": "" if field is None else field_text(field, placed=False),
        "lost": sorted(lost),
    }


def _pictures(layer: StoreLayer, images: Images | None) -> StorePictures | None:
    """Open the store's images; None, with a warning, if they are gone from where they were."""
    store = layer.store
    if images is None and store.manifest.images.location:
        store.require_trust()
    try:
        return StorePictures(store, images)
    except (ImageError, StoreError) as error:
        if images is not None:
            raise
        warnings.warn(
            f"the atlas of {layer.name} has no patches, because the images of {store.path.name} "
            f"cannot be read: {error}",
            stacklevel=5,
        )
        return None
