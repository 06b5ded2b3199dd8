"""`LayerSimilarity`: similarities of several layers over the same images, as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from timmscope import Result, csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class LayerSimilarity(Result):
    """Similarity of each pair of `L` layers, of one or several models, over the same images.

    Attributes:
        layers: names of the layers, "" for arrays.
        groups: the model, store or array of each layer; equal ones are adjacent.
        units: number of units of each layer.
        images: number of images that all layers share.
        sampled: number of these images that `rsa` uses.
        distance: distance of two images, for `rsa`.
        cka: `(L, L)` linear centred kernel alignment by unbiased HSIC.
        cka_biased: `(L, L)` the same by the biased HSIC, which is too high for few images.
        rsa: `(L, L)` Spearman's correlation of the distances between images.
        remarks: what to know about the numbers.
    """

    layers: list[str]
    groups: list[str]
    units: list[int]
    images: int
    sampled: int
    distance: str
    cka: Tensor
    cka_biased: Tensor
    rsa: Tensor
    remarks: list[str]

    @property
    def names(self) -> list[str]:
        """Names of the layers, with the name of the model where there are several."""
        if len(set(self.groups)) == 1:
            return self.layers if any(self.layers) else self.groups
        return [
            f"{group} {layer}".strip()
            for group, layer in zip(self.groups, self.layers, strict=True)
        ]

    def figure(self) -> Figure:
        """CKA and RSA as matrices."""
        from timmscope_representation.distances.matrix_figure import matrix_figure

        of_one = len(set(self.groups)) == 1 and any(self.layers)
        sample = f"{self.sampled:,} images" if self.sampled < self.images else "the same images"
        distances = "Euclidean" if self.distance == "euclidean" else self.distance
        notes = [
            f"CKA: linear, debiased. RSA: rank correlation of {distances} distances of {sample}.",
            *self.remarks,
        ]
        return matrix_figure(
            {"CKA": self.cka, "RSA": self.rsa},
            self.layers if any(self.layers) else self.groups,
            groups=self.groups if any(self.layers) else None,
            title=f"Similarity of layers over {self.images:,} images",
            subtitle=self.groups[0] if of_one else "",
            notes=notes,
        )

    def summary(self) -> list[dict[str, Any]]:
        """One row per pair of layers."""
        names = self.names
        return [
            {
                "layer": names[first],
                "other": names[second],
                "cka": float(self.cka[first, second]),
                "cka_biased": float(self.cka_biased[first, second]),
                "rsa": float(self.rsa[first, second]),
            }
            for first in range(len(names))
            for second in range(first + 1, len(names))
        ]

    def documents(self) -> dict[str, str]:
        """`similarity.csv` with one row per pair of layers."""
        return {"similarity.csv": csv_text(self.summary())}
