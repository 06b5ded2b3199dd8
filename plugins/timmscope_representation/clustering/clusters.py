"""Clusters of a layer's rows: what a network holds for alike, group by group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    ParameterError,
    RepresentationTechnique,
    Result,
    Rows,
    Sheet,
    Table,
    csv_text,
)
from timmscope_representation.clustering.agreement import (
    adjusted_rand,
    contingency,
    mutual_information,
    purity,
)
from timmscope_representation.clustering.partition import Partition, hdbscan, kmeans
from timmscope_representation.display import labels, names, short, thumbnails
from timmscope_representation.row_space import Metric, RowSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[Any]

_CLUSTERS_SHOWN, _MEDOIDS_SHOWN = 24, 8
_MOST_BY_DEFAULT = 256


@dataclass(frozen=True, kw_only=True)
class ImageClusters(Result):
    """Images in clusters, the largest first, and how they agree with labels.

    Attributes:
        ids: `(n,)` ids of the images.
        clusters: `(n,)` number of each one's cluster, from 1; 0 is noise.
        distances: `(n,)` float32, to the centroid: cosine (1 - cos) or Euclidean; NaN for noise.
        centroids: `(k, d)`, of length 1 for `cosine`.
        names: what each image is called.
        labels: of each, None where there is none.
        medoids: ids of the images nearest to each centroid, nearest first, ties by id; after the
            last cluster those that stand for the noise, if there is any.
        majority: each cluster's most frequent label, None without labels; the noise's after them.
        purities: share of it among the cluster's labelled images; NaN without.
        purity: share of all labelled images, noise included, that have their group's majority
            label; NaN without labels.
        mutual_information: normalised, of groups and labels; NaN without labels.
        adjusted_rand: index of groups and labels; NaN without labels.
        pictures_of: `(shown, 3, t, t)` medoids of the first clusters, or None.
        source: what was clustered.
        method: in words.
        note: what to keep in mind.
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
        """A cluster a row: the images nearest to its centroid."""
        if self.pictures_of is None:
            return Table(provenance=self.provenance, rows=self.summary()).figure()
        rows = self._shown()
        place = {image: at for at, image in enumerate(self.ids.tolist())}
        known = any(self.labels)
        titles = []
        for medoids in rows:
            for image in medoids:
                name, label = short(self.names[place[image]]), self.labels[place[image]]
                titles.append(f"{name}\n{label or '–'}" if known else name)
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
            note += (
                f"; percentages: share of the most frequent label; normalised mutual information "
                f"{float(self.mutual_information):.2f}, adjusted Rand index "
                f"{float(self.adjusted_rand):.2f}"
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
        """A cluster a row: images, medoid, mean distance, majority label and purity; then all."""
        place = {image: at for at, image in enumerate(self.ids.tolist())}
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
                "medoid": self.names[place[medoids[0]]] if number else None,
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
        """`clusters.csv`: the summary; `assignments.csv`: every image."""
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
        """Medoids in the figure."""
        return [medoids[:_MEDOIDS_SHOWN] for medoids in self.medoids[:_CLUSTERS_SHOWN]]

    def _heading(self) -> str:
        count = len(self.centroids)
        heading = f"{count} cluster{'' if count == 1 else 's'} of {len(self.ids)} images"
        noise = int((self.clusters == 0).sum())
        if noise:
            heading += f", {noise} of them noise"
        return heading + (f", purity {float(self.purity):.2f}" if any(self.labels) else "")


class Clusters(RepresentationTechnique):
    """Clusters of a layer's rows, each shown by the images nearest to its centroid.

    `kmeans` (FAISS) takes any number of images in bounded memory: at most 256 a cluster, drawn by
    the seed, decide the centroids, then every image goes to the nearest. For `cosine` it is
    spherical (Dhillon & Modha, 2001). `hdbscan` (Campello, Moulavi & Sander, PAKDD 2013;
    scikit-learn) finds the number of clusters itself and leaves out what is sparse, as noise; it
    holds all rows in memory and takes at most 50,000 images.

    The image nearest to the mean of a cluster is its medoid for squared Euclidean distances. Labels
    are compared where there are any, and never used: purity grows with the number of clusters, so
    look at the adjusted Rand index too.
    """

    method: Literal["kmeans", "hdbscan"] = "kmeans"
    """How to cluster; `hdbscan` needs the extra `embed`."""
    k: int | None = Field(default=None, ge=1)
    """Clusters of k-means; by default √n for n images, as many as there are images in one, at most
    256. Rather too many than too few: one too many splits a group in two that are alike, one too
    few hides a group within another."""
    metric: Metric = "cosine"
    """Cosine distance (1 - cos) or Euclidean distance."""
    iterations: int = Field(default=25, ge=1)
    """Iterations of k-means."""
    restarts: int = Field(default=3, ge=1)
    """How often k-means begins anew, with other first centroids; the best outcome is kept."""
    min_size: int = Field(default=5, ge=2)
    """Images of a cluster of HDBSCAN at least."""
    medoids: int = Field(default=8, ge=1)
    """Images nearest to each centroid to name; the sheet shows at most eight."""

    def analyse(self, source: Rows, images: Any) -> ImageClusters:
        """Clusters of a store's layer or an array."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        space = RowSpace(source, self.metric)
        found, method, note = self._partition(space)
        medoids, groups = self._medoids(source, found), found.clusters - 1
        noise = found.clusters == 0
        groups = np.where(noise, len(found.centroids), groups)
        tables = source.labels
        counts = contingency(groups, tables.codes, (len(medoids), max(len(tables.names), 1)))
        known = counts.any()
        if (counts.sum(0) > 0).sum() == 1:
            note = "; ".join(
                filter(None, [note, "there is one label only, so purity says nothing"])
            )
        with np.errstate(invalid="ignore"):
            purities = counts.max(1) / counts.sum(1)
        majority = [
            tables.names[int(row.argmax())] if row.any() else None for row in counts
        ]  # fmt: skip
        shown = [image for row in medoids[:_CLUSTERS_SHOWN] for image in row[:_MEDOIDS_SHOWN]]
        agreement = [
            torch.tensor(measure(counts) if known else math.nan, dtype=torch.float64)
            for measure in (purity, mutual_information, adjusted_rand)
        ]
        return ImageClusters(
            provenance=self.provenance(**source.facts),
            ids=torch.from_numpy(source.ids),
            clusters=torch.from_numpy(found.clusters),
            distances=torch.from_numpy(found.distances),
            centroids=torch.from_numpy(np.ascontiguousarray(found.centroids)),
            names=names(source, source.ids),
            labels=labels(source, np.arange(len(source))),
            medoids=medoids,
            majority=majority,
            purities=torch.from_numpy(purities),
            purity=agreement[0],
            mutual_information=agreement[1],
            adjusted_rand=agreement[2],
            pictures_of=thumbnails(source, shown),
            source=source.title,
            method=method,
            note=note,
        )

    def _partition(self, space: RowSpace) -> tuple[Partition, str, str]:
        """The clusters, how they were found, and what to keep in mind."""
        rows = space.rows
        metric = "cosine distance" if self.metric == "cosine" else "Euclidean distance"
        if self.method == "hdbscan":
            rows.require(2 * self.min_size, f"hdbscan with min_size = {self.min_size}", "min_size")
            space.require_spread("there is nothing to tell apart")
            found = hdbscan(space, self.min_size)
            note = "" if len(found.centroids) else "no part is dense enough to be a cluster"
            return found, f"HDBSCAN, at least {self.min_size} images, {metric}", note
        k = self.k or min(_MOST_BY_DEFAULT, round(math.sqrt(len(rows))))
        rows.require(max(k, 2), f"k-means with k = {k}", "k")
        space.require_spread("there is nothing to tell apart")
        found = kmeans(space, k, iterations=self.iterations, restarts=self.restarts, seed=self.seed)
        empty = k - len(found.centroids)
        note = f"{empty} of {k} clusters stayed empty: fewer rows than that differ" if empty else ""
        return found, f"k-means, k = {k}, {metric}", note

    def _medoids(self, rows: Rows, found: Partition) -> list[list[int]]:
        """Ids of the images nearest to each centroid; of the noise, some from all over it."""
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


def _number(value: Tensor) -> float | None:
    """A float, None for NaN."""
    return None if bool(torch.isnan(value)) else float(value)
