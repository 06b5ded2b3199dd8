"""Embedding map: a layer's rows as points, with similar images near each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    ClassNames,
    ParameterError,
    RepresentationTechnique,
    Rows,
    StoreLayer,
    TimmscopeError,
    pooled_features,
)
from timmscope_representation.embedding.embedding import Embedding

from .nearest_neighbours import query_names
from .point_colours import Colouring, by_cluster, by_column, by_label, by_prediction, by_unit
from .projections import Method, Projection, project

_TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


class EmbeddingMap(RepresentationTechnique):
    """Lays out a layer's rows in two or three dimensions.

    - `pca`: `y = Wᵀ (x − μ)` with the directions W of largest variance, in one pass over the rows.
    - `tsne`: minimises `KL(P ‖ Q) = Σ p_ij log(p_ij / q_ij)` of the neighbour probabilities of rows
      (P) and points (Q), by openTSNE.
    - `umap`: minimises the cross-entropy of the fuzzy neighbour graphs of rows and points, by
      umap-learn.

    The result is a figure and an interactive page. PCA shows the largest variance, t-SNE and UMAP
    show which images are neighbours; these two start from the first 50 principal components, as is
    usual. Query images are placed on the finished
    map, and do not change it.

    Paper:
        - Pearson, "On lines and planes of closest fit to systems of points in space", Philosophical
          Magazine 1901: PCA.
        - van der Maaten & Hinton, "Visualizing Data using t-SNE", JMLR 2008.
        - McInnes, Healy & Melville, "UMAP: Uniform Manifold Approximation and Projection for
          Dimension Reduction", 2018, arXiv:1802.03426.

    Raises:
        ImageError: a query image cannot be read.
        ParameterError: a parameter is out of range or does not fit the others, or rows are too few,
            all equal or hold NaN.
        PluginError: the library of t-SNE or UMAP is not installed.
        StoreMismatch: the given model has other weights than the store's.
        StoreError: the store cannot be read.
        LayerNotFound: the store has no such layer.
        TechniqueError: the library cannot lay out the rows.
    """

    method: Method = "pca"
    """Method of the layout; t-SNE and UMAP need the extra `embed`."""
    dimensions: Literal[2, 3] = 2
    """Number of dimensions of the map."""
    neighbours: int | None = Field(default=None, ge=2)
    """Number of neighbours that decide the place of an image: t-SNE's perplexity (by default 30) or
    UMAP's n_neighbors (by default 15)."""
    colour: Literal["label", "prediction", "column", "unit", "cluster", "none"] | None = None
    """Colours of the points; by default the column, unit or clusters set below, else labels if
    there are any."""
    column: str | None = Field(default=None, min_length=1)
    """Column of the images to colour points by: `folder`, `width`, or one of the metadata. Numbers
    have a continuous scale, texts a colour each, and missing values are grey."""
    unit: int | None = Field(default=None, ge=0)
    """Unit of the layer to colour points by."""
    clusters: int | None = Field(default=None, ge=2)
    """Number of clusters (k-means of the rows) to colour points by."""
    thumbnails: bool = True
    """Decode the images again, to show thumbnails in the figure and on the page."""

    def analyse(self, source: Rows, images: Any) -> Embedding:
        """The map of a store's layer or an array, with query images on it.

        Raises:
            ParameterError: a parameter does not fit the source, or rows are too few, all equal or
                hold NaN.
            PluginError: the library of t-SNE or UMAP is not installed.
            TechniqueError: the library cannot lay out the rows.
        """
        colour = self._colour(source)
        column = None if self.column is None else by_column(source, self.column)
        features, pictures, names = self._queries(source, images)
        colourings = self._colourings(source, colour, column)
        found = self.fit(source, seed=self.seed)
        places = None if features is None else found.transform(features)
        return Embedding.of_rows(
            source,
            found.points,
            thumbnails=self.thumbnails,
            query_points=places,
            query_images=pictures,
            provenance=self.provenance(source, **({"queries": names} if names else {})),
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
        """The map without thumbnails: its `points`, and `transform` for further rows.

        Args:
            rows: a layer of a store, or an array `(n, d)`.
            seed: seed of t-SNE and UMAP.

        Raises:
            ParameterError: too few rows, rows that are all equal or that hold NaN.
            PluginError: the library of the method is not installed.
            TechniqueError: the library cannot lay out the rows.
        """
        source = rows if isinstance(rows, Rows) else Rows(rows)
        return project(source, self.method, self.dimensions, self.neighbours, seed)

    def _heading(self, rows: Rows) -> str:
        of = "" if rows.layer is None else f", {rows.layer.store.manifest.model.id}"
        images = "row" if rows.layer is None else "image"
        plural = "" if len(rows) == 1 else "s"
        return f"{_TITLES[self.method]} of {len(rows):,} {images}{plural}: {rows.title}{of}"

    def _colour(self, rows: Rows) -> str:
        """The first colouring, checked before anything is computed."""
        for name, field, kind in (
            ("column", "column", "name"),
            ("unit", "unit", "number"),
            ("cluster", "clusters", "number"),
        ):
            if self.colour == name and getattr(self, field) is None:
                raise ParameterError(
                    f"colour {name!r} needs a {kind}: set {field}", parameter=field
                )
        labelled = any(label is not None for label in rows.labels)
        if self.colour == "label" and not labelled:
            raise ParameterError(
                f"no image of {rows.title} has a label: colour by prediction, column, unit or "
                "cluster, or give labels by metadata with a column label",
                parameter="colour",
            )
        if self.colour is not None:
            return self.colour
        given = {"column": self.column, "unit": self.unit, "cluster": self.clusters}
        asked = [name for name, value in given.items() if value is not None]
        return asked[0] if asked else "label" if labelled else "none"

    def _colourings(self, rows: Rows, first: str, column: Colouring | None) -> list[Colouring]:
        """All colourings that are available or asked for, the first one in front."""
        if first == "none" and self.colour == "none":
            return []
        makers: dict[str, Callable[[], Colouring | None]] = {
            "label": lambda: by_label(rows),
            "prediction": lambda: by_prediction(rows, self.layer_of(rows), self._classes(rows)),
            "column": lambda: column,
            "unit": lambda: by_unit(rows, self.unit or 0),
            "cluster": lambda: by_cluster(rows, self.clusters or 2, self.seed),
        }
        known = {
            "label": self.column != "label" and any(label is not None for label in rows.labels),
            "prediction": rows.layer is not None and "logits" in rows.layer.store.layers,
            "column": column is not None,
            "unit": self.unit is not None,
            "cluster": self.clusters is not None,
        }
        order = [name for name in makers if name == first or known[name]]
        order.sort(key=lambda name: name != first)
        return [found for name in order if (found := makers[name]()) is not None]

    def _classes(self, rows: Rows) -> ClassNames | None:
        """Names of the model's classes; None if it has none or cannot be loaded."""
        try:
            return self.model_of(self.layer_of(rows)).classes
        except TimmscopeError:
            return None

    def _queries(
        self, rows: Rows, images: Any
    ) -> tuple[npt.NDArray[Any] | None, Tensor | None, list[str]]:
        """Features, pixels and names of the query images; None and [] without any."""
        if images is None:
            return None, None, []
        layer = self.layer_of(rows)
        model = self.model_of(layer)
        pictures = model.images(images).detach()
        names = query_names(images, len(pictures))
        precision = layer.store.manifest.precision
        features = pooled_features(model, pictures, layer.name, precision=precision)
        return features, pictures.cpu(), names
