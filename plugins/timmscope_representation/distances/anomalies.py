"""Images that a layer finds strange among the others, the strangest first."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from timmscope import ParameterError, RepresentationTechnique, Rows, Scores
from timmscope_representation.display import labels, names, thumbnails
from timmscope_representation.distances.outlyingness import mahalanobis, neighbour_distances, robust
from timmscope_representation.embedding.principal_components import MAX_WIDTH
from timmscope_representation.row_space import Metric, RowSpace


class Anomalies(RepresentationTechnique):
    """Images whose rows lie apart from the others', ranked; all scores, and their spread.

    - `knn`: distance to the k-th nearest other image (Ramaswamy, Rastogi & Shim, SIGMOD 2000).
      Assumes nothing about the shape of the data. All pairs are compared.
    - `mahalanobis`: distance to the mean in units of the covariance, shrunk by Ledoit and Wolf
      (2004). For data of one kind; outliers inflate the covariance that they are measured by.
    - `robust`: distance within and from spherical principal components, by medians (Locantore et
      al., 1999; Hubert, Rousseeuw & Vanden Branden, 2005). As `mahalanobis`, and up to half of the
      images may be outliers. Ordinary images score about 1 at most.

    To find what is strange within a class, choose it: `--where "label == 'cat'"`.
    """

    score: Literal["knn", "mahalanobis", "robust"] = "knn"
    """How strangeness is measured."""
    k: int = Field(default=5, ge=1)
    """Which nearest image counts, for `knn`; groups of up to k strange images are found."""
    metric: Metric = "cosine"
    """Cosine distance (1 - cos) or Euclidean distance, for `knn`."""
    top: int = Field(default=24, ge=1, le=240)
    """Images to show; the table in `scores.csv` holds all."""

    def analyse(self, source: Rows, images: Any) -> Scores:
        """Scores of all images of a store's layer or an array."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        if self.score == "knn":
            source.require(self.k + 1, f"{self.title()} with k = {self.k}", "k")
        else:
            source.require(3, f"{self.title()} with score = {self.score}", "score")
            if source.dim > MAX_WIDTH:
                raise ParameterError(
                    f"score = {self.score} is computed of rows up to {MAX_WIDTH} long, those of "
                    f"{source.title} are {source.dim}: use score='knn', or another layer",
                    parameter="score",
                )
        space = RowSpace(source, self.metric if self.score == "knn" else "l2")
        space.require_spread("none stands out")
        scores, name, note = self._scores(space)
        best = np.argsort(-scores, kind="stable")[: self.top]
        return Scores(
            provenance=self.provenance(**source.facts),
            ids=torch.from_numpy(source.ids),
            scores=torch.from_numpy(scores),
            names=names(source, source.ids),
            labels=labels(source, np.arange(len(source))),
            top=len(best),
            pictures_of=thumbnails(source, source.ids[best]),
            title=f"{source.title}: the {len(best)} strangest of {len(source)} images",
            score_name=name,
            note=note,
        )

    def _scores(self, space: RowSpace) -> tuple[Any, str, str]:
        """Scores `(n,)`, what they are, and small print."""
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
            note += "; more than half of the rows are equal, and any other is strange beside them"
        return scores, "robust distance (ordinary images: up to about 1)", note


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"
