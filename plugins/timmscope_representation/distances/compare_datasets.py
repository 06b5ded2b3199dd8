"""Comparison of two data sets in one layer: distances, and the images that differ most."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from timmscope import (
    ImageError,
    ParameterError,
    Rows,
    StoreMismatch,
    StoresTechnique,
    task,
)
from timmscope_representation.distances.dataset_comparison import DatasetComparison
from timmscope_representation.distances.set_distances import (
    SetDistances,
    frechet_distance,
    set_distances,
)
from timmscope_representation.moments import Moments, Numbers
from timmscope_representation.names import store_names

_THUMBNAIL_PX = 128
_POINTS = 2000
"""Largest number of images of each set drawn as points."""
_WIDEST = 8192
"""Longest rows: each of several covariance matrices takes 0.5 GB."""
_FEWEST = 3
"""Smallest number of rows of each set for the jackknife of KID."""


class CompareDatasets(StoresTechnique):
    """Measures the distance of two data sets in one layer, and shows where they differ.

    The first store is the reference, such as real images; the second is compared with it, such as
    synthetic ones. Both hold the same layer of the same model, with the same preprocessing.

    - FID: `|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)`, the Fréchet distance of Gaussians with the mean
      and covariance of all rows. Its bias depends on the number of images: compare only sets of
      equal size.
    - KID: `E k(x, x') + E k(y, y') − 2 E k(x, y)`, the unbiased squared maximum mean discrepancy
      (MMD²) with the kernel `k(x, y) = (x·y / d + 1)³`, over all pairs of `sample` images, with its
      jackknife standard error.
    - Precision and recall, density and coverage: by neighbourhoods that reach to the k-th nearest
      neighbour, among the same images.

    Published values come from the pool3 layer of Inception-v3 (2,048 units, weights of 2015).
    Values of other features can be compared with each other only.

    Paper:
        - Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter, "GANs Trained by a Two Time-Scale
          Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017, arXiv:1706.08500: FID.
        - Bińkowski, Sutherland, Arbel & Gretton, "Demystifying MMD GANs", ICLR 2018,
          arXiv:1801.01401: KID.
        - Kynkäänniemi, Karras, Laine, Lehtinen & Aila, "Improved Precision and Recall Metric for
          Assessing Generative Models", NeurIPS 2019, arXiv:1904.06991.
        - Naeem, Oh, Uh, Choi & Yoo, "Reliable Fidelity and Diversity Metrics for Generative
          Models", ICML 2020, arXiv:2002.09797: density and coverage.

    Raises:
        ParameterError: a parameter is out of range, there are not two sets, or their rows are too
            few, too long, too large, all equal or hold NaN.
        StoreMismatch: the stores hold different features.
        StoreError: a store cannot be read.
        LayerNotFound: a store has no such layer.
    """

    one_layer: ClassVar[bool] = True

    k: int = Field(default=5, ge=1)
    """Number of neighbours in a neighbourhood, for precision, recall, density and coverage."""
    sample: int = Field(default=10_000, ge=_FEWEST)
    """Number of images of each set, drawn by the seed, for all measures but FID."""
    examples: int = Field(default=8, ge=1, le=64)
    """Number of images of each set to list that are farthest from the other; the figure shows
    eight."""

    def analyse(self, sources: list[Rows]) -> DatasetComparison:
        """Compare two sets of rows.

        Raises:
            ParameterError: there are not two sets, or their rows are too few, too long, too large,
                all equal or hold NaN.
            StoreMismatch: the stores hold different features.
        """
        pair = self._pair(sources)
        titles = store_names(pair)
        moments = [_moments(rows, title) for rows, title in zip(pair, titles, strict=True)]
        # With two seeds: where one set was made from the other, image by image, samples of the same
        # positions would not be independent.
        ids = [rows.sample(self.sample, self.seed + side) for side, rows in enumerate(pair)]
        first, second = (rows.take(drawn) for rows, drawn in zip(pair, ids, strict=True))
        total = 2 * len(first) + len(second)
        with (
            task("comparing pairs", total=total) as advance,
            np.errstate(over="ignore", invalid="ignore"),
        ):  # values that are not finite are refused below
            distances = set_distances(first, second, self.k, advance)
        if not np.isfinite(distances.kid_error):
            raise _too_large(*pair)
        points, explained = _plane(moments, [first[:_POINTS], second[:_POINTS]])
        far, near, gaps = _farthest(ids, distances, self.examples)
        notes = list(self._notes(pair, titles, ids, distances))
        pictures = _pictures(pair, far, near, notes)
        return DatasetComparison(
            provenance=self.provenance(reference=pair[0].facts, other=pair[1].facts),
            titles=titles,
            features=_features(pair[0]),
            images=[len(rows) for rows in pair],
            sampled=[len(drawn) for drawn in ids],
            k=self.k,
            fid=frechet_distance(*moments),
            kid=distances.kid,
            kid_error=distances.kid_error,
            precision=distances.precision,
            recall=distances.recall,
            density=distances.density,
            coverage=distances.coverage,
            remarks=notes,
            points=torch.from_numpy(points),
            shown=[min(len(drawn), _POINTS) for drawn in ids],
            explained=explained,
            far_ids=[found.tolist() for found in far],
            far_names=[pair[side].names(far[side]) for side in (0, 1)],
            far_distances=[found.tolist() for found in gaps],
            nearest_names=[pair[1 - side].names(near[side]) for side in (0, 1)],
            pictures_of=pictures,
        )

    def _pair(self, source: list[Rows]) -> list[Rows]:
        """The two sets of rows, if they may be compared."""
        if len(source) != 2:
            raise ParameterError(
                f"{self.title()} compares two stores, a reference and another; "
                f"{len(source)} {'is' if len(source) == 1 else 'are'} given",
                parameter="source",
            )
        first, second = source
        if differences := _differences(first, second):
            raise StoreMismatch(
                f"{first.title} and {second.title} were made differently and cannot be compared: "
                f"{'; '.join(differences)}; mine one of them again like the other",
                differences=differences,
            )
        if first.dim != second.dim:
            raise ParameterError(
                f"the sets have rows of {first.dim} and of {second.dim} values, so they hold "
                "different features",
                parameter="source",
            )
        if first.dim > _WIDEST:
            raise ParameterError(
                f"FID takes rows of at most {_WIDEST} values, those of {first.title} have "
                f"{first.dim}: choose another layer, or fewer columns",
                parameter="source",
            )
        if self.sample <= self.k:
            raise ParameterError(
                f"sample is {self.sample}; it must be larger than k, which is {self.k}",
                parameter="sample",
            )
        for rows in source:
            rows.require(max(self.k + 1, _FEWEST), f"{self.title()} with k = {self.k}", "k")
        return source

    def _notes(
        self,
        pair: list[Rows],
        titles: list[str],
        ids: list[Numbers],
        distances: SetDistances,
    ) -> Iterator[str]:
        """Remarks on the numbers."""
        yield (
            f"Published FIDs and KIDs are of the pool3 layer of Inception-v3. Those of "
            f"{'arrays' if pair[0].layer is None else pair[0].layer.name} cannot be compared "
            "with them."
        )
        small = [
            f"{len(rows)} images of {title}"
            for rows, title in zip(pair, titles, strict=True)
            if len(rows) <= rows.dim
        ]
        if small:
            note = (
                f"{' and '.join(small)} do not span {pair[0].dim} units: a covariance lacks full "
                "rank, and FID is far too high; use KID"
            )
            warnings.warn(note, stacklevel=2)
            yield f"{note}."
        for rows, title, drawn in zip(pair, titles, ids, strict=True):
            if len(drawn) < len(rows):
                yield f"All but FID are from {len(drawn)} of {len(rows)} images of {title}."
        shared = int((distances.distances[1] == 0).sum())
        if shared:
            yield (
                f"{shared} images of {titles[1]} equal one of {titles[0]}: KID assumes independent "
                "sets, and is too low."
            )
        versions = [rows.layer.store.manifest.versions for rows in pair if rows.layer is not None]
        changed = [
            f"{name} {versions[0][name]} and {versions[1].get(name, 'none')}"
            for name in (versions[0] if len(versions) == 2 else ())
            if versions[0][name] != versions[1].get(name)
        ]
        if changed:
            yield f"The stores were made with {', '.join(changed)}."


def _features(rows: Rows) -> str:
    if rows.layer is None:
        return f"arrays of {rows.dim} columns"
    return f"{rows.layer.name} of {rows.layer.store.manifest.model.id}, {rows.dim} units"


def _differences(first: Rows, second: Rows) -> list[str]:
    """Differences that make the features of two stores incomparable, one line each.

    Folded batch norms, memory format, batch size and versions do not count: features then agree to
    1e-5.
    """
    if first.layer is None or second.layer is None:
        return []
    one, two = (dict(_feature_facts(rows)) for rows in (first, second))
    if one["weights"] != two["weights"]:  # all other differences follow from that
        one, two = ({key: facts[key] for key in ("model", "weights")} for facts in (one, two))
    else:
        del one["model"]  # the same weights may have several names
    return [
        f"{key} {_short(value)} → {_short(two.get(key))}"
        for key, value in one.items()
        if value != two.get(key)
    ]


def _feature_facts(rows: Rows) -> Iterator[tuple[str, Any]]:
    assert rows.layer is not None
    manifest, record = rows.layer.store.manifest, rows.layer.record
    yield "model", manifest.model.id
    yield "weights", manifest.model.weights_sha256[:12]
    yield "layer", record.name
    yield "shape", list(record.shape)
    yield "precision", manifest.precision
    yield "defences", list(manifest.model.defences)
    # As JSON, because a manifest of this process has tuples where one from a file has lists.
    yield from manifest.model.model_dump(mode="json")["preprocessing"].items()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plane(moments: list[Moments], sets: list[Numbers]) -> tuple[Numbers, list[float]]:
    """Rows of both sets in the plane of their largest common variance, and its share by axis."""
    both = Moments(len(moments[0].mean))
    for each in moments:
        both.merge(each)
    axes, variances = both.components(2)
    points = (np.concatenate(sets).astype(np.float64) - both.mean) @ axes.T
    shares = (variances[:2] / variances.sum()).tolist()
    if points.shape[1] == 1:
        return np.hstack([points, np.zeros_like(points)]), [*shares, 0.0]
    return points, shares


def _farthest(
    ids: list[Numbers], distances: SetDistances, count: int
) -> tuple[list[Numbers], list[Numbers], list[Numbers]]:
    """For each set the ids farthest from the other set, their nearest ids there, and the distances.

    Images that the other set holds too are left out.
    """
    rows = [
        np.argsort(-gaps, kind="stable")[: min(count, np.count_nonzero(gaps))]
        for gaps in distances.distances
    ]
    far = [ids[side][rows[side]] for side in (0, 1)]
    near = [ids[1 - side][distances.nearest[side][rows[side]]] for side in (0, 1)]
    return far, near, [distances.distances[side][rows[side]] for side in (0, 1)]


def _pictures(
    pair: list[Rows], far: list[Numbers], near: list[Numbers], notes: list[str]
) -> torch.Tensor | None:
    """Thumbnails `(2, 2, e, 3, t, t)` of far images and the nearest of the other set, or None."""
    if not all(rows.has_pictures for rows in pair) or not any(map(len, far)):
        return None
    size = (max(map(len, far)), 3, _THUMBNAIL_PX, _THUMBNAIL_PX)
    shown = torch.full((2, 2, *size), 0.5)
    try:
        for side in (0, 1):
            for row, (rows, wanted) in enumerate(
                ((pair[side], far[side]), (pair[1 - side], near[side]))
            ):
                found = rows.pictures.thumbnails(wanted, _THUMBNAIL_PX)
                shown[side, row, : len(wanted)] = found
    except ImageError as error:
        warnings.warn(f"no images are shown: {error}", stacklevel=2)
        notes.append("No images are shown, because some are no longer at their location.")
        return None
    return shown


def _moments(rows: Rows, title: str) -> Moments:
    """Mean and covariance of all rows."""
    moments = Moments.of(rows.dim, (batch for _, batch in rows.batches(f"reading {title}")))
    if not moments.finite:
        raise _too_large(rows)
    if moments.constant:
        raise ParameterError(
            f"all {len(rows)} rows of {rows.title} are equal, so they cannot be compared; "
            "choose another layer",
            parameter="layer",
        )
    return moments


def _too_large(*sets: Rows) -> ParameterError:
    return ParameterError(
        f"values of {' or '.join(rows.title for rows in sets)} are so large that their powers "
        "overflow float64: scale the rows",
        parameter="source",
    )
