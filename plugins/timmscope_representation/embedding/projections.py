"""Layouts of rows in two or three dimensions, by PCA, t-SNE or UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from timmscope import ParameterError, Rows, TechniqueError, task
from timmscope_representation.optional_packages import require_package

from .principal_components import PrincipalComponents

Numbers = npt.NDArray[Any]
Method = Literal["pca", "tsne", "umap"]

COMPONENTS = 50
"""Number of principal components that t-SNE and UMAP start from, as is usual: distances are nearly
those of the rows, and cheaper in proportion."""

NEIGHBOURS = {"tsne": 30, "umap": 15}
"""The usual perplexity of t-SNE, and umap-learn's default number of neighbours."""

_PACKAGES = {"tsne": ("openTSNE", "openTSNE"), "umap": ("umap", "umap-learn")}
_STEPS = 750
"""Iterations of t-SNE: openTSNE's 250 with exaggerated forces, then 500."""
_EVERY = 10
_FEWEST = 5
"""Smallest number of rows for t-SNE and UMAP with any number of neighbours."""
_LARGE = 10_000
"""Number of rows from which t-SNE is faster with interpolation and several threads."""


@dataclass(frozen=True)
class Projection:
    """A fitted layout of rows.

    Attributes:
        method: the method.
        points: `(n, dimensions)` float32, coordinates of the fitted rows.
        pca: principal components: the layout itself, or the input of t-SNE and UMAP.
        note: description of the method.
    """

    method: Method
    points: Numbers
    pca: PrincipalComponents
    note: str
    _fitted: Any = None
    _unit: float = 1.0

    def transform(self, rows: npt.ArrayLike) -> Numbers:
        """Coordinates `(m, dimensions)` float32 of further rows `(m, d)`.

        The layout does not change. A fitted row, given as a new one, gets coordinates near its own,
        and exactly its own with PCA only.

        Raises:
            ParameterError: rows have another length, or hold NaN or infinite values.
        """
        new = Rows(np.atleast_2d(np.asarray(rows)))
        if new.dim != len(self.pca.mean):
            raise ParameterError(
                f"rows of length {new.dim} for a map of rows of length {len(self.pca.mean)}",
                parameter="rows",
            )
        reduced = _reduced(self.pca, new)
        if self.method == "pca":
            return reduced[:, : self.points.shape[1]]
        with _quiet(self.method):
            places = self._fitted.transform(reduced / np.float32(self._unit))
        return np.asarray(places, np.float32)


def project(
    rows: Rows, method: Method, dimensions: int, neighbours: int | None, seed: int
) -> Projection:
    """Lay rows out.

    PCA needs memory for the coordinates only; t-SNE and UMAP also for `COMPONENTS` values and a
    list of neighbours per row.

    Args:
        rows: the rows.
        method: `pca`, `tsne` (van der Maaten & Hinton 2008) or `umap` (McInnes et al. 2018).
        dimensions: 2 or 3.
        neighbours: t-SNE's perplexity or UMAP's number of neighbours; None for `NEIGHBOURS`.
        seed: seed of t-SNE and UMAP; the same seed gives the same coordinates.

    Raises:
        ParameterError: rows are too few, all equal or hold NaN, or neighbours are given for PCA.
        PluginError: the library is not installed.
        TechniqueError: the library cannot lay out the rows.
    """
    if method == "pca":
        if neighbours is not None:
            raise ParameterError(
                "PCA uses no neighbours: leave neighbours out, or choose t-SNE or UMAP",
                parameter="neighbours",
            )
        pca = PrincipalComponents.fit(rows, dimensions)
        shares = ", ".join(f"{share:.1%}" for share in pca.explained)
        note = f"PCA, {dimensions} components with {shares} of the variance"
        return Projection("pca", _reduced(pca, rows), pca, note)
    _require_library(method)
    seed %= 1 << 32  # the libraries take only these; seeds may be negative
    near = neighbours or NEIGHBOURS[method]
    _require_rows(rows, method, near, dimensions)
    pca = PrincipalComponents.fit(rows, min(COMPONENTS, rows.dim, len(rows) - 1))
    reduced = _reduced(pca, rows)
    # Neighbours do not depend on scale, but squared distances must stay in float32's range.
    unit = float(np.ldexp(1.0, int(np.frexp(np.abs(reduced).max())[1])))
    reduced /= np.float32(unit)
    lay_out = _tsne if method == "tsne" else _umap
    places, fitted = lay_out(reduced, dimensions, near, seed)
    if not np.isfinite(places).all():
        raise TechniqueError(
            f"{method} gave coordinates that are not finite for {rows.title}: try PCA"
        )
    name = f"t-SNE, perplexity {near}" if method == "tsne" else f"UMAP, {near} neighbours"
    note = f"{name}, from {reduced.shape[1]} principal components, seed {seed}"
    return Projection(method, places, pca, note, fitted, unit)


def _tsne(reduced: Numbers, dimensions: int, near: int, seed: int) -> tuple[Numbers, Any]:
    from openTSNE import TSNE
    from openTSNE.initialization import rescale

    start = reduced[:, :dimensions].astype(np.float64)
    if start.shape[1] < dimensions:
        raise ParameterError(
            f"rows with {start.shape[1]} principal component cannot be mapped in {dimensions} "
            "dimensions",
            parameter="dimensions",
        )
    large = len(reduced) >= _LARGE
    with task("t-SNE", total=_STEPS) as advance, _quiet("tsne"):
        fitted = TSNE(
            n_components=dimensions,
            perplexity=near,
            initialization=rescale(start),
            # Interpolation works in at most two dimensions; else Barnes-Hut trees are used.
            negative_gradient_method="fft" if large and dimensions == 2 else "bh",
            random_state=seed,
            n_jobs=-1 if large else 1,
            callbacks=lambda *_: advance(_EVERY),
            callbacks_every_iters=_EVERY,
        ).fit(reduced)
    return np.asarray(fitted, np.float32), fitted


def _umap(reduced: Numbers, dimensions: int, near: int, seed: int) -> tuple[Numbers, Any]:
    from umap import UMAP

    with task("UMAP"), _quiet("umap"):
        # A seed needs one thread, because several give other results at each run.
        fitted = UMAP(n_components=dimensions, n_neighbors=near, random_state=seed, n_jobs=1)
        places = fitted.fit_transform(reduced)
    return np.asarray(places, np.float32), fitted


def _reduced(pca: PrincipalComponents, rows: Rows) -> Numbers:
    """Principal coordinates `(n, k)` float32, in one pass over the rows."""
    places = np.empty((len(rows), len(pca.components)), np.float32)
    done = 0
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        for _, block in rows.batches("projecting"):
            places[done : done + len(block)] = pca.transform(block)
            done += len(block)
    if not np.isfinite(places).all():
        raise ParameterError(
            f"the values of {rows.title} are too large for a map: scale them down",
            parameter="source",
        )
    return places


def _require_library(method: Method) -> None:
    module, package = _PACKAGES[method]
    require_package(module, package, f"method {method!r}")


def _require_rows(rows: Rows, method: Method, near: int, dimensions: int) -> None:
    """Refuse fewer rows than neighbours; t-SNE uses three times its perplexity."""
    needed = max(3 * near + 1 if method == "tsne" else near + 1, _FEWEST)
    if len(rows) < needed:
        most = (len(rows) - 1) // 3 if method == "tsne" else len(rows) - 1
        what = (
            f"t-SNE with perplexity {near}" if method == "tsne" else f"UMAP with {near} neighbours"
        )
        hint = (
            f": set neighbours to {most} or less"
            if most >= 2 and len(rows) >= _FEWEST
            else ": choose the method pca"
            if len(rows) > dimensions
            else ""
        )
        raise ParameterError(
            f"{what} needs at least {needed} images, {rows.title} has {len(rows)}{hint}",
            parameter="neighbours",
        )


@contextmanager
def _quiet(method: Method) -> Iterator[None]:
    """Suppress the libraries' warnings, raise their errors as one line, and keep torch's threads.

    numba, which UMAP uses, sets the number of threads of the OpenMP that it shares with torch.
    """
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise TechniqueError(f"{method} could not lay out these rows: {reason}") from error
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
