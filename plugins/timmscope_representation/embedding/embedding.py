"""`Embedding`: a map of images, as a picture, as a page to explore, and as a table."""

from __future__ import annotations

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
    """Places of images on a map, with what to colour them by.

    `save` also writes `map.html`, one file to explore that loads nothing from anywhere, and
    `points.csv`.

    Attributes:
        points: `(n, 2)` or `(n, 3)`, the images' places.
        ids: `(n,)` int64, their ids in the store.
        names: what each is called.
        method: `PCA`, `t-SNE` or `UMAP`.
        title: what is shown, in a line.
        note: how the map was made.
        explained: share of the rows' variance along each axis, with PCA; else None.
        colourings: what points can be coloured by, the first being shown: dictionaries with
            `title`, and `classes`, the names that `values` count, or None where those are numbers.
        values: `(len(colourings), n)` float64: a class's number, -1 where there is none, or a
            number.
        query_points: `(q, 2)` or `(q, 3)`, places of images that the map was not made from.
        query_names: what they are called.
        query_images: `(q, 3, t, t)` in [0, 1], or None.
        shown: `(m,)` positions of the images that the figure shows as pictures, or None.
        shown_images: `(m, 3, t, t)` in [0, 1], or None.
        sheets: uint8, the bytes of JPEG files with small pictures of all images in order, row by
            row, or None.
        sheet_sizes: bytes of each of these files.
        tile_px: side of a small picture on them.
        sheet_columns: pictures side by side.
        sheet_rows: rows of pictures on a sheet.
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
        """A map of rows, with ids, names and small pictures of their images where there are any.

        Args:
            rows: that were laid out.
            points: `(n, 2)` or `(n, 3)` float32, their places.
            thumbnails: whether to decode the images once more.
            query_points: places of other images.
            query_images: these, `(q, 3, H, W)` in [0, 1].
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
        """The points in the first of their colours; beside them, in 2-D, some as pictures."""
        from timmscope_representation.embedding.figure import embedding_figure

        return embedding_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """One row: what was laid out and how; the share of variance that a PCA map shows."""
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
        """A point a row: id, name, place, and what it can be coloured by; queries have no id."""
        axes = AXES[: self.points.shape[1]]
        columns = [
            (str(each["title"]), [told(each, value) for value in values])
            for each, values in zip(self.colourings, self.values.tolist(), strict=True)
        ]
        rows = [
            {
                "id": number,
                "name": name,
                **dict(zip(axes, place, strict=True)),
                **{title: column[row] for title, column in columns},
            }
            for row, (number, name, place) in enumerate(
                zip(self.ids.tolist(), self.names, self.points.tolist(), strict=True)
            )
        ]
        nothing = dict.fromkeys(title for title, _ in columns)
        rows += [
            {"id": None, "name": name, **dict(zip(axes, place, strict=True)), **nothing}
            for name, place in zip(self.query_names, self.query_points.tolist(), strict=True)
        ]
        return rows

    def sheet_files(self) -> list[bytes]:
        """The JPEG files with the small pictures."""
        if self.sheets is None:
            return []
        parts = torch.split(self.sheets, self.sheet_sizes)
        return [part.numpy().tobytes() for part in parts]


def told(colouring: dict[str, Any], value: float) -> Any:
    """What a value of a colouring stands for: a class's name, None, or the number itself."""
    if colouring["classes"] is None:
        return value
    return None if value < 0 else colouring["classes"][int(value)]
