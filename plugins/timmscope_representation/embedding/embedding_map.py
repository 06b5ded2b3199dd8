"""A layer's rows as a map: images that the layer finds alike lie near each other."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    ClassNames,
    HookedModel,
    ParameterError,
    RepresentationTechnique,
    Rows,
    StoreLayer,
    TimmscopeError,
    pooled_features,
)
from timmscope_representation.embedding.embedding import Embedding

from .nearest_neighbours import query_names
from .point_colours import Colouring, by_cluster, by_label, by_prediction, by_unit
from .projections import Method, Projection, project

_TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


class EmbeddingMap(RepresentationTechnique):
    """A layer's rows laid out in two or three dimensions, as a picture and a page to explore.

    PCA (Pearson 1901) shows the directions of largest variance, in one pass over the rows;
    t-SNE (van der Maaten & Hinton, JMLR 2008) and UMAP (McInnes, Healy & Melville 2018) show
    which images are neighbours. These two start from the first 50 principal components, as is
    usual. Query images are put into the finished map, which they do not change.
    """

    method: Method = "pca"
    """How rows are laid out; t-SNE and UMAP need the extra `embed`."""
    dimensions: Literal[2, 3] = 2
    """Of the map."""
    neighbours: int | None = Field(default=None, ge=2)
    """How many neighbours an image's place goes by: t-SNE's perplexity (30), UMAP's n_neighbors
    (15)."""
    colour: Literal["label", "prediction", "unit", "cluster", "none"] | None = None
    """What points are coloured by; by default what is asked for below, else labels if there are
    any."""
    unit: int | None = Field(default=None, ge=0)
    """Unit of the layer to colour points by."""
    clusters: int | None = Field(default=None, ge=2)
    """Number of clusters (k-means of the rows) to colour points by."""
    thumbnails: bool = True
    """Decode the images once more, to show them on the map and on its page."""

    def analyse(self, source: Rows, images: Any) -> Embedding:
        """The map of a store's layer or an array, with query images in it."""
        colour = self._colour(source)
        queries = self._queries(source, images)
        colourings = self._colourings(source, colour)
        found = self.fit(source, seed=self.seed)
        model, features, pictures, names = queries
        places = None if features is None else found.transform(features)
        facts = {**source.facts, "queries": names} if names else source.facts
        return Embedding.of_rows(
            source,
            found.points,
            thumbnails=self.thumbnails,
            query_points=places,
            query_images=pictures,
            provenance=self.provenance(model, **facts),
            query_names=names,
            method=_TITLES[self.method],
            title=self._heading(source),
            note=found.note,
            explained=found.pca.explained.tolist() if self.method == "pca" else None,
            colourings=[colouring for colouring, _ in colourings],
            values=torch.from_numpy(
                np.stack([values for _, values in colourings])
                if colourings
                else np.empty((0, len(source)))
            ),
        )

    def fit(self, rows: Rows | StoreLayer | npt.NDArray[Any], *, seed: int = 0) -> Projection:
        """The map alone: its `points`, and `transform` for further rows.

        Args:
            rows: a layer of a store, or an array `(n, d)`.
            seed: of t-SNE's and UMAP's random numbers.

        Raises:
            ParameterError: too few rows, rows that are all equal or that hold NaN.
            TechniqueError: the method's library is not installed.
        """
        source = rows if isinstance(rows, Rows) else Rows(rows)
        return project(source, self.method, self.dimensions, self.neighbours, seed)

    def _heading(self, rows: Rows) -> str:
        of = "" if rows.layer is None else f", {rows.layer.store.manifest.model.id}"
        images = "row" if rows.layer is None else "image"
        plural = "" if len(rows) == 1 else "s"
        return f"{_TITLES[self.method]} of {len(rows):,} {images}{plural}: {rows.title}{of}"

    def _colour(self, rows: Rows) -> str:
        """What to colour by first, checked before anything is computed."""
        for name, wanted in (("unit", self.unit), ("cluster", self.clusters)):
            field = "clusters" if name == "cluster" else name
            if self.colour == name and wanted is None:
                raise ParameterError(
                    f"colour {name!r} needs a number: set {field}", parameter=field
                )
        labelled = any(label is not None for label in rows.labels)
        if self.colour == "label" and not labelled:
            raise ParameterError(
                f"no image of {rows.title} has a label: colour by prediction, unit or cluster, or "
                "give labels by metadata with a column label",
                parameter="colour",
            )
        if self.colour is not None:
            return self.colour
        asked = "unit" if self.unit is not None else "cluster" if self.clusters else None
        return asked or ("label" if labelled else "none")

    def _colourings(self, rows: Rows, first: str) -> list[Colouring]:
        """All that is known or asked for, what to show first in front."""
        if first == "none" and self.colour == "none":
            return []
        makers = {
            "label": lambda: by_label(rows),
            "prediction": lambda: by_prediction(rows, self.layer_of(rows), self._classes(rows)),
            "unit": lambda: by_unit(rows, self.unit or 0),
            "cluster": lambda: by_cluster(rows, self.clusters or 2, self.seed),
        }
        known = {
            "label": any(label is not None for label in rows.labels),
            "prediction": rows.layer is not None and "logits" in rows.layer.store.layers,
            "unit": self.unit is not None,
            "cluster": self.clusters is not None,
        }
        order = [name for name in makers if name == first or known[name]]
        order.sort(key=lambda name: name != first)
        return [makers[name]() for name in order]

    def _classes(self, rows: Rows) -> ClassNames | None:
        """Names of the model's classes; None where it has none, or cannot be loaded."""
        try:
            return self.model_of(self.layer_of(rows)).classes
        except TimmscopeError:
            return None

    def _queries(
        self, rows: Rows, images: Any
    ) -> tuple[HookedModel | None, npt.NDArray[Any] | None, Tensor | None, list[str]]:
        """Model, features, pictures and names of the query images; nothing where there are none."""
        if images is None:
            return None, None, None, []
        layer = self.layer_of(rows)
        model = self.model_of(layer)
        pictures = model.images(images).detach()
        names = query_names(images, len(pictures))
        return (
            model,
            pooled_features(model, pictures, layer.name, precision=layer.store.manifest.precision),
            pictures.cpu(),
            names,
        )
