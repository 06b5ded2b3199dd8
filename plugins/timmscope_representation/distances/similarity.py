"""Similarities of layers: linear CKA over all images, and RSA over a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Literal

import numpy as np

from timmscope import ParameterError, task
from timmscope_representation.distances.paired_rows import PairedRows
from timmscope_representation.moments import Numbers

FEWEST = 4
"""Smallest number of images for the unbiased HSIC."""
_PAIR_BYTES = 1 << 29
_NOTHING = 1e-12
"""A difference this small relative to its two terms is rounding."""
_DIGITS = 12
"""Digits of a distance relative to the largest, so that equal images get equal distances."""
_LOST, _FEW = 1e-9, 0.01
"""Squared distances this small relative to the largest keep at most three digits; and the largest
share of pairs that may be so."""
_EQUAL = 1e-6
"""Rows whose relative difference is this small are equal."""


def linear_cka(paired: PairedRows) -> tuple[Numbers, Numbers]:
    """Linear centred kernel alignment of all pairs of layers, unbiased and biased, `(L, L)`.

    CKA (Kornblith et al., ICML 2019, equation 2) is HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), with
    `K = X Xᵀ`. Neither K nor L is computed: with centred X and Y, and squared lengths k and l of
    their rows, the biased HSIC is, up to a factor, `|Xᵀ Y|²`, and the unbiased one (Song et al.,
    JMLR 2012, equation 5) is

        [ |Xᵀ Y|² - n / (n - 2) Σ k l + Σ k Σ l / ((n - 1) (n - 2)) ] / (n (n - 3)),

    because `K 1 = 0`. So memory depends only on the widths of the layers, and all n images count.
    Rows are read twice: for the means, and for the products; more often where the products of all
    pairs would take more than 512 MiB. CKA does not depend on scale, so the rows of each layer are
    divided by their largest magnitude, to keep powers in range.

    Raises:
        ParameterError: a layer's rows are all equal, or nearly so.
    """
    n, layers = len(paired), range(len(paired.rows))
    dims = [rows.dim for rows in paired.rows]
    runs = list(_runs(dims))
    plain, lengths = np.empty((len(dims), len(dims))), np.empty((len(dims), len(dims)))
    sums, sizes = np.empty(len(dims)), np.empty(len(dims))
    with task("comparing layers", total=n * (1 + len(runs))) as advance:
        means = [np.zeros(dim) for dim in dims]
        largest = np.zeros(len(dims))
        for batch in paired.batches(layers):
            for layer, rows in enumerate(batch):
                means[layer] += (rows / n).sum(0)
                largest[layer] = max(largest[layer], np.abs(rows).max())
            advance(len(batch[0]))
        largest[largest == 0] = 1
        scaled = [mean / most for mean, most in zip(means, largest, strict=True)]
        for pairs in runs:
            products = _products(paired, scaled, largest, pairs, advance)
            for (first, second), (product, common, own) in products.items():
                plain[first, second] = plain[second, first] = np.square(product).sum()
                lengths[first, second] = lengths[second, first] = common
                if first == second:
                    sums[first], sizes[first] = own, n * float(scaled[first] @ scaled[first])
    debiased = plain - n / (n - 2) * lengths + np.outer(sums, sums) / ((n - 1) * (n - 2))
    for layer in layers:
        if sums[layer] <= _NOTHING**2 * sizes[layer] or (
            debiased[layer, layer] <= _NOTHING * plain[layer, layer]
        ):
            raise ParameterError(
                f"the {n} rows of {paired.rows[layer].title} are equal, or all but one are, or "
                "all distances are equal: similarity to it is undefined; leave that layer out",
                parameter="layer",
            )
    return _normalised(debiased), _normalised(plain)


def _normalised(hsic: Numbers) -> Numbers:
    """HSIC divided by the roots of its diagonal, which becomes exactly 1."""
    root = np.sqrt(np.diag(hsic))
    found: Numbers = hsic / np.outer(root, root)
    np.fill_diagonal(found, 1.0)
    return found


def _runs(dims: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Pairs of layers in as few lists as possible with the products of each within the limit."""
    pairs: list[tuple[int, int]] = []
    size = 0
    for first, second in combinations_with_replacement(range(len(dims)), 2):
        more = 8 * dims[first] * dims[second]
        if pairs and size + more > _PAIR_BYTES:
            yield pairs
            pairs, size = [], 0
        pairs.append((first, second))
        size += more
    yield pairs


def _products(
    paired: PairedRows,
    means: list[Numbers],
    units: Numbers,
    pairs: list[tuple[int, int]],
    advance: Callable[[int], None],
) -> dict[tuple[int, int], tuple[Numbers, float, float]]:
    """For each pair `Xᵀ Y` of centred rows, `Σ k l` and `Σ k`, in one pass.

    Rows of each layer are divided by its unit; the means are already.
    """
    needed = sorted({layer for pair in pairs for layer in pair})
    products = {(i, j): np.zeros((len(means[i]), len(means[j]))) for i, j in pairs}
    common, own = dict.fromkeys(pairs, 0.0), dict.fromkeys(needed, 0.0)
    for batch in paired.batches(needed):
        rows = {
            layer: x / units[layer] - means[layer] for layer, x in zip(needed, batch, strict=True)
        }
        lengths = {layer: np.einsum("ij,ij->i", x, x) for layer, x in rows.items()}
        for i, j in pairs:
            products[i, j] += rows[i].T @ rows[j]
            common[i, j] += float(lengths[i] @ lengths[j])
        for layer in needed:
            own[layer] += float(lengths[layer].sum())
        advance(len(batch[0]))
    return {pair: (products[pair], common[pair], own[pair[0]]) for pair in pairs}


def rsa(
    paired: PairedRows, positions: Numbers, distance: Literal["correlation", "euclidean"]
) -> Numbers:
    """Representational similarity analysis of all pairs of layers, `(L, L)`.

    It is Spearman's correlation of the distances of all pairs of images in two layers
    (Kriegeskorte, Mur & Bandettini, Frontiers in Systems Neuroscience 2008). It takes 4 s² bytes
    per layer.

    Args:
        paired: the layers.
        positions: `(s,)` positions among the shared images.
        distance: 1 - Pearson's correlation over units, or Euclidean.

    Raises:
        ParameterError: a row without variance has no correlation, all distances are equal, or one
            image is so far away that the distances of the others are lost in rounding.
    """
    upper = np.triu_indices(len(positions), 1)
    ranks = np.empty((len(paired.rows), len(upper[0])))
    with task("comparing distances", total=len(ranks)) as advance:
        for layer in range(len(ranks)):
            rows = paired.take(layer, positions).astype(np.float64)
            title = paired.rows[layer].title
            names = paired.rows[layer].names(paired.ids[layer][positions])
            if distance == "correlation":
                gaps = _correlation_distances(rows, names, title)
            else:
                gaps = _squared_distances(rows, names, title)
            ranks[layer] = _ranks(gaps[upper])
            if ranks[layer].min() == ranks[layer].max():
                raise ParameterError(
                    f"all distances of {len(positions)} images in {title} are equal: RSA is "
                    "undefined; leave that layer out",
                    parameter="layer",
                )
            advance(1)
    ranks -= ranks.mean(1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    found: Numbers = ranks @ ranks.T
    np.fill_diagonal(found, 1.0)
    return found


def _correlation_distances(rows: Numbers, names: list[str], title: str) -> Numbers:
    """1 - Pearson's correlation of each pair of rows."""
    largest = np.abs(rows).max(1, keepdims=True)
    rows = rows / np.where(largest, largest, 1)  # to keep squares in range
    size = np.linalg.norm(rows, axis=1)
    rows = rows - rows.mean(1, keepdims=True)
    spread = np.linalg.norm(rows, axis=1)
    flat = np.flatnonzero(spread <= _NOTHING * size)
    if len(flat):
        more = f" and {len(flat) - 3} more" if len(flat) > 3 else ""
        raise ParameterError(
            f"all units of {title} are equal in {len(flat)} of {len(rows)} images "
            f"({', '.join(names[row] for row in flat[:3])}{more}): their correlation is undefined; "
            "set distance to euclidean, or leave that layer out",
            parameter="distance",
        )
    rows = rows / spread[:, None]
    return 1 - rows @ rows.T


def _squared_distances(rows: Numbers, names: list[str], title: str) -> Numbers:
    """Squared distance of each pair of rows, up to a factor, with the ranks of the distance."""
    largest = np.abs(rows).max()
    rows = rows / largest if largest else rows  # to keep squares in range
    centred = rows - rows.mean(0)
    lengths = np.einsum("ij,ij->i", centred, centred)
    gaps: Numbers = lengths[:, None] + lengths - 2 * centred @ centred.T
    close = np.argwhere(np.triu(gaps < _LOST * gaps.max(), 1))
    if len(close) > _FEW * len(rows) * (len(rows) - 1) / 2:
        one, other = rows[close[:: max(1, len(close) // 1000)].T]
        if (np.abs(one - other) > _EQUAL * np.abs(one).max(1, keepdims=True)).any():
            raise ParameterError(
                f"{names[int(lengths.argmax())]} is so far from the other images in {title} that "
                "their own distances are lost in rounding: leave it out with where=, or set "
                "distance to correlation",
                parameter="where",
            )
    return gaps


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 1; values that are equal up to rounding share their mean rank."""
    largest = float(np.abs(values).max())
    steps = np.round(values / largest, _DIGITS) if largest else values
    _, place, counts = np.unique(steps, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Numbers = (ends - (counts - 1) / 2)[place]
    return ranks
