"""Holds the distances between two data sets, and the images of each that differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from timmscope import Result, csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class DatasetComparison(Result):
    """Comparison of two data sets in one layer: a reference and another set.

    In a list of two items, the first is for the reference and the second for the other set.

    Attributes:
        titles: names of the sets.
        features: description of the features: layer, model, length of a row.
        images: number of images of each set, all of which enter `fid`.
        sampled: number of images of each set that enter the other measures.
        k: number of neighbours for precision, recall, density and coverage.
        fid: Fréchet distance between Gaussians with the means and covariances of the sets.
        kid: squared maximum mean discrepancy, unbiased, so it may be below zero.
        kid_error: standard error of `kid`.
        precision: share of the other set within the reference's manifold.
        recall: share of the reference within the other set's manifold.
        density: mean number of the reference's neighbourhoods around an image of the other set,
            divided by k.
        coverage: share of the reference's neighbourhoods that hold an image of the other set.
        remarks: what to know about the numbers.
        points: `(s, 2)`, positions of some images in the plane in which both sets together vary
            most; the first `shown[0]` are images of the reference.
        shown: number of points of each set.
        explained: share of the variance along the two axes.
        far_ids: for each set, ids of the images farthest from the other set, farthest first.
        far_names: names of these images.
        far_distances: their distances to the nearest image of the other set.
        nearest_names: names of those nearest images.
        pictures_of: `(2, 2, e, 3, t, t)` thumbnails: for each set, the far images and the images of
            the other set that are nearest to them; grey where there are fewer than e. None if the
            images are not available.
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
    remarks: list[str]
    points: Tensor
    shown: list[int]
    explained: list[float]
    far_ids: list[list[int]]
    far_names: list[list[str]]
    far_distances: list[list[float]]
    nearest_names: list[list[str]]
    pictures_of: Tensor | None = None

    def figure(self) -> Figure:
        """Draw the measures, both sets in a plane, and the images that the other set lacks."""
        from timmscope_representation.distances.dataset_figure import dataset_figure

        return dataset_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per measure."""
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
                "meaning": f"share of {second} inside the manifold of {first}",
            },
            {
                "measure": "recall",
                "value": self.recall,
                "error": None,
                "meaning": f"share of {first} inside the manifold of {second}",
            },
            {
                "measure": "density",
                "value": self.density,
                "error": None,
                "meaning": f"density of {first} around {second}; near 1: equal",
            },
            {
                "measure": "coverage",
                "value": self.coverage,
                "error": None,
                "meaning": f"share of {first} with {second} among its {self.k} neighbours",
            },
        ]

    def documents(self) -> dict[str, str]:
        """Return `measures.csv`, and `farthest.csv` with the images that the other set lacks."""
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
