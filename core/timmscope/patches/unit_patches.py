"""`UnitPatches` is the result that holds the strongest patches of one or more units of a layer.

All pictures of a result share a memory budget, so those of one unit are large and those of a
thousand units are small.
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

from timmscope.drawing import sheet_figure, short_names
from timmscope.progress import task
from timmscope.results import Provenance, Result, csv_text
from timmscope.store import StorePictures, TopEntry
from timmscope.store.pictures import MISSING
from timmscope_registry import StoreError

from .cell_attributions import BATCH_SIZE, CellAttributions
from .figure import SIDE, caption, field_note, grid_figure, join_pictures, panels
from .patch import Patch, cut_patches, rank_entries, to_pil, unit_fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from timmscope.models import HookedModel
    from timmscope.receptive_fields import FieldKind, ReceptiveField
    from timmscope.store import StoreLayer
    from timmscope.techniques import AttributionTechnique

BUDGET = 256 << 20
"""Approximate number of bytes of all pictures of a result."""
_SIDE = 160
"""Largest height of a picture in pixels if several units share the figure."""
_MIN_SIDE = 32
_EDGES = ("left_px", "upper_px", "right_px", "lower_px")
_TILES_PER_LINE = 10
_LINES_PER_PAGE = {1: 14, 2: 8}
"""Lines of tiles per page, by the number of pictures per tile."""


@dataclass(frozen=True, kw_only=True)
class UnitPatches(Result):
    """The strongest patches of units of a layer, best first.

    Attributes:
        layer: name of the layer.
        model: id of the model that the store was mined with.
        units: `(U,)` int64.
        values: `(U, k)` float32, NaN where a unit has fewer patches.
        image_ids: `(U, k)` int64 ids in the store, -1 where there is no patch.
        positions: `(U, k, 2)` int64 row and column of the cell, -1 where there is none.
        boxes: `(U, k, 4)` int64 left, upper, right, lower edge of the patch in pixels of the image
            as the model sees it; -1 where there is no patch or the image can no longer be read.
        cells: `(U, k, 4)` int64 the same edges of the cell itself, one stride wide; -1 where there
            is none.
        names: `U` lists of the images' names.
        patches: `(U, k, 3, h, w)` uint8 pictures of the patches, scaled to one size; if the field
            covers most of the image, the image with field and cell outlined; grey if the image can
            no longer be read.
        views: the same pictures of the explanations; None without explanations.
        wholes: the same pictures of the images with the patch outlined; None for several units.
        fields: receptive field of each unit: ``kind``, ``size_px`` (height and width),
            ``stride_px`` (None if cells have no place in the image) and ``unknown_operations``,
            for which no rule is known.
        remarks: which field the patches show, how they were chosen, and what could not be shown.
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
    remarks: list[str]

    def figure(self) -> Figure:
        """Draw one unit's patches in a grid, or the first page of several units, a row per unit."""
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
        """All remarks as one text."""
        return "; ".join(self.remarks)

    @property
    def gridded(self) -> bool:
        """Whether cells have a place in the image."""
        return self.fields[0]["stride_px"] is not None

    def pictures(self) -> dict[str, Any]:
        """Return the pages after the first."""
        if len(self.units) == 1:
            return {}
        pages = range(1, math.ceil(len(self._lines()) / self._per_page))
        return {f"page-{number + 1:03d}": partial(self._page, number) for number in pages}

    def documents(self) -> dict[str, str]:
        """Return all patches as CSV."""
        return {"patches.csv": csv_text(self.table())}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per unit: its strongest patch and the value of the last one."""
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
        """Return one row per patch: unit, rank, value, image, cell and edges, or None for these."""
        return [
            {
                "unit": unit,
                "rank": rank + 1,
                "value": float(self.values[place, rank]),
                "image_id": int(self.image_ids[place, rank]),
                "image": name,
                **_labelled(("row", "column"), self.positions[place, rank], self.gridded),
                **_labelled(_EDGES, self.boxes[place, rank], bool(self.boxes[place, rank, 2] >= 0)),
            }
            for place, unit in enumerate(self.units.tolist())
            for rank, name in enumerate(self.names[place])
        ]

    def _tile(self, place: int, rank: int) -> Tensor:
        """Join all pictures of a patch: side by side for one unit, else one above the other."""
        kinds = (self.patches, self.views, self.wholes)
        shown = [pictures[place, rank] for pictures in kinds if pictures is not None]
        return join_pictures(shown, down=len(self.units) > 1)

    @property
    def _per_page(self) -> int:
        return _LINES_PER_PAGE[1 if self.views is None else 2]

    def _lines(self) -> list[tuple[int, int, int]]:
        """Return each line of tiles: index of the unit, first patch, and end of the patches."""
        return [
            (place, start, min(start + _TILES_PER_LINE, len(names)))
            for place, names in enumerate(self.names)
            for start in range(0, len(names), _TILES_PER_LINE)
        ]

    def _captions(self, place: int, start: int, stop: int) -> list[str]:
        among = [name for names in self.names for name in names]
        short = short_names(self.names[place][start:stop], among)
        return [
            caption(
                float(self.values[place, rank]),
                tuple(self.positions[place, rank].tolist()) if self.gridded else (-1, -1),
                name,
            )
            for rank, name in enumerate(short, start)
        ]

    def _page(self, number: int) -> Figure:
        all_lines = self._lines()
        pages = max(1, math.ceil(len(all_lines) / self._per_page))
        lines = all_lines[number * self._per_page : (number + 1) * self._per_page]
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
    """Cut units' strongest patches and show each beside an explanation of the unit there.

    Args:
        layer: layer of a store.
        load: returns the layer's model; called at most once, and only if the model is needed.
        units: numbers of the units.
        k: number of patches per unit.
        provenance: provenance of the result.
        pictures: the store's images.
        field: receptive field to cut out: ``exact``, ``spatial`` or ``effective``, as in
            `receptive_field`. The effective field is measured on each unit's images, at the cells
            of their maxima. The store caches exact and spatial fields.
        view: an attribution, or its text. If it does not fit the model, the result has no
            explanations and a note says so.
        per_image: one patch per image, at its maximum; otherwise the strongest of all positions,
            of which several may be in one image. These are exact, because the images of the `k`
            highest maxima go through the model again.
        where: only images that meet a condition; see `ImageTable.where`.

    Raises:
        ImageError: none of the images can be read any more, or one of them without `per_image`.
        StoreError: there is no such unit, or no unit has a finite value on the chosen images.
        ParameterError: the condition is wrong, or `view` is not an attribution.
        UnsupportedModel: a single unit has no effective field on these images.
    """
    loaded: list[HookedModel] = []

    def model() -> HookedModel:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    entries = rank_entries(
        layer, model, units, k, per_image=per_image, where=where, pictures=pictures
    )
    count = max(map(len, entries))
    if not count:
        raise StoreError(f"no unit of {layer.name} has a finite value on the chosen images")
    fields, without_effective = unit_fields(layer, model, units, field, entries, pictures)
    views = None if view is None else CellAttributions(model(), layer.name, view)
    drawn = _PictureArrays(len(units), count, viewed=views is not None)
    with task("drawing patches", total=sum(map(len, entries))) as advance:
        for part in _batches(cut_patches(entries, fields, pictures), BATCH_SIZE):
            explained: Sequence[Tensor | None] = [None] * len(part)
            if views is not None and not views.unsuitable:
                cells = [(units[patch.place], patch.entry.position) for patch in part]
                values = [patch.entry.value for patch in part]
                images = torch.stack([patch.pixels for patch in part])
                explained = views.explain(images, cells, values)
            for patch, explanation in zip(part, explained, strict=True):
                drawn.add(patch, explanation)
            advance(len(part))
    for place, found in enumerate(entries):
        for rank, entry in enumerate(found):
            if entry.image_id in pictures.lost:
                drawn.set_grey(place, rank)

    def padded(value: Callable[[ReceptiveField, TopEntry], Any], fill: Any) -> Tensor:
        """Return a value of each patch, `(U, k, …)`."""
        rows = [
            [value(field, entry) for entry in found] + [fill] * (count - len(found))
            for field, found in zip(fields, entries, strict=True)
        ]
        return torch.tensor(rows)

    none = (-1,) * 4
    first = fields[0]
    notes = [field_note(first, placed=len(units) == 1)]
    if len({each.size for each in fields}) > 1:
        notes[0] = f"{field} receptive field of each unit; below: the value at row,column"
    notes.append("one patch per image" if per_image else "strongest of all positions")
    notes += _view_notes(views, several=len(units) > 1, gridded=first.grid is not None)
    if without_effective:
        notes.append(
            f"{without_effective} units without a gradient on these images show the spatial field"
        )
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
        patches=torch.from_numpy(drawn.arrays["patches"]),
        views=torch.from_numpy(drawn.arrays["views"]) if views and views.any_explained else None,
        wholes=torch.from_numpy(drawn.arrays["wholes"]) if "wholes" in drawn.arrays else None,
        fields=[
            {
                "kind": each.kind,
                "size_px": list(each.size),
                "stride_px": None if each.stride is None else list(each.stride),
                "unknown_operations": list(each.unknown),
            }
            for each in fields
        ],
        remarks=notes,
    )


class _PictureArrays:
    """Pictures of all patches as arrays `(U, k, …)`, by kind."""

    def __init__(self, units: int, count: int, *, viewed: bool) -> None:
        self._shape = (units, count)
        several = units > 1
        pixels = BUDGET / (units * count * 3 * (1 + viewed + (not several)))
        self._side = max(_MIN_SIDE, min(_SIDE if several else SIDE, int(math.sqrt(pixels))))
        self._placed = not several
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, patch: Patch, view: Tensor | None) -> None:
        """Draw a patch, and the explanation `(3, H, W)` in [0, 1] of its image if there is one."""
        explanation = None if view is None else to_pil(view)
        pictures = panels(patch, explanation, self._side, placed=self._placed)
        kinds = ["patches"] + ["views"] * (view is not None) + ["wholes"] * self._placed
        for kind, picture in zip(kinds, pictures, strict=False):
            if kind not in self.arrays:
                self.arrays[kind] = np.full((*self._shape, *picture.shape), 255, np.uint8)
            self.arrays[kind][patch.place, patch.rank] = picture.numpy()

    def set_grey(self, place: int, rank: int) -> None:
        """Draw a patch grey, because its image can no longer be read."""
        for array in self.arrays.values():
            array[place, rank] = round(255 * MISSING)


def _labelled(names: Sequence[str], values: Tensor, known: bool) -> dict[str, int | None]:
    return dict(zip(names, values.tolist() if known else [None] * len(names), strict=True))


def _view_notes(views: CellAttributions | None, *, several: bool, gridded: bool) -> list[str]:
    if views is None:
        return []
    if not views.any_explained:
        return [f"without {views.title}: {views.first_error}"]
    place = "under" if several else "beside"
    cell = " at that cell" if gridded else ""
    grey = f", all grey where it has no result ({views.failures})" if views.failures else ""
    return [f"{place} each patch: {views.title} of the unit{cell}{grey}"]


def _batches(patches: Iterable[Patch], size: int) -> Iterator[list[Patch]]:
    remaining = iter(patches)
    while part := list(islice(remaining, size)):
        yield part
