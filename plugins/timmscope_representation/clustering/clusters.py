"""Clusters of a layer's rows: groups of images that are similar for a network."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    ParameterError,
    PluginError,
    Result,
    Rows,
    Sheet,
    StoreTechnique,
    Table,
    csv_text,
)
from timmscope.drawing import short_names
from timmscope_representation.clustering.agreement import contingency, label_agreement, purity
from timmscope_representation.clustering.partition import Partition, hdbscan, kmeans
from timmscope_representation.display import labels, names, thumbnails
from timmscope_representation.row_space import Metric, RowSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[Any]

_CLUSTERS_SHOWN, _MEDOIDS_SHOWN = 24, 8
_MOST_BY_DEFAULT = 256


@dataclass(frozen=True, kw_only=True)
class ImageClusters(Result):
    """Clusters of images, the largest first, and their agreement with labels.

    Attributes:
        ids: `(n,)` ids of the images.
        clusters: `(n,)` number of each image's cluster, from 1; 0 is noise.
        distances: `(n,)` float32, to the centroid: cosine (1 - cos) or Euclidean; NaN for noise.
        centroids: `(k, d)`, of length 1 for `cosine`.
        names: name of each image.
        labels: label of each image, or None.
        medoids: for each cluster, ids of the images nearest to its centroid, nearest first, ties by
            id; if there is noise, a last list with some images of it.
        majority: most frequent label of each cluster, and of the noise; None without labels.
        purities: share of that label among the cluster's labelled images; NaN without labels.
        purity: share of all labelled images, noise included, whose label is the most frequent one
            of their group; NaN without labels.
        mutual_information: normalised mutual information of groups and labels; NaN without labels
            or without scikit-learn.
        adjusted_rand: adjusted Rand index of groups and labels; NaN likewise.
        pictures_of: `(shown, 3, t, t)` thumbnails of the medoids of the first clusters, or None.
        source: description of the clustered rows.
        method: description of the method.
        note: remarks on the outcome, or "".
    """

    ids: Tensor
    clusters: Tensor
    distances: Tensor
    centroids: Tensor
    names: list[str]
    labels: list[str | None]
    medoids: list[list[int]]
    majority: list[str | None]
    purities: Tensor
    purity: Tensor
    mutual_information: Tensor
    adjusted_rand: Tensor
    pictures_of: Tensor | None
    source: str
    method: str
    note: str

    def figure(self) -> Figure:
        """One row per cluster: the images nearest to its centroid."""
        if self.pictures_of is None:
            return Table(provenance=self.provenance, rows=self.summary()).figure()
        rows = self._shown()
        position = {image: at for at, image in enumerate(self.ids.tolist())}
        known = any(self.labels)
        places = [position[image] for medoids in rows for image in medoids]
        short = short_names([self.names[place] for place in places], self.names)
        titles = [
            f"{name}\n{self.labels[place] or '–'}" if known else name
            for place, name in zip(places, short, strict=True)
        ]
        heads = []
        for at, facts in enumerate(self.summary()[: len(rows)]):
            of = f"{self.purities[at]:.0%} {self.majority[at]}" if self.majority[at] else ""
            plural = "" if facts["images"] == 1 else "s"
            heads.append(f"{facts['cluster']}\n{facts['images']} image{plural}\n{of}")
        note = (
            f"{self.method}; a row shows the images nearest to the centroid, the largest cluster "
            "comes first"
        )
        if known:
            note += "; percentages: share of the most frequent label"
        if not bool(torch.isnan(self.adjusted_rand)):
            note += (
                f"; normalised mutual information {float(self.mutual_information):.2f}, "
                f"adjusted Rand index {float(self.adjusted_rand):.2f}"
            )
        if len(rows) < len(self.medoids):
            note += f"; {len(rows)} of {len(self.medoids)} clusters"
        sheet = Sheet(
            provenance=self.provenance,
            images=self.pictures_of,
            titles=titles,
            rows=[],
            title=f"{self.source}: {self._heading()}",
            note="; ".join(filter(None, [note, self.note])),
            row_labels=heads,
            row_lengths=[len(medoids) for medoids in rows],
        )
        return sheet.figure()

    def summary(self) -> list[dict[str, Any]]:
        """One row per cluster: images, medoid, mean distance, label and purity; then a total."""
        position = {image: at for at, image in enumerate(self.ids.tolist())}
        codes = self.clusters.numpy()
        sizes = np.bincount(codes, minlength=len(self.centroids) + 1)
        sums = np.bincount(codes, self.distances.double().numpy(), minlength=len(sizes))
        known = any(self.labels)
        rows = []
        for at, medoids in enumerate(self.medoids):
            number = at + 1 if at < len(self.centroids) else 0
            row: dict[str, Any] = {
                "cluster": f"cluster {number}" if number else "noise",
                "images": int(sizes[number]),
                "medoid": self.names[position[medoids[0]]] if number else None,
                "mean_distance": float(sums[number] / sizes[number]) if number else None,
            }
            if known:
                row["majority_label"] = self.majority[at]
                row["purity"] = _number(self.purities[at])
            rows.append(row)
        mean = float(self.distances[self.clusters > 0].double().mean()) if sizes[1:].any() else None
        rows.append({"cluster": "all", "images": len(codes), "medoid": None, "mean_distance": mean})
        if known:
            rows[-1] |= {"majority_label": None, "purity": _number(self.purity)}
        return rows

    def documents(self) -> dict[str, str]:
        """`clusters.csv` with the summary, and `assignments.csv` with one row per image."""
        ids, codes, distances = (
            part.tolist() for part in (self.ids, self.clusters, self.distances)
        )
        rows = [
            {
                "id": ids[at],
                "name": self.names[at],
                "label": self.labels[at],
                "cluster": code,
                "distance": distances[at] if code else None,
            }
            for at, code in enumerate(codes)
        ]
        return {"clusters.csv": csv_text(self.summary()), "assignments.csv": csv_text(rows)}

    def _shown(self) -> list[list[int]]:
        """The medoids that the figure shows."""
        return [medoids[:_MEDOIDS_SHOWN] for medoids in self.medoids[:_CLUSTERS_SHOWN]]

    def _heading(self) -> str:
        count = len(self.centroids)
        heading = f"{count} cluster{'' if count == 1 else 's'} of {len(self.ids)} images"
        noise = int((self.clusters == 0).sum())
        if noise:
            heading += f", {noise} of them noise"
        return heading + (f", purity {float(self.purity):.2f}" if any(self.labels) else "")


class Clusters(StoreTechnique):
    """Groups a layer's rows into clusters, each shown by the images nearest to its centroid.

    - `kmeans` minimises `Σ_i |x_i − c_k(i)|²` over the centroids c, by FAISS. For `cosine` rows and
      centroids have length 1 (spherical k-means). It takes any number of images in bounded memory:
      at most 256 rows per cluster, drawn by the seed, decide the centroids, then every image goes
      to the nearest.
    - `hdbscan`, by scikit-learn, finds the number of clusters itself and leaves out sparse parts as
      noise. It holds all rows in memory and takes at most 50,000 images.

    The image nearest to the mean of a cluster is its medoid for squared Euclidean distances. Labels
    are compared where there are any, and never used. `purity = Σ_k max_l n_kl / n` with n_kl images
    of cluster k and label l; it grows with the number of clusters, so normalised mutual information
    and the adjusted Rand index are given too, if scikit-learn is installed (extra `embed`).

    Paper:
        - Dhillon & Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering",
          Machine Learning 2001: spherical k-means.
        - Campello, Moulavi & Sander, "Density-Based Clustering Based on Hierarchical Density
          Estimates", PAKDD 2013: HDBSCAN.

    Raises:
        ParameterError: a parameter is out of range, there are too few or (HDBSCAN) too many images,
            or rows are all equal or hold NaN.
        StoreError: the store cannot be read.
        StoreMismatch: `model` is not the one that the store was mined with.
        LayerNotFound: the store has no such layer.
        PluginError: HDBSCAN is asked for and scikit-learn is not installed.
    """

    method: Literal["kmeans", "hdbscan"] = "kmeans"
    """Method of clustering; `hdbscan` needs the extra `embed`."""
    k: int | None = Field(default=None, ge=1)
    """Number of clusters of k-means; by default √n for n images, at most 256. Choose rather too
    many than too few: one too many splits a group into two similar ones, one too few hides a group
    in another."""
    metric: Metric = "cosine"
    """Cosine distance (1 - cos) or Euclidean distance."""
    iterations: int = Field(default=25, ge=1)
    """Number of iterations of k-means."""
    restarts: int = Field(default=3, ge=1)
    """Number of runs of k-means with other initial centroids; the best run is kept."""
    min_size: int = Field(default=5, ge=2)
    """Smallest number of images in a cluster of HDBSCAN."""
    medoids: int = Field(default=8, ge=1)
    """Number of images nearest to each centroid to list; the sheet shows at most eight."""

    def analyse(self, source: Rows, images: Any) -> ImageClusters:
        """Clusters of a store's layer or an array.

        Raises:
            ParameterError: there are too few or too many images, or rows are all equal or hold NaN.
            PluginError: HDBSCAN is asked for and scikit-learn is not installed.
        """
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        space = RowSpace(source, self.metric)
        found, method, note = self._partition(space)
        medoids, groups = self._medoids(source, found), found.clusters - 1
        noise = found.clusters == 0
        groups = np.where(noise, len(found.centroids), groups)
        labelling = source.labels
        counts = contingency(groups, labelling.codes, (len(medoids), max(len(labelling.names), 1)))
        known = counts.any()
        notes = [note]
        if (counts.sum(0) > 0).sum() == 1:
            notes.append("there is one label only, so purity says nothing")
        mutual_information = rand_index = math.nan
        if known:
            try:
                mutual_information, rand_index = label_agreement(groups, labelling.codes)
            except PluginError as error:
                warnings.warn(str(error), stacklevel=2)
                notes.append(str(error))
        with np.errstate(invalid="ignore"):
            purities = counts.max(1) / counts.sum(1)
        majority = [
            labelling.names[int(row.argmax())] if row.any() else None for row in counts
        ]  # fmt: skip
        shown = [image for row in medoids[:_CLUSTERS_SHOWN] for image in row[:_MEDOIDS_SHOWN]]
        return ImageClusters(
            provenance=self.provenance(source),
            ids=torch.from_numpy(source.ids),
            clusters=torch.from_numpy(found.clusters),
            distances=torch.from_numpy(found.distances),
            centroids=torch.from_numpy(np.ascontiguousarray(found.centroids)),
            names=names(source, source.ids),
            labels=labels(source, np.arange(len(source))),
            medoids=medoids,
            majority=majority,
            purities=torch.from_numpy(purities),
            purity=_scalar(purity(counts) if known else math.nan),
            mutual_information=_scalar(mutual_information),
            adjusted_rand=_scalar(rand_index),
            pictures_of=thumbnails(source, shown),
            source=source.title,
            method=method,
            note="; ".join(filter(None, notes)),
        )

    def _partition(self, space: RowSpace) -> tuple[Partition, str, str]:
        """The clusters, a description of the method, and a note."""
        rows = space.rows
        metric = "cosine distance" if self.metric == "cosine" else "Euclidean distance"
        if self.method == "hdbscan":
            rows.require(2 * self.min_size, f"hdbscan with min_size = {self.min_size}", "min_size")
            space.require_spread("there is nothing to separate")
            found = hdbscan(space, self.min_size)
            note = "" if len(found.centroids) else "no part is dense enough to be a cluster"
            return found, f"HDBSCAN, at least {self.min_size} images, {metric}", note
        k = self.k or min(_MOST_BY_DEFAULT, round(math.sqrt(len(rows))))
        rows.require(max(k, 2), f"k-means with k = {k}", "k")
        space.require_spread("there is nothing to separate")
        found = kmeans(space, k, iterations=self.iterations, restarts=self.restarts, seed=self.seed)
        empty = k - len(found.centroids)
        note = f"{empty} of {k} clusters are empty: there are fewer distinct rows" if empty else ""
        return found, f"k-means, k = {k}, {metric}", note

    def _medoids(self, rows: Rows, found: Partition) -> list[list[int]]:
        """Ids of the images nearest to each centroid; of the noise, some spread evenly over its
        ids."""
        order = np.lexsort((rows.ids, found.distances, found.clusters))
        starts = np.searchsorted(found.clusters[order], np.arange(len(found.centroids) + 2))
        members = [
            rows.ids[order[starts[number] : starts[number + 1]][: self.medoids]].tolist()
            for number in range(1, len(found.centroids) + 1)
        ]
        noise = np.sort(rows.ids[order[: starts[1]]])
        if len(noise):
            places = np.linspace(0, len(noise) - 1, min(self.medoids, len(noise))).round()
            members.append(noise[places.astype(int)].tolist())
        return members


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _number(value: Tensor) -> float | None:
    """A float, None for NaN."""
    return None if bool(torch.isnan(value)) else float(value)
