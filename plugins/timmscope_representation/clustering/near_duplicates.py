"""Near-duplicates: groups of images that are nearly the same for a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from timmscope import (
    ParameterError,
    Result,
    Rows,
    Sheet,
    StoreTechnique,
    Table,
    csv_text,
    task,
)
from timmscope.drawing import short_names
from timmscope_representation.clustering.radius_groups import radius_groups
from timmscope_representation.display import labels, names, thumbnails
from timmscope_representation.row_space import Metric, RowSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[Any]

_COSINE = 0.05
_GROUPS_SHOWN, _MEMBERS_SHOWN = 24, 8
_FETCHED, _AT_ONCE = 1 << 25, 4096
"""Values read at a time to measure groups, and pairs measured at a time."""
_UNITS = {"cosine": "cosine distance", "l2": "Euclidean distance"}


@dataclass(frozen=True, kw_only=True)
class NearDuplicateGroups(Result):
    """Groups of images in which each is within a distance of another one.

    Members are listed group by group, the largest group first; in a group the image to keep comes
    first, then the others by distance to it, ties by id.

    Attributes:
        ids: `(m,)` ids of the images that have a near-duplicate.
        groups: `(m,)` number of each image's group, from 1.
        distances: `(m,)` float64, to the first image of the group; above `limit` where only a chain
            of others connects the two.
        sizes: `(m, 2)` width and height in pixels, or None for an array.
        names: name of each image.
        labels: label of each image, or None.
        pictures_of: `(shown, 3, t, t)` thumbnails of the first members of the first groups, or
            None.
        shown: number of thumbnails of each group.
        limit: the largest distance of near-duplicates.
        metric: `cosine` (1 - cos) or `l2`.
        source: description of the rows.
        count: number of images compared.
    """

    ids: Tensor
    groups: Tensor
    distances: Tensor
    sizes: Tensor | None
    names: list[str]
    labels: list[str | None]
    pictures_of: Tensor | None
    shown: list[int]
    limit: float
    metric: str
    source: str
    count: int

    def figure(self) -> Figure:
        """One row per group: the image to keep, then the others with their distance to it."""
        groups = int(self.groups.max()) if len(self.groups) else 0
        if self.pictures_of is None or not groups:
            return Table(provenance=self.provenance, rows=self.summary()).figure()
        starts = self._starts()
        titles: list[str] = []
        captions = short_names(self.names)
        heads: list[str] = []
        for group, length in enumerate(self.shown):
            first = starts[group]
            size = starts[group + 1] - first
            found = sorted({label for label in self.labels[first : first + size] if label})
            labelled = found[0] if len(found) == 1 else f"{len(found)} labels"
            heads.append("\n".join([f"{size} images", *([labelled] if found else [])]))
            titles.append(f"{captions[first]}\nkeep")
            titles += [
                f"{captions[at]}\n{self.distances[at]:.2g}"
                for at in range(first + 1, first + length)
            ]
        note = (
            f"in a row, each image is within {self.limit:g} of another one "
            f"({_UNITS[self.metric]}); numbers are distances to the first image, the largest in "
            f"pixels; rows show at most {_MEMBERS_SHOWN} images"
        )
        if len(self.shown) < groups:
            note += f", the sheet {len(self.shown)} of {groups} groups"
        sheet = Sheet(
            provenance=self.provenance,
            images=self.pictures_of,
            titles=titles,
            rows=[],
            title=f"{self.source}: {self._heading(groups)}",
            note=note,
            row_labels=heads,
            row_lengths=self.shown,
        )
        return sheet.figure()

    def summary(self) -> list[dict[str, Any]]:
        """One row per group: images, image to keep, farthest from it, labels; or that there is
        none."""
        starts = self._starts()
        rows = []
        for group in range(len(starts) - 1):
            members = slice(starts[group], starts[group + 1])
            found = sorted({label for label in self.labels[members] if label})
            rows.append(
                {
                    "group": group + 1,
                    "images": members.stop - members.start,
                    "keep": self.names[members.start],
                    "farthest": self.names[members.stop - 1],
                    "distance": float(self.distances[members.stop - 1]),
                }
            )
            if any(self.labels):
                rows[-1]["labels"] = ", ".join(found[:3]) + (" …" if len(found) > 3 else "")
        if rows:
            return rows
        unit = _UNITS[self.metric]
        none = f"no two of {self.count} images are within {self.limit:g} of each other ({unit})"
        return [{"near_duplicates": none}]

    def documents(self) -> dict[str, str]:
        """`near-duplicates.csv` with one row per image that has a near-duplicate."""
        sizes = [[None, None]] * len(self.ids) if self.sizes is None else self.sizes.tolist()
        groups, ids = self.groups.tolist(), self.ids.tolist()
        rows = [
            {
                "group": group,
                "keep": "yes" if at == 0 or groups[at - 1] != group else "no",
                "id": ids[at],
                "name": self.names[at],
                "label": self.labels[at],
                "distance": float(self.distances[at]),
                "width": sizes[at][0],
                "height": sizes[at][1],
            }
            for at, group in enumerate(groups)
        ]
        return {"near-duplicates.csv": csv_text(rows) if rows else "group\r\n"}

    def _starts(self) -> list[int]:
        """Start of each group, and the end of the last."""
        counts = torch.bincount(self.groups)[1:] if len(self.groups) else torch.zeros(0)
        return [0, *torch.cumsum(counts, 0).long().tolist()]

    def _heading(self, groups: int) -> str:
        return (
            f"{len(self.ids)} of {self.count} images in {groups} "
            f"group{'s' if groups > 1 else ''} of near-duplicates"
        )


class NearDuplicates(StoreTechnique):
    """Groups images whose rows in a layer are within a distance of each other.

    `d(x, y) ≤ distance` makes two images near-duplicates, with `d = 1 − cos(x, y)` or
    `d = |x − y|`; a group is what a chain of such pairs connects (single linkage). The search is
    exact: every pair is either ruled out by a lower bound of its distance or measured in float64.
    Memory grows with the number of images, not of pairs.

    Which images count depends on the layer: later layers ignore more. In the last pooled layer of a
    classifier, photographs scaled to a half, cropped by a twentieth, mirrored or saved again at
    high quality stay within about 0.05; strong compression may need 0.15.

    Raises:
        ParameterError: a parameter is out of range, there are fewer than two images, or rows are
            all zero, hold NaN or differ too much in size.
        StoreError: the store cannot be read.
        StoreMismatch: `model` is not the one that the store was mined with.
        LayerNotFound: the store has no such layer.
    """

    metric: Metric = "cosine"
    """Cosine distance (1 - cos, from 0 to 2) or Euclidean distance."""
    distance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Largest distance of near-duplicates, inclusive; by default 0.05 for `cosine`. `l2` has no
    default, because every layer has its own scale. 0 finds equal rows."""

    @model_validator(mode="after")
    def _known(self) -> NearDuplicates:
        if self.metric == "l2" and self.distance is None:
            raise ValueError(
                "metric l2 has no default distance, because every layer has its own scale: set one"
            )
        return self

    def analyse(self, source: Rows, images: Any) -> NearDuplicateGroups:
        """Groups of near-duplicates in a store's layer or an array.

        Raises:
            ParameterError: there are fewer than two images, or rows are all zero, hold NaN or
                differ too much in size.
        """
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        source.require(2, self.title(), "source")
        limit = _COSINE if self.distance is None else self.distance
        space = RowSpace(source, self.metric)
        members, groups, distances = _ordered(space, radius_groups(space, limit, self.seed))
        ids = source.ids[members]
        pixels = _pixels(source)
        sizes = np.bincount(groups)[1 : _GROUPS_SHOWN + 1] if len(groups) else np.empty(0, int)
        shown = np.minimum(sizes, _MEMBERS_SHOWN).tolist()
        starts = np.cumsum([0, *sizes.tolist()])
        first = [
            place for start, length in zip(starts, shown, strict=False)
            for place in range(start, start + length)
        ]  # fmt: skip
        return NearDuplicateGroups(
            provenance=self.provenance(source),
            ids=torch.from_numpy(ids),
            groups=torch.from_numpy(groups),
            distances=torch.from_numpy(distances),
            sizes=None if pixels is None else torch.from_numpy(pixels[members]),
            names=names(source, ids),
            labels=labels(source, members),
            pictures_of=thumbnails(source, ids[first]) if first else None,
            shown=shown,
            limit=limit,
            metric=self.metric,
            source=source.title,
            count=len(source),
        )


def _pixels(rows: Rows) -> Numbers | None:
    """Width and height of the images `(n, 2)`; None for an array."""
    return None if rows.layer is None else rows.layer.store.images.sizes[rows.ids]


def _ordered(space: RowSpace, first: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Members of groups of at least two in order: positions, groups from 1, distances to the first.

    Args:
        space: the rows.
        first: `(n,)`, position of the first row of each row's group.
    """
    counts = np.bincount(first, minlength=len(first))
    members = np.flatnonzero(counts[first] > 1)
    if not len(members):
        return members, np.empty(0, np.int64), np.empty(0)
    order = np.lexsort((members, first[members], -counts[first[members]]))
    members = members[order]
    changes = np.diff(first[members], prepend=-1) != 0
    groups = np.cumsum(changes)
    pixels = _pixels(space.rows)
    area = np.zeros(len(members)) if pixels is None else pixels[members].astype(np.int64).prod(1)
    best = np.lexsort((members, -area, groups))[np.flatnonzero(changes)]
    keep = members[best][groups - 1]
    distances = _distances(space, members, keep)
    distances[members == keep] = -1  # so that it sorts before rows that equal it
    order = np.lexsort((members, distances, groups))
    return members[order], groups, np.maximum(distances[order], 0)


def _distances(space: RowSpace, members: Numbers, others: Numbers) -> Numbers:
    """Distances `(m,)` of members to others, one by one; rows are read in order of id."""
    distances = np.empty(len(members))
    order = np.argsort(members, kind="stable")
    size = max(1, _FETCHED // (2 * space.rows.dim))
    with task("measuring groups", total=len(members)) as advance:
        for start in range(0, len(order), size):
            part = order[start : start + size]
            pairs = np.stack([members[part], others[part]])
            wanted, at = np.unique(pairs, return_inverse=True)
            values = space.take(space.rows.ids[wanted])
            for first in range(0, len(part), _AT_ONCE):
                some = slice(first, first + _AT_ONCE)
                one, other = at.reshape(pairs.shape)[:, some]
                distances[part[some]] = space.distances(values[one], values[other])
            advance(len(part))
    return distances
