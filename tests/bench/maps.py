"""Benchmarks of PCA and t-SNE of 100,000 rows in a store, against scikit-learn and openTSNE.

Rows have 512 numbers; the peers get them as a matrix in memory. Scikit-learn has three solvers for
50 components of such a matrix: the eigenvectors of the covariance, its default for this shape since
1.5, which like ours needs one product of the matrix with itself; random projections, its earlier
default; and the full singular value decomposition.

t-SNE takes minutes, so each runs once. `TIMMSCOPE_BENCH_MAP_ROWS` is its number of rows (100,000).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.pairs import Pair, compare, seconds_of
from tests.bench.row_stores import mixture, rows_store

from timmscope import Rows, technique

ROWS, DIM, COMPONENTS = 100_000, 512, 50
TSNE_ROWS = int(os.environ.get("TIMMSCOPE_BENCH_MAP_ROWS", str(ROWS)))


def pca() -> Iterator[Pair]:
    """Time 50 components in one pass over a store, and scikit-learn on the loaded matrix."""
    from sklearn.decomposition import PCA

    from timmscope_representation.embedding.principal_components import PrincipalComponents

    rows = mixture(ROWS, DIM)
    with tempfile.TemporaryDirectory() as folder:
        layer = rows_store(Path(folder) / "rows.scope", rows)

        def ours() -> object:
            return PrincipalComponents.fit(Rows(layer), COMPONENTS)

        def reading() -> None:
            for _ in Rows(layer).batches():
                pass

        for name, solver in (
            ("scikit-learn, default", "auto"),
            ("scikit-learn, randomized", "randomized"),
            ("scikit-learn, full", "full"),
        ):

            def theirs(solver=solver) -> object:
                return PCA(COMPONENTS, svd_solver=solver, random_state=0).fit(rows)

            yield compare(
                f"PCA {ROWS} x {DIM}",
                ("one pass over a store", ours),
                (name, theirs),
                runs=7 if solver == "auto" else 3,
            )
        yield compare(
            f"PCA {ROWS} x {DIM}",
            ("one pass over a store", ours),
            ("reading the store alone", reading),
        )


def tsne() -> Iterator[Pair]:
    """Time t-SNE of a store's rows, and openTSNE on the loaded matrix and on its components."""
    from openTSNE import TSNE
    from sklearn.decomposition import PCA

    rows = mixture(TSNE_ROWS, DIM)
    with tempfile.TemporaryDirectory() as folder:
        layer = rows_store(Path(folder) / "rows.scope", rows)
        embed: Any = technique("embedding-map")(method="tsne")
        theirs = TSNE(random_state=0, n_jobs=-1)
        ours_s = seconds_of(lambda: embed.fit(layer, seed=0))
        for name, work in (
            ("openTSNE on 50 components", lambda: theirs.fit(PCA(COMPONENTS).fit_transform(rows))),
            ("openTSNE on all columns", lambda: theirs.fit(rows)),
        ):
            theirs_s = seconds_of(work)
            yield Pair(
                name=f"t-SNE {TSNE_ROWS} x {DIM}",
                ours="from 50 components",
                theirs=name,
                ours_s=ours_s,
                theirs_s=theirs_s,
                ratio=ours_s / theirs_s,
                runs=1,
            )
