"""`Embedding`: a map of images, as a figure, an interactive page and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from timmscope import Result, Rows, csv_text
from timmscope_representation.embedding.pictures import NO_PICTURES, SHOWN_PX, pictures_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = "xyz"


@dataclass(frozen=True, kw_only=True)
class Embedding(Result):
    """A map of images: their points, with labels or values to colour them by.

    `save` also writes `map.html`, an interactive page in one file that loads nothing from
    elsewhere, and `points.csv`.

    Attributes:
        points: `(n, 2)` or `(n, 3)`, coordinates of the images.
        ids: `(n,)` int64, ids of the images in the store.
        names: name of each image.
        method: `PCA`, `t-SNE` or `UMAP`.
        title: title of the map.
        note: description of the method.
        explained: share of the rows' variance along each axis, for PCA; else None.
        colourings: the ways to colour points, the first being shown: dictionaries with `title`, and
            `classes`, the names that `values` index, or None where values are numbers.
        values: `(len(colourings), n)` float64: index of the class, -1 for none, or a number, NaN
            for none.
        query_points: `(q, 2)` or `(q, 3)`, coordinates of query images, which did not take part in
            fitting the map.
        query_names: their names.
        query_images: `(q, 3, t, t)` in [0, 1], or None.
        shown: `(m,)` positions of the images that the figure shows as thumbnails, or None.
        shown_images: `(m, 3, t, t)` in [0, 1], or None.
        sheets: uint8, the bytes of JPEG files with thumbnails of all images in order, row by row,
            or None.
        sheet_sizes: number of bytes of each of these files.
        tile_px: side of a thumbnail on a sheet.
        sheet_columns: thumbnails per row of a sheet.
        sheet_rows: rows of thumbnails on a sheet.
    """

    points: Tensor
    ids: Tensor
    names: list[str]
    method: str
    title: str
    note: str
    explained: list[float] | None
    colourings: list[dict[str, Any]]
    values: Tensor
    query_points: Tensor
    query_names: list[str]
    query_images: Tensor | None
    shown: Tensor | None
    shown_images: Tensor | None
    sheets: Tensor | None
    sheet_sizes: list[int]
    tile_px: int
    sheet_columns: int
    sheet_rows: int

    @classmethod
    def of_rows(
        cls,
        rows: Rows,
        points: npt.NDArray[Any],
        *,
        thumbnails: bool = True,
        query_points: npt.NDArray[Any] | None = None,
        query_images: Tensor | None = None,
        **fields: Any,
    ) -> Embedding:
        """A map of rows, with ids, names and thumbnails of their images where there are any.

        Args:
            rows: the mapped rows.
            points: `(n, 2)` or `(n, 3)` float32, their coordinates.
            thumbnails: whether to decode the images again for thumbnails.
            query_points: coordinates of query images.
            query_images: the query images, `(q, 3, H, W)` in [0, 1].
            fields: the other attributes.
        """
        queries = points[:0] if query_points is None else query_points
        pictures = pictures_of(rows, points, queries) if thumbnails else NO_PICTURES
        small = None
        if query_images is not None:
            small = functional.interpolate(query_images, (SHOWN_PX, SHOWN_PX), mode="area")
        return cls(
            points=torch.from_numpy(points),
            ids=torch.from_numpy(rows.ids),
            names=rows.names(rows.ids),
            query_points=torch.from_numpy(queries),
            query_images=small,
            **pictures,
            **fields,
        )

    def __len__(self) -> int:
        return len(self.points)

    def figure(self) -> Figure:
        """The points in the colours of the first colouring; in 2-D, some thumbnails beside them."""
        from timmscope_representation.embedding.figure import embedding_figure

        return embedding_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """One row: images, method, colourings, queries; for PCA the share of variance shown."""
        share = {} if self.explained is None else {"explained": round(sum(self.explained), 4)}
        return [
            {
                "images": len(self),
                "dimensions": self.points.shape[1],
                "method": self.note,
                **share,
                "coloured by": ", ".join(str(each["title"]) for each in self.colourings) or "none",
                "queries": len(self.query_names),
            }
        ]

    def documents(self) -> dict[str, str]:
        """`map.html` and `points.csv`."""
        from timmscope.drawing import PointMap, map_page

        page = PointMap(
            points=self.points,
            names=self.names,
            title=self.title,
            note=self.note,
            colourings=self.colourings,
            values=self.values,
            query_points=self.query_points,
            query_names=self.query_names,
            query_images=self.query_images,
            sheets=self.sheet_files(),
            tile_px=self.tile_px,
            sheet_columns=self.sheet_columns,
            sheet_rows=self.sheet_rows,
        )
        return {"map.html": map_page(page), "points.csv": csv_text(self.table())}

    def table(self) -> list[dict[str, Any]]:
        """One row per point: id, name, coordinates, value of each colouring; no id for queries."""
        axes = AXES[: self.points.shape[1]]
        columns = [
            (str(each["title"]), [value_label(each, value) for value in values])
            for each, values in zip(self.colourings, self.values.tolist(), strict=True)
        ]
        rows = [
            {
                "id": number,
                "name": name,
                **dict(zip(axes, coordinates, strict=True)),
                **{title: column[row] for title, column in columns},
            }
            for row, (number, name, coordinates) in enumerate(
                zip(self.ids.tolist(), self.names, self.points.tolist(), strict=True)
            )
        ]
        empty = dict.fromkeys(title for title, _ in columns)
        rows += [
            {"id": None, "name": name, **dict(zip(axes, coordinates, strict=True)), **empty}
            for name, coordinates in zip(self.query_names, self.query_points.tolist(), strict=True)
        ]
        return rows

    def sheet_files(self) -> list[bytes]:
        """The JPEG files with the thumbnails."""
        if self.sheets is None:
            return []
        parts = torch.split(self.sheets, self.sheet_sizes)
        return [part.numpy().tobytes() for part in parts]


def value_label(colouring: dict[str, Any], value: float) -> Any:
    """Meaning of a value of a colouring: the name of a class, None, or the number itself."""
    if colouring["classes"] is None:
        return None if math.isnan(value) else value
    return None if value < 0 else colouring["classes"][int(value)]
