"""`ImageSetRun` says what a technique has done to an image set: counts, rates, means, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from timmscope.images import ImageSource
from timmscope.results.result import Result
from timmscope.store.run_images import KeptRows, Run, RunImages, read_facts
from timmscope.techniques.over.columns import mean_interval, median_interval, share_interval
from timmscope_registry import ParameterError, TimmscopeError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ImageSetRun(Result):
    """What a technique has done to the images of a set.

    The folder of the run has the rest: `images.csv` with all facts of every image, and in
    `images.npy` or `maps.npy` what was made of it.

    Attributes:
        count: number of images in the set.
        made: number of images that the technique has worked on.
        kept: what the folder has of each image: `images`, `maps`, or nothing.
        columns: names of the K facts that are numbers, or yes or no.
        shares: for each of them, whether it is yes or no.
        values: `(K, N)` float64, the facts of every image; 1 for yes; NaN without a value.
        texts: by name, how often the most frequent texts of a fact occur.
        unreadable: images that could not be read: image, reason.
        refused: images that the technique refused: image, reason.
        shown: `(n, C, H, W)` or maps `(n, H, W)`, what was made of a few images; None without any.
        shown_from: `(n, C, H, W)` in [0, 1], these images as the model sees them.
        shown_names: their names.
    """

    count: int
    made: int
    kept: str
    columns: list[str]
    shares: list[bool]
    values: Tensor
    texts: dict[str, dict[str, int]]
    unreadable: list[dict[str, str]]
    refused: list[dict[str, str]]
    shown: Tensor | None
    shown_from: Tensor | None
    shown_names: list[str]

    def placed_in(self, folder: Path) -> Self:
        """Remember the folder of the run, whose files the methods below read."""
        object.__setattr__(self, "_folder", folder)
        return self

    @property
    def folder(self) -> Path:
        """The folder of the run.

        Raises:
            TimmscopeError: the result has none.
        """
        found: Path | None = getattr(self, "_folder", None)
        if found is None:
            raise TimmscopeError("this result is in no folder: load it with load_result(folder)")
        return found

    def column(self, name: str) -> Tensor:
        """Return a fact of every image, `(N,)` float64, NaN without a value.

        Raises:
            ParameterError: there is no such fact, or it is a text.
        """
        if name not in self.columns:
            hint = did_you_mean(name, self.columns) or f"there are {', '.join(self.columns)}"
            raise ParameterError(f"no fact {name!r} in numbers: {hint}", parameter="name")
        return self.values[self.columns.index(name)]

    def images(self) -> ImageSource:
        """Open the images that were made, as an image set.

        Raises:
            ImageError: the run keeps no images, or they were damaged.
        """
        return RunImages(self.folder)

    def maps(self) -> KeptRows:
        """Open the maps that were made: a sequence of `(H, W)` float32 arrays, read one by one.

        Raises:
            TimmscopeError: the run keeps no maps.
            StoreCorrupted: they were damaged.
        """
        if self.kept != "maps":
            raise TimmscopeError(f"{self.folder}: its run keeps {self.kept or 'facts only'}")
        return Run.read(self.folder).rows()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield number, name, label and all facts of every image, without those that are missing.

        Raises:
            StoreCorrupted: the records were damaged.
        """
        for number, name, label, facts in read_facts(self.folder):
            own = {"label": label} if label is not None else {}
            yield {"image": number, "name": name, **own, **facts}

    def figure(self) -> Figure:
        """Draw a few images, shares with their intervals, and histograms of the numbers."""
        from timmscope.techniques.over.figure import run_figure

        return run_figure(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per fact, with 95 % intervals.

        A yes or no has a share, a number its mean (if all values are finite) and median.
        """
        rows: list[dict[str, Any]] = []
        for name, is_share, column in zip(self.columns, self.shares, self.values, strict=True):
            known = column[~column.isnan()].numpy()
            row: dict[str, Any] = {"fact": name, "images": len(known)}
            rows.append(row | (_of_share(known) if is_share else self._of_numbers(known)))
        return self.with_notes(rows)

    def _of_numbers(self, known: np.ndarray) -> dict[str, Any]:
        nothing: tuple[float, float] = (math.nan, math.nan)
        finite = bool(len(known)) and bool(np.isfinite(known).all())
        seed = self.provenance.seed % 2**32
        return {
            "mean": float(known.mean()) if finite else None,
            "mean 95%": _ends(mean_interval(known, seed) if finite else nothing),
            "median": float(np.median(known)) if len(known) else None,
            "median 95%": _ends(median_interval(known) if len(known) else nothing),
        }


def _of_share(known: np.ndarray) -> dict[str, Any]:
    hits = int(known.sum())
    return {
        "mean": hits / len(known) if len(known) else None,
        "mean 95%": _ends(share_interval(hits, len(known))),
    }


def _ends(ends: tuple[float, float]) -> list[float] | None:
    return None if math.isnan(ends[0]) else list(ends)


def column_tensor(values: list[np.ndarray], count: int) -> Tensor:
    """Return columns `(N,)` as `(K, N)`, of which there may be none."""
    if not values:
        return torch.zeros(0, count, dtype=torch.float64)
    return torch.from_numpy(np.stack(values))
