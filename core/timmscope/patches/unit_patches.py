"""`UnitPatches`: the strongest patches of one unit, of some or of a whole layer, as a result.

Pictures are kept in as many pixels as a budget of memory allows: a layer of a thousand units is a
book of small pictures, one unit a sheet of large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from timmscope.drawing import sheet_figure
from timmscope.patches.cell_attributions import AT_ONCE, CellAttributions
from timmscope.patches.figure import SIDE, caption, grid_figure, joined, note_of, panels
from timmscope.patches.patch import Cut, Patch, cut_patches, fields_of, ranked
from timmscope.progress import task
from timmscope.results.csv_text import csv_text
from timmscope.results.result import Provenance, Result
from timmscope.store import StorePictures, TopEntry
from timmscope.store.pictures import MISSING
from timmscope_registry import StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from timmscope.models import HookedModel
    from timmscope.receptive_fields import FieldKind
    from timmscope.store import StoreLayer
    from timmscope.techniques import AttributionTechnique

BUDGET = 256 << 20
"""Bytes of all pictures of a result, about."""
_SIDE = 160
"""Height of a picture in pixels where several units share the figure, at most."""
_SMALLEST = 32
_ABREAST = 10
_LINES = {1: 14, 2: 8}
"""Lines of tiles on a page, by the pictures in a tile."""


@dataclass(frozen=True, kw_only=True)
class UnitPatches(Result):
    """The strongest patches of units of a layer, best first.

    Attributes:
        layer: name of the layer.
        units: `(U,)` int64.
        values: `(U, k)` float32, NaN where a unit has fewer patches.
        image_ids: `(U, k)` int64 ids in the store, -1 where there is none.
        positions: `(U, k, 2)` int64 row and column of the cell, -1 where there is none.
        boxes: `(U, k, 4)` int64 left, upper, right, lower edge of the patch in pixels of the image
            as the model sees it; -1 where there is none, or the image can no longer be read.
        names: `U` lists of the images' names.
        patches: `(U, k, 3, h, w)` uint8 pictures of the patches, enlarged or reduced to one size;
            where the field is most of the image, the image with field and cell drawn in; grey
            where the image can no longer be read.
        views: the same of what the unit answered to; None where nothing is known of that.
        wholes: of one unit the same of the images, with the patch drawn in; None of several.
        gridded: whether cells have a place in the image.
        note: which field the patches show, and what could not be shown.
    """

    layer: str
    units: Tensor
    values: Tensor
    image_ids: Tensor
    positions: Tensor
    boxes: Tensor
    names: list[list[str]]
    patches: Tensor
    views: Tensor | None
    wholes: Tensor | None
    gridded: bool
    note: str

    def figure(self) -> Figure:
        """One unit's patches in a grid, or the first page of units, one a row."""
        if len(self.units) == 1:
            return grid_figure(
                [self._tile(0, rank) for rank in range(len(self.names[0]))],
                self._captions(0, 0, len(self.names[0])),
                f"{self.layer}[{int(self.units[0])}] of {self._of}",
                self.note,
            )
        return self._page(0)

    @property
    def _of(self) -> str:
        """The model, where it was needed, else the store."""
        return self.provenance.model or Path(str(self.provenance.call.get("store"))).name

    def pictures(self) -> dict[str, Any]:
        """The other pages."""
        if len(self.units) == 1:
            return {}
        pages = range(1, math.ceil(len(self._lines()) / self._per_page))
        return {f"page-{number + 1:03d}": partial(self._page, number) for number in pages}

    def documents(self) -> dict[str, str]:
        """All patches as CSV."""
        return {"patches.csv": csv_text(list(self._rows()))}

    def summary(self) -> list[dict[str, Any]]:
        """A unit a row: its strongest patch, and how far the last one falls behind."""
        rows = []
        for place, unit in enumerate(self.units.tolist()):
            count = len(self.names[place])
            values = self.values[place].tolist()
            rows.append(
                {
                    "unit": unit,
                    "patches": count,
                    "images": len(set(self.image_ids[place, :count].tolist())),
                    "highest": values[0] if count else None,
                    "lowest": values[count - 1] if count else None,
                    "image": self.names[place][0] if count else None,
                    "position": self.positions[place, 0].tolist()
                    if count and self.gridded
                    else None,
                }
            )
        return rows

    def _rows(self) -> Iterator[dict[str, Any]]:
        for place, unit in enumerate(self.units.tolist()):
            for rank, name in enumerate(self.names[place]):
                row, column = self.positions[place, rank].tolist()
                edges = self.boxes[place, rank].tolist()
                left, upper, right, lower = (None,) * 4 if edges[2] < 0 else edges
                yield {
                    "unit": unit,
                    "rank": rank + 1,
                    "value": float(self.values[place, rank]),
                    "image_id": int(self.image_ids[place, rank]),
                    "image": name,
                    "row": row if self.gridded else None,
                    "column": column if self.gridded else None,
                    "left_px": left,
                    "upper_px": upper,
                    "right_px": right,
                    "lower_px": lower,
                }

    def _tile(self, place: int, rank: int) -> Tensor:
        """All pictures of a patch as one: side by side for one unit, else above each other."""
        every = (self.patches, self.views, self.wholes)
        shown = [pictures[place, rank] for pictures in every if pictures is not None]
        return joined(shown, down=len(self.units) > 1)

    @property
    def _per_page(self) -> int:
        return _LINES[1 if self.views is None else 2]

    def _lines(self) -> list[tuple[int, int, int]]:
        """Rows of the figure: unit, its first patch there, and the one after the last."""
        return [
            (place, start, min(start + _ABREAST, len(names)))
            for place, names in enumerate(self.names)
            for start in range(0, len(names), _ABREAST)
        ]

    def _captions(self, place: int, start: int, stop: int) -> list[str]:
        return [
            caption(
                float(self.values[place, rank]),
                tuple(self.positions[place, rank].tolist()) if self.gridded else (-1, -1),
                self.names[place][rank],
            )
            for rank in range(start, stop)
        ]

    def _page(self, number: int) -> Figure:
        every = self._lines()
        pages = max(1, math.ceil(len(every) / self._per_page))
        lines = every[number * self._per_page : (number + 1) * self._per_page]
        note = self.note
        if pages > 1:
            note += f"; page {number + 1} of {pages}"
        units = self.units.tolist()
        return sheet_figure(
            [self._tile(place, rank) / 255 for place, *span in lines for rank in range(*span)],
            [text for line in lines for text in self._captions(*line)],
            title=f"{self.layer} of {self._of}: {len(units)} units",
            row_labels=[f"unit {units[place]}" if not start else "" for place, start, _ in lines],
            row_lengths=[stop - start for _, start, stop in lines],
            note=note,
            cell_in=1.2,
        )


def unit_patches(
    layer: StoreLayer,
    load: Callable[[], HookedModel],
    units: Sequence[int],
    k: int,
    provenance: Callable[[HookedModel | None], Provenance],
    *,
    pictures: StorePictures,
    field: FieldKind = "spatial",
    view: AttributionTechnique | str | None = None,
    per_image: bool = True,
    where: str | npt.ArrayLike | None = None,
) -> UnitPatches:
    """Cut units' strongest patches and show each beside what the unit answered to there.

    Args:
        layer: of a store.
        load: gives the layer's model, and is called at most once, where it is needed.
        units: channels.
        k: patches of each.
        provenance: makes the result's, of the model if it was needed.
        pictures: the store's images.
        field, per_image, where: as for `top_patches`.
        view: an attribution, or its text. Where it does not fit the model, the note says so, and
            patches stand alone.

    Raises:
        as `top_patches`; StoreError also where no unit has a strongest image.
    """
    loaded: list[HookedModel] = []

    def model() -> HookedModel:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    entries = ranked(layer, model, units, k, per_image=per_image, where=where, pictures=pictures)
    count = max(map(len, entries))
    if not count:
        raise StoreError(
            f"no unit of {layer.name} has a finite value on the images that are chosen"
        )
    fields, silent = fields_of(layer, model, units, field, entries, pictures)
    views = None if view is None else CellAttributions(model(), layer.name, view)
    made = _Pictures(len(units), count, viewed=views is not None)
    with task("drawing patches", total=sum(map(len, entries))) as advance:
        for part in _batches(cut_patches(layer, entries, fields, pictures), AT_ONCE):
            seen: list[Tensor] | None = None
            if views is not None and not views.unfit:
                cells = [(units[cut.place], cut.patch.entry.position) for cut in part]
                values = [cut.patch.entry.value for cut in part]
                seen = views.of(torch.stack([cut.pixels for cut in part]), cells, values)
            for number, cut in enumerate(part):
                made.add(cut, None if seen is None else seen[number])
            advance(len(part))
    for place, found in enumerate(entries):
        for rank, entry in enumerate(found):
            if entry.image_id in pictures.lost:
                made.grey(place, rank)
    assert made.first is not None
    first = made.first
    notes = [note_of(first.field, size=first.whole.size, placed=len(units) == 1)]
    if len({each.size for each in fields}) > 1:
        notes[0] = f"{field} receptive fields, of each unit its own; below: the value at row,column"
    notes.append("one patch an image" if per_image else "of all positions")
    notes += _about_views(views, several=len(units) > 1, gridded=first.field.grid is not None)
    if silent:
        notes.append(f"{silent} units without a gradient on these images show the spatial field")
    if pictures.lost:
        notes.append(f"grey: {len(pictures.lost)} images that can no longer be read")
    if empty := sum(not found for found in entries):
        notes.append(f"{empty} units without a finite value are left out")
    return UnitPatches(
        provenance=provenance(loaded[0] if loaded else None),
        layer=layer.name,
        units=torch.tensor(list(units)),
        values=torch.tensor(_padded(entries, count, "value", float("nan")), dtype=torch.float32),
        image_ids=torch.tensor(_padded(entries, count, "image_id", -1)),
        positions=torch.tensor(_padded(entries, count, "position", (-1, -1))),
        boxes=torch.from_numpy(made.boxes),
        names=[[layer.store.images.paths[entry.image_id] for entry in found] for found in entries],
        patches=torch.from_numpy(made.kept[0]),
        views=torch.from_numpy(made.kept[1]) if views is not None and views.some else None,
        wholes=torch.from_numpy(made.kept[2]) if 2 in made.kept else None,
        gridded=first.field.grid is not None,
        note="; ".join(notes),
    )


class _Pictures:
    """Pictures and boxes of all patches, in the places of their units and ranks."""

    def __init__(self, units: int, count: int, *, viewed: bool) -> None:
        self._shape = (units, count)
        several = units > 1
        room = BUDGET / (units * count * 3 * (1 + viewed + (not several)))
        self._side = max(_SMALLEST, min(_SIDE if several else SIDE, int(math.sqrt(room))))
        self._placed = not several
        self.kept: dict[int, np.ndarray] = {}
        self.boxes = np.full((units, count, 4), -1, np.int64)
        self.first: Patch | None = None

    def add(self, cut: Cut, view: Tensor | None) -> None:
        """Draw a patch, and its view `(3, H, W)` in [0, 1] where there is one."""
        patch = cut.patch
        self.first = self.first or patch
        seen = None
        if view is not None:
            array = (view * 255).round().byte().permute(1, 2, 0).numpy()
            whole = Image.fromarray(array)
            seen = replace(patch, whole=whole, image=whole.crop(patch.box))
        drawn = panels(patch, seen, self._side, placed=self._placed)
        names = [0, *([1] if seen is not None else []), *([2] if self._placed else [])]
        for name, picture in zip(names, drawn, strict=False):
            if name not in self.kept:
                shape = (*self._shape, *picture.shape)
                self.kept[name] = np.full(shape, 255, np.uint8)
            self.kept[name][cut.place, cut.rank] = picture.numpy()
        self.boxes[cut.place, cut.rank] = patch.box

    def grey(self, place: int, rank: int) -> None:
        """Leave a patch without a picture, as its image can no longer be read."""
        for pictures in self.kept.values():
            pictures[place, rank] = round(255 * MISSING)


def _about_views(views: CellAttributions | None, *, several: bool, gridded: bool) -> list[str]:
    if views is None:
        return []
    if not views.some:
        return [f"without {views.title}: {views.refusal}"]
    place = "under" if several else "beside"
    cell = " at that cell" if gridded else ""
    grey = f", all grey where it finds nothing ({views.refused})" if views.refused else ""
    return [f"{place} each patch: {views.title} of the unit{cell}{grey}"]


def _batches(cuts: Iterable[Cut], size: int) -> Iterator[list[Cut]]:
    remaining = iter(cuts)
    while part := list(islice(remaining, size)):
        yield part


def _padded(
    entries: Sequence[Sequence[TopEntry]], count: int, name: str, fill: Any
) -> list[list[Any]]:
    return [
        [getattr(entry, name) for entry in found] + [fill] * (count - len(found))
        for found in entries
    ]
