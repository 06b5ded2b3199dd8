"""Two data sets as one layer sees them: how far apart, and which images make the difference."""

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
    RepresentationTechnique,
    Rows,
    StoreMismatch,
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
"""Images of each set that are drawn as points."""
_WIDEST = 8192
"""Longest rows: each of several covariances takes 0.5 GB."""
_FEWEST = 3
"""Rows that the jackknife of KID needs of each set."""


class CompareDatasets(RepresentationTechnique):
    """How far two data sets are apart as one layer sees them, and where they differ.

    The first store is the reference, such as real images; the second is judged by it, such as
    synthetic ones. Both hold the same layer of the same model, with the same preprocessing.

    - FID (Heusel et al., NeurIPS 2017): Fréchet distance of Gaussians, from the mean and covariance
      of all rows. It is biased by the number of images: compare only between sets of equal size.
    - KID (Bińkowski et al., ICLR 2018): unbiased MMD² with the kernel `(x·y / d + 1)³` over all
      pairs of `sample` images, with its jackknife standard error.
    - Precision and recall (Kynkäänniemi et al., NeurIPS 2019), density and coverage (Naeem et al.,
      ICML 2020), by k nearest neighbours among the same images.

    Published values come from the pool3 layer of Inception-v3 (2,048 units, weights of 2015):
    numbers of other features cannot be compared with them, only with each other.
    """

    reads: ClassVar[str] = "stores"
    one_layer: ClassVar[bool] = True

    k: int = Field(default=5, ge=1)
    """Neighbours that make a neighbourhood, for precision, recall, density and coverage."""
    sample: int = Field(default=10_000, ge=_FEWEST)
    """Images of each set, drawn by the seed, that all measures but FID are computed from."""
    examples: int = Field(default=8, ge=1, le=64)
    """Images of each set to name that are farthest from the other; the figure shows eight."""

    def analyse(self, source: list[Rows], images: Any) -> DatasetComparison:
        """Compare two sets of rows."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        pair = self._pair(source)
        titles = store_names(pair)
        moments = [_moments(rows, title) for rows, title in zip(pair, titles, strict=True)]
        # By seeds of their own: where one set was made from the other, image by image, the same
        # places of both would be anything but independent.
        ids = [rows.sample(self.sample, self.seed + side) for side, rows in enumerate(pair)]
        first, second = (rows.take(drawn) for rows, drawn in zip(pair, ids, strict=True))
        total = 2 * len(first) + len(second)
        with (
            task("comparing pairs", total=total) as advance,
            np.errstate(over="ignore", invalid="ignore"),
        ):  # what is not finite is refused afterwards
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
            notes=notes,
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
        """Exactly two sets of rows that may be compared."""
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
                f"the sets have rows of {first.dim} and of {second.dim} values: they are no rows "
                "of the same features",
                parameter="source",
            )
        if first.dim > _WIDEST:
            raise ParameterError(
                f"FID is computed of rows up to {_WIDEST} long, those of {first.title} are "
                f"{first.dim}: choose another layer, or fewer columns",
                parameter="source",
            )
        if self.sample <= self.k:
            raise ParameterError(
                f"sample is {self.sample}, it must be larger than k, {self.k}", parameter="sample"
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
        """What to keep in mind about the numbers."""
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
                f"{' and '.join(small)} do not span {pair[0].dim} units: a covariance is not of "
                "full rank and FID far too high; trust KID"
            )
            warnings.warn(note, stacklevel=2)
            yield f"{note}."
        for rows, title, drawn in zip(pair, titles, ids, strict=True):
            if len(drawn) < len(rows):
                yield f"All but FID are from {len(drawn)} of {len(rows)} images of {title}."
        shared = int((distances.distances[1] == 0).sum())
        if shared:
            yield (
                f"{shared} images of {titles[1]} have an equal one among those of {titles[0]}: "
                "KID takes the sets for independent and comes out too low."
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
    """What makes rows of two stores no rows of the same features, one line each.

    Folded batch norms, memory format, batch size and versions are no such thing: the pass keeps
    them equal to 1e-5.
    """
    if first.layer is None or second.layer is None:
        return []
    one, two = (dict(_making(rows)) for rows in (first, second))
    if one["weights"] != two["weights"]:  # all else follows from that
        one, two = ({key: facts[key] for key in ("model", "weights")} for facts in (one, two))
    else:
        del one["model"]  # the same weights may have several names
    return [
        f"{key} {_short(value)} → {_short(two.get(key))}"
        for key, value in one.items()
        if value != two.get(key)
    ]


def _making(rows: Rows) -> Iterator[tuple[str, Any]]:
    assert rows.layer is not None
    manifest, record = rows.layer.store.manifest, rows.layer.record
    yield "model", manifest.model.id
    yield "weights", manifest.model.weights_sha256[:12]
    yield "layer", record.name
    yield "shape", list(record.shape)
    yield "precision", manifest.precision
    # As JSON: a manifest of this process has tuples where one that was read has lists.
    yield from manifest.model.model_dump(mode="json")["preprocessing"].items()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plane(moments: list[Moments], sets: list[Numbers]) -> tuple[Numbers, list[float]]:
    """Rows of both sets in the plane of the largest variance of all, and the shares it holds."""
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
    """Of each set the images farthest from the other, their nearest there, and how far it is.

    Those that the other set has too are never far.
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
    """Far images and the nearest of the other set, `(2, 2, e, 3, t, t)`, where there are any."""
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
        notes.append("The images were not where they had been, so none are shown.")
        return None
    return shown


def _moments(rows: Rows, title: str) -> Moments:
    """Mean and covariance of all rows."""
    moments = Moments.of(rows.dim, (batch for _, batch in rows.batches(f"reading {title}")))
    if not moments.finite:
        raise _too_large(rows)
    if moments.constant:
        raise ParameterError(
            f"all {len(rows)} rows of {rows.title} are equal: nothing can be compared; "
            "choose another layer",
            parameter="layer",
        )
    return moments


def _too_large(*sets: Rows) -> ParameterError:
    return ParameterError(
        f"values of {' or '.join(rows.title for rows in sets)} are so large that their powers "
        "leave float64's range: scale the rows",
        parameter="source",
    )
