"""`UnitPatches` is the result that holds the strongest patches of one or more units of a layer.

All pictures of a result share a budget of memory: those of one unit are large, those of a thousand
units are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from timmscope.drawing import sheet_figure
from timmscope.progress import task
from timmscope.results import Provenance, Result, csv_text
from timmscope.store import StorePictures, TopEntry
from timmscope.store.pictures import MISSING
from timmscope_registry import StoreError

from .cell_attributions import AT_ONCE, CellAttributions
from .figure import SIDE, caption, grid_figure, joined, note_of, panels
from .patch import Patch, cut_patches, fields_of, ranked, to_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from timmscope.models import HookedModel
    from timmscope.receptive_fields import FieldKind, ReceptiveField
    from timmscope.store import StoreLayer
    from timmscope.techniques import AttributionTechnique

BUDGET = 256 << 20
"""Bytes of all pictures of a result, about."""
_SIDE = 160
"""Height of a picture in pixels where several units share the figure, at most."""
_SMALLEST = 32
_EDGES = ("left_px", "upper_px", "right_px", "lower_px")
_ABREAST = 10
_LINES = {1: 14, 2: 8}
"""Lines of tiles on a page, by the pictures in a tile."""


@dataclass(frozen=True, kw_only=True)
class UnitPatches(Result):
    """The strongest patches of units of a layer, best first.

    Attributes:
        layer: name of the layer.
        model: id of the model that the store was mined with.
        units: `(U,)` int64.
        values: `(U, k)` float32, NaN where a unit has fewer patches.
        image_ids: `(U, k)` int64 ids in the store, -1 where there is none.
        positions: `(U, k, 2)` int64 row and column of the cell, -1 where there is none.
        boxes: `(U, k, 4)` int64 left, upper, right, lower edge of the patch in pixels of the image
            as the model sees it; -1 where there is none, or the image can no longer be read.
        cells: `(U, k, 4)` int64 the same edges of the cell itself, one stride wide; -1 where there
            is none.
        names: `U` lists of the images' names.
        patches: `(U, k, 3, h, w)` uint8 pictures of the patches, enlarged or reduced to one size;
            where the field is most of the image, the image with field and cell drawn in; grey
            where the image can no longer be read.
        views: the same of what activated the unit; None where nothing is known of that.
        wholes: of one unit the same of the images, with the patch drawn in; None of several.
        fields: of each unit its receptive field: ``kind``, ``size_px`` (height and width),
            ``stride_px`` (None where cells have no place in the image) and
            ``unknown_operations``, for which no rule is known.
        notes: which field the patches show, then how they were chosen, and what could not be shown.
    """

    layer: str
    model: str
    units: Tensor
    values: Tensor
    image_ids: Tensor
    positions: Tensor
    boxes: Tensor
    cells: Tensor
    names: list[list[str]]
    patches: Tensor
    views: Tensor | None
    wholes: Tensor | None
    fields: list[dict[str, Any]]
    notes: list[str]

    def figure(self) -> Figure:
        """One unit's patches in a grid, or the first page of several units, one row per unit."""
        if len(self.units) == 1:
            return grid_figure(
                [self._tile(0, rank) for rank in range(len(self.names[0]))],
                self._captions(0, 0, len(self.names[0])),
                f"{self.layer}[{int(self.units[0])}] of {self.model}",
                self.note,
            )
        return self._page(0)

    @property
    def note(self) -> str:
        """The notes as one text."""
        return "; ".join(self.notes)

    @property
    def gridded(self) -> bool:
        """Whether cells have a place in the image."""
        return self.fields[0]["stride_px"] is not None

    def pictures(self) -> dict[str, Any]:
        """The other pages."""
        if len(self.units) == 1:
            return {}
        pages = range(1, math.ceil(len(self._lines()) / self._per_page))
        return {f"page-{number + 1:03d}": partial(self._page, number) for number in pages}

    def documents(self) -> dict[str, str]:
        """All patches as CSV."""
        return {"patches.csv": csv_text(self.table())}

    def summary(self) -> list[dict[str, Any]]:
        """One row per unit: its strongest patch, and how far the last one falls behind."""
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

    def table(self) -> list[dict[str, Any]]:
        """One row per patch: unit, rank, value, image, cell and edges, None where there is none."""
        return [
            {
                "unit": unit,
                "rank": rank + 1,
                "value": float(self.values[place, rank]),
                "image_id": int(self.image_ids[place, rank]),
                "image": name,
                **_named(("row", "column"), self.positions[place, rank], self.gridded),
                **_named(_EDGES, self.boxes[place, rank], bool(self.boxes[place, rank, 2] >= 0)),
            }
            for place, unit in enumerate(self.units.tolist())
            for rank, name in enumerate(self.names[place])
        ]

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
            title=f"{self.layer} of {self.model}: {len(units)} units",
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
    provenance: Provenance,
    *,
    pictures: StorePictures,
    field: FieldKind = "spatial",
    view: AttributionTechnique | str | None = None,
    per_image: bool = True,
    where: str | npt.ArrayLike | None = None,
) -> UnitPatches:
    """Cut units' strongest patches and show each beside what activated the unit there.

    Args:
        layer: of a store.
        load: gives the layer's model, and is called at most once, where it is needed.
        units: channels.
        k: patches of each.
        provenance: of the result.
        pictures: the store's images.
        field: which receptive field is cut out: ``exact``, ``spatial`` or ``effective``, as in
            `receptive_field`. The effective one is measured on each unit's images, at the cells of
            their maxima. Exact and spatial fields stay in the store once found.
        view: an attribution, or its text. Where it does not fit the model, the note says so, and
            patches stand alone.
        per_image: one patch per image, at its maximum; else the strongest of all positions, of
            which several may lie in one image. These are exact: the images of the `k` highest
            maxima are run through the model again.
        where: only images that meet a condition; see `ImageTable.where`.

    Raises:
        ImageError: none of the images can be read any more; of all positions, one of them.
        StoreError: there is no such unit, or no unit has a strongest image.
        ParameterError: the condition is wrong, or `view` is no attribution.
        UnsupportedModel: a single unit has no effective field on these images.
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
        for part in _batches(cut_patches(entries, fields, pictures), AT_ONCE):
            seen: Sequence[Tensor | None] = [None] * len(part)
            if views is not None and not views.unfit:
                cells = [(units[patch.place], patch.entry.position) for patch in part]
                values = [patch.entry.value for patch in part]
                seen = views.of(torch.stack([patch.pixels for patch in part]), cells, values)
            for patch, explained in zip(part, seen, strict=True):
                made.add(patch, explained)
            advance(len(part))
    for place, found in enumerate(entries):
        for rank, entry in enumerate(found):
            if entry.image_id in pictures.lost:
                made.grey(place, rank)

    def padded(value: Callable[[ReceptiveField, TopEntry], Any], fill: Any) -> Tensor:
        """A value of each patch, `(U, k, …)`."""
        rows = [
            [value(field, entry) for entry in found] + [fill] * (count - len(found))
            for field, found in zip(fields, entries, strict=True)
        ]
        return torch.tensor(rows)

    none = (-1,) * 4
    first = fields[0]
    notes = [note_of(first, placed=len(units) == 1)]
    if len({each.size for each in fields}) > 1:
        notes[0] = f"{field} receptive fields, of each unit its own; below: the value at row,column"
    notes.append("one patch per image" if per_image else "of all positions")
    notes += _about_views(views, several=len(units) > 1, gridded=first.grid is not None)
    if silent:
        notes.append(f"{silent} units without a gradient on these images show the spatial field")
    if pictures.lost:
        notes.append(f"grey: {len(pictures.lost)} images that can no longer be read")
    if empty := sum(not found for found in entries):
        notes.append(f"{empty} units without a finite value are left out")
    return UnitPatches(
        provenance=provenance,
        layer=layer.name,
        model=layer.store.manifest.model.id,
        units=torch.tensor(list(units)),
        values=padded(lambda _, entry: entry.value, float("nan")).float(),
        image_ids=padded(lambda _, entry: entry.image_id, -1),
        positions=padded(lambda _, entry: entry.position, (-1, -1)),
        boxes=padded(
            lambda field, entry: (
                none if entry.image_id in pictures.lost else field.box(entry.position)
            ),
            none,
        ),
        cells=padded(lambda field, entry: field.cell(entry.position), none),
        names=[[layer.store.images.paths[entry.image_id] for entry in found] for found in entries],
        patches=torch.from_numpy(made.kept[0]),
        views=torch.from_numpy(made.kept[1]) if views is not None and views.some else None,
        wholes=torch.from_numpy(made.kept[2]) if 2 in made.kept else None,
        fields=[
            {
                "kind": each.kind,
                "size_px": list(each.size),
                "stride_px": None if each.stride is None else list(each.stride),
                "unknown_operations": list(each.unknown),
            }
            for each in fields
        ],
        notes=notes,
    )


class _Pictures:
    """Pictures of all patches, in the places of their units and ranks."""

    def __init__(self, units: int, count: int, *, viewed: bool) -> None:
        self._shape = (units, count)
        several = units > 1
        room = BUDGET / (units * count * 3 * (1 + viewed + (not several)))
        self._side = max(_SMALLEST, min(_SIDE if several else SIDE, int(math.sqrt(room))))
        self._placed = not several
        self.kept: dict[int, np.ndarray] = {}

    def add(self, patch: Patch, view: Tensor | None) -> None:
        """Draw a patch, and the explained image `(3, H, W)` in [0, 1] where there is one."""
        seen = None if view is None else to_picture(view)
        drawn = panels(patch, seen, self._side, placed=self._placed)
        names = [0, *([1] if seen is not None else []), *([2] if self._placed else [])]
        for name, picture in zip(names, drawn, strict=False):
            if name not in self.kept:
                shape = (*self._shape, *picture.shape)
                self.kept[name] = np.full(shape, 255, np.uint8)
            self.kept[name][patch.place, patch.rank] = picture.numpy()

    def grey(self, place: int, rank: int) -> None:
        """Leave a patch without a picture, as its image can no longer be read."""
        for pictures in self.kept.values():
            pictures[place, rank] = round(255 * MISSING)


def _named(names: Sequence[str], values: Tensor, known: bool) -> dict[str, int | None]:
    return dict(zip(names, values.tolist() if known else [None] * len(names), strict=True))


def _about_views(views: CellAttributions | None, *, several: bool, gridded: bool) -> list[str]:
    if views is None:
        return []
    if not views.some:
        return [f"without {views.title}: {views.refusal}"]
    place = "under" if several else "beside"
    cell = " at that cell" if gridded else ""
    grey = f", all grey where it finds nothing ({views.refused})" if views.refused else ""
    return [f"{place} each patch: {views.title} of the unit{cell}{grey}"]


def _batches(patches: Iterable[Patch], size: int) -> Iterator[list[Patch]]:
    remaining = iter(patches)
    while part := list(islice(remaining, size)):
        yield part
