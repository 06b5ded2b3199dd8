"""`Atlas` is what is known of the units of a layer: an image made for each, and its top patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image
from torch import Tensor

from timmscope.results import Result, csv_text
from timmscope_registry import ParameterError, TimmscopeError

from .files import image_name, inside, page_name, patches_name, read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(k: int) -> tuple[int, int]:
    """Return rows and columns in which the patches of a unit are arranged."""
    columns = math.ceil(math.sqrt(k))
    return math.ceil(k / columns), columns


@dataclass(frozen=True, kw_only=True)
class Atlas(Result):
    """Each unit of a layer: an image that was synthesised for it, and its top patches.

    The folder of the atlas has the pictures: in `units`, for each unit the synthesised image and
    one picture with its patches; sheets of them as `page-000.png` and so on; and as `figure.png`
    all synthesised images together.

    Attributes:
        store: fingerprint of the store: `pass` decides its rows, `rows_sha256` is a digest of them.
        layer: name of the layer.
        technique: the synthesis with its parameters, as a text.
        units: `(U,)` int64, ascending.
        scores: `(U, n)` float32 objective of the synthesised images, without random views; NaN
            where there is no image.
        best_steps: `(U, n)` int64 step (from 0) whose update gave the image; -1 without an image.
        refused: by the number of a unit, why the technique made no image of it, above all a
            gradient of zero.
        image_ids: `(U, k)` int64 ids of the patches' images in the store, best first; -1 where
            there is no patch.
        values: `(U, k)` float32 the unit's maximum in each image, NaN where there is no patch.
        positions: `(U, k, 2)` int64 row and column of the cell; -1 where there is none.
        boxes: `(U, k, 4)` int64 left, upper, right, lower edge of the patch in pixels of the image
            as the model sees it; -1 where there is no patch.
        names: `U` lists of the images' names.
        fields: receptive field that the patches of each unit show, as a text; empty without
            patches.
        lost: ids of images that could not be read any more; their patches are grey.
        digests: SHA-256 of each picture in `units`, by its name in the folder.
        per_page: units per sheet.
    """

    store: dict[str, str]
    layer: str
    technique: str
    units: Tensor
    scores: Tensor
    best_steps: Tensor
    refused: dict[str, str]
    image_ids: Tensor
    values: Tensor
    positions: Tensor
    boxes: Tensor
    names: list[list[str]]
    fields: list[str]
    lost: list[int]
    digests: dict[str, str]
    per_page: int

    def placed_in(self, folder: Path) -> Self:
        """Remember the folder, whose pictures the methods below read.

        Raises:
            ValueError: the arrays do not fit together.
        """
        count, patches = len(self.units), self.image_ids.shape[1:]
        if not self.units.ndim == self.scores.ndim - 1 == len(patches) == 1:
            raise ValueError("its arrays are of other numbers of dimensions")
        shapes = {
            "scores": (count, self.scores.shape[1]),
            "best_steps": tuple(self.scores.shape),
            "image_ids": (count, *patches),
            "values": (count, *patches),
            "positions": (count, *patches, 2),
            "boxes": (count, *patches, 4),
        }
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} of shape {found}, expected {shape}")
        if self.per_page < 1 or not count:
            raise ValueError(f"{count} units, {self.per_page} on a page")
        units = self.units.tolist()
        if units != sorted({*units}) or units[0] < 0:
            raise ValueError("its units are not ascending numbers")
        if not len(self.names) == len(self.fields) == count:
            raise ValueError(f"names of {len(self.names)} units, expected {count}")
        if max(map(len, self.names)) > patches[0]:
            raise ValueError("more names than patches")
        object.__setattr__(self, "_folder", folder)
        return self

    @property
    def folder(self) -> Path:
        """The folder of the atlas.

        Raises:
            TimmscopeError: the atlas has none.
        """
        found: Path | None = getattr(self, "_folder", None)
        if found is None:
            raise TimmscopeError(
                "this atlas is in no folder: open it with open_atlas(store, layer)"
            )
        return found

    @property
    def has_patches(self) -> bool:
        """Whether there are pictures of patches."""
        return any(self.fields)

    @property
    def pages(self) -> int:
        """Number of sheets."""
        return math.ceil(len(self.units) / self.per_page)

    def place(self, unit: int) -> int:
        """Return the row of a unit in the arrays.

        Raises:
            ParameterError: the atlas lacks the unit.
        """
        found = (self.units == unit).nonzero().flatten().tolist()
        if not found:
            raise ParameterError(
                f"the atlas of {self.layer} has no unit {unit}; it has {len(self.units)} units "
                f"from {int(self.units[0])} to {int(self.units[-1])}",
                parameter="unit",
            )
        return int(found[0])

    def images(self, unit: int) -> list[Image.Image]:
        """Return the images that were synthesised for a unit; none if the technique refused it.

        Raises:
            ParameterError: the atlas lacks the unit.
            StoreCorrupted: a picture is missing, was altered or lies outside of the folder.
        """
        return [
            read_picture(self.folder, name, self.digests[name]) for name in self._image_names(unit)
        ]

    def image_files(self, unit: int) -> list[Path]:
        """Return the files of these images.

        Raises:
            ParameterError: the atlas lacks the unit.
            StoreCorrupted: a file lies outside of the folder.
        """
        return [inside(self.folder, name) for name in self._image_names(unit)]

    def patches(self, unit: int) -> list[Image.Image]:
        """Return a unit's top patches, best first, all of one size; none without pictures.

        Raises:
            ParameterError: the atlas lacks the unit.
            StoreCorrupted: the picture is missing, was altered or lies outside of the folder.
        """
        names, name = self.names[self.place(unit)], patches_name(unit)
        if name not in self.digests:
            return []
        sheet = read_picture(self.folder, name, self.digests[name])
        rows, columns = grid(self.image_ids.shape[1])
        width, height = sheet.width // columns, sheet.height // rows
        corners = [(rank % columns * width, rank // columns * height) for rank in range(len(names))]
        return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]

    def page(self, number: int) -> Figure:
        """Draw a sheet: for each unit the synthesised image beside its patches.

        Raises:
            ParameterError: there is no such sheet.
            StoreCorrupted: a picture is missing or was altered.
        """
        from .figure import page_figure

        if not 0 <= number < self.pages:
            raise ParameterError(
                f"there is no page {number}, expected 0 to {self.pages - 1}", parameter="number"
            )
        return page_figure(self, number)

    def figure(self) -> Figure:
        """Draw all synthesised images, small."""
        from .figure import overview_figure

        return overview_figure(self)

    def pictures(self) -> dict[str, Any]:
        """Return the sheets."""
        numbers = range(self.pages)
        return {
            page_name(number).removesuffix(".png"): partial(self.page, number) for number in numbers
        }

    def documents(self) -> dict[str, str]:
        """Return the units as CSV."""
        return {"units.csv": csv_text(self.summary())}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per unit: score and step of its best image, strongest image, refusal."""
        rows = []
        for place, unit in enumerate(self.units.tolist()):
            made = len(self._image_names(unit))
            best = max(range(made), key=lambda number: float(self.scores[place, number]), default=0)
            known, names = made > 0, self.names[place]
            rows.append(
                {
                    "unit": unit,
                    "images": made,
                    "score": float(self.scores[place, best]) if known else None,
                    "best_step": int(self.best_steps[place, best]) if known else None,
                    "patches": len(names),
                    "highest": float(self.values[place, 0]) if names else None,
                    "image_id": int(self.image_ids[place, 0]) if names else None,
                    "image": names[0] if names else None,
                    "refused": self.refused.get(str(unit)),
                }
            )
        return rows

    def _image_names(self, unit: int) -> list[str]:
        self.place(unit)
        names = (image_name(unit, number) for number in range(self.scores.shape[1]))
        return [name for name in names if name in self.digests]
