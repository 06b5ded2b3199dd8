"""Ranks the images of a layer by how far they are from the others."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from timmscope import ParameterError, Rows, Scores, StoreTechnique
from timmscope_representation.display import labels, names, thumbnails
from timmscope_representation.distances.outlyingness import mahalanobis, neighbour_distances, robust
from timmscope_representation.embedding.principal_components import MAX_WIDTH
from timmscope_representation.row_space import Metric, RowSpace


class Anomalies(StoreTechnique):
    """Ranks images by the distance of their rows from the others', and shows all scores.

    - `knn`: `d(x, x_(k))`, the distance to the k-th nearest other image. It assumes nothing about
      the shape of the data. All pairs are compared.
    - `mahalanobis`: `√((x − μ)ᵀ Σ⁻¹ (x − μ))` with the covariance Σ shrunk by Ledoit and Wolf. It
      is for data of one kind; outliers inflate the covariance that they are measured by.
    - `robust`: `√(½ (SD / c_SD)² + ½ (OD / c_OD)²)`, with the robust distance SD within spherical
      principal components, the distance OD from their subspace, and c the limits that 97.5 % of
      ordinary images stay below. It is based on medians: up to half of the images may be outliers.
      Ordinary images score at most about 1.

    To find outliers within a class, choose the class: `--where "label == 'cat'"`.

    Paper:
        - Ramaswamy, Rastogi & Shim, "Efficient Algorithms for Mining Outliers from Large Data
          Sets", SIGMOD 2000: `knn`.
        - Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
          Journal of Multivariate Analysis 2004: the covariance of `mahalanobis`.
        - Locantore, Marron, Simpson, Tripoli, Zhang & Cohen, "Robust principal component analysis
          for functional data", Test 1999: the components of `robust`.
        - Hubert, Rousseeuw & Vanden Branden, "ROBPCA: A New Approach to Robust Principal Component
          Analysis", Technometrics 2005: its two distances.
        - Vanden Branden & Hubert, "Robust classification in high dimensions based on the SIMCA
          method", Chemometrics and Intelligent Laboratory Systems 2005: their combination.

    Raises:
        ParameterError: a parameter is out of range, there are too few images, rows are too long, or
            rows are all equal or hold NaN.
        StoreError: the store cannot be read.
        StoreMismatch: `model` is not the one that the store was mined with.
        LayerNotFound: the store has no such layer.
    """

    score: Literal["knn", "mahalanobis", "robust"] = "knn"
    """Which score ranks the images."""
    k: int = Field(default=5, ge=1)
    """Which nearest image counts, for `knn`; groups of up to k outliers are found."""
    metric: Metric = "cosine"
    """Cosine distance (1 - cos) or Euclidean distance, for `knn`."""
    top: int = Field(default=24, ge=1, le=240)
    """Number of images to show; `scores.csv` lists all."""

    def analyse(self, source: Rows, images: Any) -> Scores:
        """Return the scores of all images of a store's layer or of an array.

        Raises:
            ParameterError: there are too few images, rows are too long, or rows are all equal or
                hold NaN.
        """
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        if self.score == "knn":
            source.require(self.k + 1, f"{self.title()} with k = {self.k}", "k")
        else:
            source.require(3, f"{self.title()} with score = {self.score}", "score")
            if source.dim > MAX_WIDTH:
                raise ParameterError(
                    f"score = {self.score} takes rows of at most {MAX_WIDTH} values, those of "
                    f"{source.title} have {source.dim}: use score='knn', or another layer",
                    parameter="score",
                )
        space = RowSpace(source, self.metric if self.score == "knn" else "l2")
        space.require_spread("there are no outliers")
        scores, name, note = self._scores(space)
        best = np.argsort(-scores, kind="stable")[: self.top]
        return Scores(
            provenance=self.provenance(source),
            ids=torch.from_numpy(source.ids),
            scores=torch.from_numpy(scores),
            names=names(source, source.ids),
            labels=labels(source, np.arange(len(source))),
            top=len(best),
            pictures_of=thumbnails(source, source.ids[best]),
            title=f"{source.title}: the {len(best)} most anomalous of {len(source)} images",
            score_name=name,
            note=note,
        )

    def _scores(self, space: RowSpace) -> tuple[Any, str, str]:
        """Return the scores `(n,)`, their name, and a note."""
        if self.score == "knn":
            kind = "cosine distance" if self.metric == "cosine" else "Euclidean distance"
            nearest = "nearest" if self.k == 1 else f"{_ordinal(self.k)} nearest"
            return (
                neighbour_distances(space, self.k),
                f"{kind} to the {nearest} other image",
                "",
            )
        if self.score == "mahalanobis":
            scores, shrinkage = mahalanobis(space.rows)
            return scores, "Mahalanobis distance", f"covariance shrunk by {shrinkage:.2g}"
        scores, components = robust(space.rows, self.seed)
        note = f"within and from {components} spherical principal components"
        if (scores == 0).sum() > len(scores) / 2:
            note += "; more than half of the rows are equal, so any other is an outlier"
        return scores, "robust distance (ordinary images: up to about 1)", note


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"
