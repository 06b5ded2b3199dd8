"""What the report shows, chosen by rule from the store: never by hand, never by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from timmscope.store import Store, TopEntry

if TYPE_CHECKING:
    from timmscope.models import HookedModel

LOGITS = "logits"
PER_PHOTOGRAPH = 3
"""Patches of one photograph among a unit's: two photographs say more about a unit than one."""


@dataclass(frozen=True)
class Guess:
    """What the model says of an image.

    Attributes:
        image_id: in the store.
        path: the image's name in the store.
        top: class indices and probabilities, most probable first.
    """

    image_id: int
    path: str
    top: list[tuple[int, float]]

    @property
    def confidence(self) -> float:
        """Probability of the most probable class."""
        return self.top[0][1]


def guesses(
    store: Store, candidates: NDArray[np.bool_], wanted: int, *, first: Sequence[str] = ()
) -> list[Guess]:
    """Images with the most confident predictions, as many distinct ones as there are.

    Args:
        store: with a layer of logits.
        candidates: `(N,)`, which images may be chosen.
        wanted: how many; fewer where there are fewer images.
        first: stems of file names that come before all others, in this order.
    """
    best: list[tuple[float, int, int]] = []  # −confidence, id, class
    for ids, rows in store.layer(LOGITS).iter_rows():
        shares = _softmax(rows)
        for image_id, row in zip(ids.tolist(), shares, strict=True):
            if candidates[image_id]:
                label = int(row.argmax())
                best.append((-float(row[label]), image_id, label))
    paths = store.images.paths
    best.sort()
    stems = [PurePath(paths[image_id]).stem for _, image_id, _ in best]
    order = [stems.index(name) for name in first if name in stems]
    order += [index for index in range(len(best)) if index not in set(order)]
    distinct: list[int] = []
    again: list[int] = []
    seen: set[int] = set()
    for index in order:
        (again if best[index][2] in seen else distinct).append(best[index][1])
        seen.add(best[index][2])
    return [guess(store, image_id) for image_id in [*distinct, *again][:wanted]]


def guess(store: Store, image_id: int, count: int = 5) -> Guess:
    """The most probable classes of one image."""
    row = _softmax(store.layer(LOGITS).pooled[image_id][None])[0]
    order = np.argsort(-row, kind="stable")[:count]
    top = [(int(index), float(row[index])) for index in order]
    return Guess(image_id, store.images.paths[image_id], top)


def best_logit(store: Store, label: int) -> tuple[float, int]:
    """The highest logit that an image of the store has for a class, and that image's id."""
    found = [
        (float(rows[:, label].max()), int(ids[rows[:, label].argmax()]))
        for ids, rows in store.layer(LOGITS).iter_rows()
    ]
    return max(found)


def units(
    store: Store, layer: str, count: int, patches: int, *, by_photograph: bool
) -> list[tuple[int, list[TopEntry]]]:
    """Units that single something out, each with its strongest images.

    A unit's images are its strongest, at most three of one photograph. A unit is the better the
    further the *weakest* of them stands above the unit's average, in standard deviations: so all
    its patches count, not one odd image. Units whose strongest image was already taken are passed
    over while there are others.

    Args:
        store: with the layer.
        layer: its name.
        count: units wanted.
        patches: images a unit.
        by_photograph: images with the same label are crops of one photograph.
    """
    found = store.layer(layer)
    state = store.collector(layer, "top-k").state()
    statistics = found.statistics("max")
    labels = store.images.labels
    ranked: list[tuple[float, int, list[TopEntry]]] = []
    for unit in range(found.channels):
        entries: list[TopEntry] = []
        taken: dict[str, int] = {}
        rows = zip(
            state["ids"][unit].tolist(),
            state["values"][unit].tolist(),
            state["positions"][unit].tolist(),
            strict=True,
        )
        for image_id, value, position in rows:
            if image_id < 0 or len(entries) == patches:
                break
            name = (labels[image_id] if by_photograph else None) or f"image {image_id}"
            taken[name] = taken.get(name, 0) + 1
            if taken[name] <= PER_PHOTOGRAPH:
                entries.append(TopEntry(image_id, value, found.record.cell(position)))
        spread = float(statistics.std[unit])
        if entries and spread > 0:
            height = (entries[-1].value - float(statistics.mean[unit])) / spread
            ranked.append((-height, unit, entries))
    ranked.sort(key=lambda item: item[:2])
    fresh: list[tuple[int, list[TopEntry]]] = []
    rest: list[tuple[int, list[TopEntry]]] = []
    seen: set[object] = set()
    for _, unit, entries in ranked:
        image_id = entries[0].image_id
        key = (labels[image_id] if by_photograph else None) or image_id
        (rest if key in seen else fresh).append((unit, entries))
        seen.add(key)
    return [*fresh, *rest][:count]


def same_photograph(store: Store, layer: str, model: HookedModel) -> tuple[float, float] | None:
    """How often an image's nearest other image has its label: by pixels, and by features.

    Args:
        store: whose labels say what belongs together.
        layer: whose pooled units are the features; compared by cosine.
        model: for the preprocessing of the pixels, which are compared at 32×32.

    Returns:
        two shares in [0, 1], or None without labels or for more than 2,000 images.
    """
    from torch.nn import functional

    labels = store.images.labels
    ids = np.flatnonzero(store.images.readable)
    if not 2 <= len(ids) <= 2000 or any(labels[int(i)] is None for i in ids):
        return None
    source = store.source()
    small = [
        functional.interpolate(model.preprocess(source.load(int(i)))[None], (32, 32), mode="area")
        for i in ids
    ]
    pixels = np.stack([image.flatten().numpy() for image in small])
    features = np.concatenate([rows for _, rows in store.layer(layer).iter_rows()])
    names = np.array([labels[int(i)] for i in ids])
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    near = (
        -_squared_distances(pixels),
        (features / np.maximum(lengths, 1e-12)) @ (features / np.maximum(lengths, 1e-12)).T,
    )
    shares = []
    for closeness in near:
        np.fill_diagonal(closeness, -np.inf)
        shares.append(float((names[closeness.argmax(1)] == names).mean()))
    return shares[0], shares[1]


def least_similar(store: Store, layer: str, image_id: int, candidates: NDArray[np.bool_]) -> int:
    """The candidate whose features point furthest away from an image's."""
    wanted = store.layer(layer).pooled[image_id]
    lowest: list[tuple[float, int]] = []
    for ids, rows in store.layer(layer).iter_rows():
        keep = candidates[ids] & (ids != image_id)
        lengths = np.linalg.norm(rows[keep], axis=1) * np.linalg.norm(wanted) + 1e-12
        lowest += zip((rows[keep] @ wanted / lengths).tolist(), ids[keep].tolist(), strict=True)
    return min(lowest)[1]


def _softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _squared_distances(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    squares = np.square(wide).sum(1)
    return np.asarray(squares[:, None] + squares[None] - 2 * wide @ wide.T)
