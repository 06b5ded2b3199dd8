"""`DatasetComparison`: how far apart two data sets are, in numbers and by their odd ones out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from timmscope import Result, csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class DatasetComparison(Result):
    """Two data sets beside each other, as one layer sees them: a reference and another.

    Lists of two belong to the reference and the other set.

    Attributes:
        titles: what the sets are called.
        features: what was compared: layer, model, length of a row.
        images: images of each set, all of which enter `fid`.
        sampled: images of each set that enter the other measures.
        k: neighbours of precision, recall, density and coverage.
        fid: Fréchet distance of the Gaussians with the sets' moments.
        kid: squared maximum mean discrepancy, unbiased, so it may be below zero.
        kid_error: its standard error.
        precision: share of the other set within the reference's manifold.
        recall: share of the reference within the other set's manifold.
        density: neighbourhoods of the reference around an image of the other set, over k.
        coverage: share of the reference's neighbourhoods that hold an image of the other set.
        notes: what to keep in mind about the numbers.
        points: `(s, 2)` of some images in the plane of the largest common variance, the reference's
            `shown[0]` first.
        shown: how many points each set has.
        explained: share of the variance along the two axes.
        far_ids: of each set, the images farthest from all of the other, farthest first.
        far_names: their names.
        far_distances: how far each is from the nearest image of the other set.
        nearest_names: that nearest image.
        pictures_of: `(2, 2, e, 3, t, t)` thumbnails: of each set, the far images and the nearest of
            the other; grey where there are fewer than e. None where there are no pictures.
    """

    titles: list[str]
    features: str
    images: list[int]
    sampled: list[int]
    k: int
    fid: float
    kid: float
    kid_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    notes: list[str]
    points: Tensor
    shown: list[int]
    explained: list[float]
    far_ids: list[list[int]]
    far_names: list[list[str]]
    far_distances: list[list[float]]
    nearest_names: list[list[str]]
    pictures_of: Tensor | None = None

    def figure(self) -> Figure:
        """The measures, both sets in a plane, and the images of each that the other lacks."""
        from timmscope_representation.distances.dataset_figure import dataset_figure

        return dataset_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """A measure a row."""
        first, second = self.titles
        return [
            {
                "measure": "FID",
                "value": self.fid,
                "error": None,
                "meaning": f"0: equal Gaussians. {self.features}; not a published FID",
            },
            {
                "measure": "KID",
                "value": self.kid,
                "error": self.kid_error,
                "meaning": "0: equal; unbiased, so it may be negative",
            },
            {
                "measure": "precision",
                "value": self.precision,
                "error": None,
                "meaning": f"share of {second} that is like {first}",
            },
            {
                "measure": "recall",
                "value": self.recall,
                "error": None,
                "meaning": f"share of {first} that is like {second}",
            },
            {
                "measure": "density",
                "value": self.density,
                "error": None,
                "meaning": f"how densely {first} lies around {second}; near 1: equal",
            },
            {
                "measure": "coverage",
                "value": self.coverage,
                "error": None,
                "meaning": f"share of {first} with {second} among its {self.k} neighbours",
            },
        ]

    def documents(self) -> dict[str, str]:
        """`measures.csv`, and `farthest.csv` with the images that the other set lacks."""
        far = [
            {
                "set": title,
                "rank": rank,
                "image": name,
                "id": number,
                "distance": distance,
                "nearest_of_the_other": nearest,
            }
            for title, *columns in zip(
                self.titles,
                self.far_names,
                self.far_ids,
                self.far_distances,
                self.nearest_names,
                strict=True,
            )
            for rank, (name, number, distance, nearest) in enumerate(
                zip(*columns, strict=True), start=1
            )
        ]
        return {"measures.csv": csv_text(self.summary()), "farthest.csv": csv_text(far)}
