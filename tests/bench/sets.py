"""Benchmarks of FID and CKA of 100,000 rows of 512 numbers in stores, against NumPy and SciPy.

The peers get the rows as matrices in memory. For FID they do what pytorch-fid does: `numpy.cov`,
and the square root of the product of covariances by `scipy.linalg.sqrtm`. For CKA they compute the
formula with products of centred matrices in float64, without debiasing. Ours read the rows from
disk, CKA twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tests.bench.pairs import Pair, compare
from tests.bench.row_stores import mixture, rows_store

from timmscope import Rows

ROWS, DIM = 100_000, 512


def fid() -> Iterator[Pair]:
    """Time the moments of two stores in one pass each, and their Fréchet distance."""
    import scipy.linalg

    from timmscope_representation.distances.set_distances import frechet_distance
    from timmscope_representation.moments import Moments

    sets = [mixture(ROWS, DIM, seed=seed) for seed in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
        layers = [rows_store(Path(folder) / f"{n}.scope", rows) for n, rows in enumerate(sets)]

        def ours() -> object:
            return frechet_distance(
                *(Moments.of(DIM, (b for _, b in Rows(layer).batches())) for layer in layers)
            )

        def theirs() -> object:
            (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in sets)
            root = scipy.linalg.sqrtm(c1 @ c2).real
            return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)

        assert np.isclose(ours(), theirs(), rtol=1e-4)  # type: ignore[arg-type, call-overload]
        name = f"FID 2 x {ROWS} x {DIM}"
        yield compare(name, ("two stores", ours), ("NumPy and SciPy", theirs), runs=5)


def cka() -> Iterator[Pair]:
    """Time the CKA of two layers, debiased and plain, in two passes over two stores."""
    from timmscope_representation.distances.paired_rows import PairedRows
    from timmscope_representation.distances.similarity import linear_cka

    first = mixture(ROWS, DIM)
    second = np.maximum(first @ np.linalg.qr(mixture(DIM, DIM, seed=2))[0] + 0.3, 0)
    with tempfile.TemporaryDirectory() as folder:
        layers = [
            rows_store(Path(folder) / f"{n}.scope", rows) for n, rows in enumerate((first, second))
        ]

        def ours() -> float:
            return float(linear_cka(PairedRows([Rows(layer) for layer in layers]))[1][0, 1])

        def theirs() -> float:
            x, y = (rows - rows.mean(0, dtype=np.float64) for rows in (first, second))
            across = np.linalg.norm(x.T @ y) ** 2
            return float(across / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))

        assert np.isclose(ours(), theirs(), rtol=1e-6)
        name = f"CKA 2 x {ROWS} x {DIM}"
        yield compare(name, ("two stores", ours), ("NumPy", theirs), runs=5)
