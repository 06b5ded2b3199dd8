"""Similarity of layers over the same images, within a model and between models."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from timmscope import ParameterError, Rows, StoresTechnique
from timmscope_representation.distances.layer_similarity import LayerSimilarity
from timmscope_representation.distances.paired_rows import PairedRows
from timmscope_representation.distances.similarity import FEWEST, linear_cka, rsa
from timmscope_representation.moments import Numbers
from timmscope_representation.names import distinct_names, store_names


class RepresentationalSimilarity(StoresTechnique):
    """Compares layers of one or several models over the same images.

    - CKA (linear centred kernel alignment): `HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))` with
      `K = X Xᵀ` and `L = Y Yᵀ` of two layers' rows. It asks whether images that are similar in one
      layer are similar in the other. The unbiased HSIC is shown, because the biased one approaches
      1 for any two layers with more units than images; the biased one is in the table. 1 means
      equal up to rotation and scale, 0 unrelated; chance may give values below zero. All images
      count, in memory that does not grow with their number.
    - RSA (representational similarity analysis): `spearman(d_X(i, j), d_Y(i, j))` over all pairs i
      < j of `sample` images, with the distance d of two images in either layer.

    Stores may be of different models, and of different selections of images in any order: images
    are matched by name, and only those that all stores hold are compared.

    Paper:
        - Kornblith, Norouzi, Lee & Hinton, "Similarity of Neural Network Representations
          Revisited", ICML 2019, arXiv:1905.00414: CKA.
        - Song, Smola, Gretton, Bedo & Borgwardt, "Feature Selection via Dependence Maximization",
          JMLR 2012: the unbiased HSIC.
        - Kriegeskorte, Mur & Bandettini, "Representational similarity analysis – connecting the
          branches of systems neuroscience", Frontiers in Systems Neuroscience 2008: RSA.

    Raises:
        ParameterError: a parameter is out of range, there are fewer than two layers or too few
            shared images, or a similarity is undefined, because rows are equal.
        StoreError: a store cannot be read.
        StoreMismatch: `model` is not the one that the store was mined with.
        LayerNotFound: a store has no such layer.
    """

    distance: Literal["correlation", "euclidean"] = "correlation"
    """Distance of two images for RSA: 1 - Pearson's correlation over units, or Euclidean."""
    sample: int = Field(default=1000, ge=FEWEST, le=5000)
    """Number of images, drawn by the seed, for RSA, which compares all pairs of them."""

    def analyse(self, sources: list[Rows]) -> LayerSimilarity:
        """Compare all layers with each other.

        Raises:
            ParameterError: there are fewer than two layers or too few shared images, or a
                similarity is undefined.
        """
        rows = _distinct(sources)
        if len(rows) < 2:
            raise ParameterError(
                f"{self.title()} compares layers with each other, {len(rows)} is given: name "
                "several layers, or several stores",
                parameter="layer",
            )
        paired = PairedRows(rows)
        if len(paired) < FEWEST:
            raise ParameterError(
                f"{self.title()} needs at least {FEWEST} images that all layers share, there are "
                f"{len(paired)}",
                parameter="where",
            )
        count = min(self.sample, len(paired))
        generator = np.random.default_rng(self.seed % (1 << 32))  # seeds may be negative
        positions = np.sort(generator.choice(len(paired), count, replace=False))
        distances = rsa(paired, positions, self.distance)
        debiased, plain = linear_cka(paired)
        groups = _groups(rows)
        layers = ["" if each.layer is None else each.layer.name for each in rows]
        return LayerSimilarity(
            provenance=self.provenance(sources=[each.facts for each in rows]),
            layers=layers,
            groups=groups,
            units=[each.dim for each in rows],
            images=len(paired),
            sampled=count,
            distance=self.distance,
            cka=torch.from_numpy(debiased),
            cka_biased=torch.from_numpy(plain),
            rsa=torch.from_numpy(distances),
            remarks=list(_notes(paired)),
        )


def _distinct(source: list[Rows]) -> list[Rows]:
    """Each layer once, even if it was named several times."""
    found: dict[Hashable, Rows] = {}
    for rows in source:
        key: Hashable = id(rows) if rows.layer is None else (rows.layer.store.path, rows.layer.name)
        found.setdefault(key, rows)
    return list(found.values())


def _groups(rows: list[Rows]) -> list[str]:
    """For each layer the name of its model, or of its store where two are of one model."""
    stores = {each.layer.store.path: each for each in rows if each.layer is not None}
    models = [each.layer.store.manifest.model.id for each in stores.values() if each.layer]
    names = dict(zip(stores, store_names(list(stores.values()), models), strict=True))
    arrays = iter(distinct_names(["array" for each in rows if each.layer is None]))
    return [next(arrays) if each.layer is None else names[each.layer.store.path] for each in rows]


def _notes(paired: PairedRows) -> Iterator[str]:
    """Notes on images left out, and on images of equal names that may differ."""
    most = max(len(rows) for rows in paired.rows)
    if len(paired) < most:
        more = most - len(paired)
        yield f"{len(paired)} images are in all stores; up to {more} others are left out."
    first, *others = _first_of_each_store(paired)
    for rows, ids in others:
        store, known = rows.layer.store, first[0].layer.store  # type: ignore[union-attr]
        sizes, same = store.images.sizes[ids], known.images.sizes[first[1]]
        one, two = store.manifest.images, known.manifest.images
        differ = int((sizes != same).any(1).sum())
        if differ:
            what = f"{differ} images of {store.path.stem} have another size in pixels than those"
        elif len(ids) == one.count == two.count and one.fingerprint != two.fingerprint:
            what = f"Files or labels of {store.path.stem} differ from those"
        else:
            continue
        yield f"{what} of the same name in {known.path.stem}: check that they are the same images."


def _first_of_each_store(paired: PairedRows) -> list[tuple[Rows, Numbers]]:
    """One layer of each store, and its ids of the shared images; arrays count as one store."""
    found: dict[Hashable, tuple[Rows, Numbers]] = {}
    for rows, ids in zip(paired.rows, paired.ids, strict=True):
        found.setdefault(rows.layer and rows.layer.store.path, (rows, ids))
    return list(found.values())
