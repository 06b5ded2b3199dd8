"""How alike layers see the same images, within a model and between models."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from timmscope import ParameterError, RepresentationTechnique, Rows
from timmscope_representation.distances.layer_similarity import LayerSimilarity
from timmscope_representation.distances.paired_rows import Aligned
from timmscope_representation.distances.similarity import FEWEST, linear_cka, rsa
from timmscope_representation.moments import Numbers
from timmscope_representation.names import store_names, told_apart


class RepresentationalSimilarity(RepresentationTechnique):
    """How alike layers of one or several models see the same images.

    - CKA, linear centred kernel alignment (Kornblith et al., ICML 2019): do images that are alike
      in one layer stay so in the other? Shown with the unbiased HSIC (Song et al., JMLR 2012),
      because the plain one nears 1 for any two layers with more units than images; the plain one
      is in the table. 1: alike up to rotation and scale; 0: unrelated; chance may give values below
      zero. Over all images, in memory that does not grow with their number.
    - RSA, representational similarity analysis (Kriegeskorte et al., 2008): Spearman's correlation
      of the distances between every two of `sample` images.

    Stores may be of different models, and of different selections of images in any order: images
    are the same where their names are, and only those that all stores have are looked at.
    """

    reads: ClassVar[str] = "stores"

    distance: Literal["correlation", "euclidean"] = "correlation"
    """How far apart two images are for RSA: 1 - Pearson's correlation over units, or Euclidean."""
    sample: int = Field(default=1000, ge=FEWEST, le=5000)
    """Images, drawn by the seed, for RSA: it looks at every two of them."""

    def analyse(self, source: list[Rows], images: Any) -> LayerSimilarity:
        """Compare all layers with each other."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        rows = _distinct(source)
        if len(rows) < 2:
            raise ParameterError(
                f"{self.title()} compares layers with each other, {len(rows)} is given: name "
                "several layers, or several stores",
                parameter="layer",
            )
        aligned = Aligned(rows)
        if len(aligned) < FEWEST:
            raise ParameterError(
                f"{self.title()} needs at least {FEWEST} images that all layers have, there are "
                f"{len(aligned)}",
                parameter="where",
            )
        count = min(self.sample, len(aligned))
        generator = np.random.default_rng(self.seed % (1 << 32))  # seeds may be negative
        places = np.sort(generator.choice(len(aligned), count, replace=False))
        distances = rsa(aligned, places, self.distance)
        debiased, plain = linear_cka(aligned)
        groups = _groups(rows)
        layers = ["" if each.layer is None else each.layer.name for each in rows]
        return LayerSimilarity(
            provenance=self.provenance(sources=[each.facts for each in rows]),
            layers=layers,
            groups=groups,
            units=[each.dim for each in rows],
            images=len(aligned),
            sampled=count,
            distance=self.distance,
            cka=torch.from_numpy(debiased),
            cka_biased=torch.from_numpy(plain),
            rsa=torch.from_numpy(distances),
            notes=list(_notes(aligned)),
        )


def _distinct(source: list[Rows]) -> list[Rows]:
    """Every layer once, however often it was named."""
    found: dict[Hashable, Rows] = {}
    for rows in source:
        key: Hashable = id(rows) if rows.layer is None else (rows.layer.store.path, rows.layer.name)
        found.setdefault(key, rows)
    return list(found.values())


def _groups(rows: list[Rows]) -> list[str]:
    """For each layer what its model is called, or its store where two are of one model."""
    stores = {each.layer.store.path: each for each in rows if each.layer is not None}
    models = [each.layer.store.manifest.model.id for each in stores.values() if each.layer]
    names = dict(zip(stores, store_names(list(stores.values()), models), strict=True))
    arrays = iter(told_apart(["array" for each in rows if each.layer is None]))
    return [next(arrays) if each.layer is None else names[each.layer.store.path] for each in rows]


def _notes(aligned: Aligned) -> Iterator[str]:
    """Which images were left out, and which look like others of the same name."""
    most = max(len(rows) for rows in aligned.rows)
    if len(aligned) < most:
        more = most - len(aligned)
        yield f"{len(aligned)} images are in all stores; up to {more} others are not in some."
    first, *others = _first_of_each_store(aligned)
    for rows, ids in others:
        store, known = rows.layer.store, first[0].layer.store  # type: ignore[union-attr]
        sizes, same = store.images.sizes[ids], known.images.sizes[first[1]]
        one, two = store.manifest.images, known.manifest.images
        differ = int((sizes != same).any(1).sum())
        if differ:
            what = f"{differ} images of {store.path.stem} have other sizes in pixels than those"
        elif len(ids) == one.count == two.count and one.fingerprint != two.fingerprint:
            what = f"Files or labels of {store.path.stem} are others than those"
        else:
            continue
        yield f"{what} of the same name in {known.path.stem}: make sure that they show the same."


def _first_of_each_store(aligned: Aligned) -> list[tuple[Rows, Numbers]]:
    """One layer of each store, and its ids of the shared images; arrays count as one store."""
    found: dict[Hashable, tuple[Rows, Numbers]] = {}
    for rows, ids in zip(aligned.rows, aligned.ids, strict=True):
        found.setdefault(rows.layer and rows.layer.store.path, (rows, ids))
    return list(found.values())
