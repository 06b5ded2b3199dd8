"""Chooses what the demo's report shows, by fixed rules: nothing is chosen by hand or at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from timmscope.store import Store, StorePictures

LOGITS = "logits"


class Guess(NamedTuple):
    """The model's five most probable classes for an image, and their probabilities."""

    image_id: int
    classes: list[int]
    probabilities: list[float]


def guesses(
    store: Store, candidates: Sequence[int], wanted: int, *, first: Sequence[str] = ()
) -> list[Guess]:
    """Return the most confident predictions: first the best of each predicted class, then the rest.

    Args:
        store: a store with a layer of logits.
        candidates: ids of the images that may be chosen.
        wanted: number of predictions; fewer are returned if there are fewer images.
        first: stems of file names that come before all others, in this order.
    """
    paths, allowed, rank = store.images.paths, set(candidates), {n: i for i, n in enumerate(first)}
    found: list[tuple[int, float, int, Guess]] = []
    for ids, rows in store.layer(LOGITS).iter_rows():
        best = torch.from_numpy(rows).double().softmax(1).topk(min(5, rows.shape[1]))
        for guess in map(Guess, ids.tolist(), best.indices.tolist(), best.values.tolist()):
            if guess.image_id in allowed:
                place = rank.get(PurePath(paths[guess.image_id]).stem, len(first))
                found.append((place, -guess.probabilities[0], guess.image_id, guess))
    order = [guess for *_, guess in sorted(found)]
    distinct: dict[int, Guess] = {}
    for guess in order:
        distinct.setdefault(guess.classes[0], guess)
    taken = {guess.image_id for guess in distinct.values()}
    return [*distinct.values(), *(g for g in order if g.image_id not in taken)][:wanted]


def units(
    store: Store, layer: str, count: int, patches: int, where: str | None = None
) -> list[int]:
    """Return the units that respond most selectively, best first.

    Units are ranked by how many standard deviations the *weakest* of their strongest images lies
    above the unit's mean, so that all patches count and not one odd image. A unit comes after all
    others if its strongest image is also that of a better unit, or has the same label.

    Args:
        store: a store with the layer.
        layer: name of the layer.
        count: number of units to return.
        patches: number of strongest images of each unit.
        where: condition that the strongest images must meet.
    """
    found, labels = store.layer(layer), store.images.labels
    chosen = store.images.readable if where is None else store.images.where(where)
    values = np.empty((0, found.channels))
    images = np.empty((0, found.channels), np.int64)
    for ids, rows in found.iter_rows("max"):
        kept = chosen[ids]
        values = np.concatenate([values, rows[kept]])
        images = np.concatenate([images, np.repeat(ids[kept, None], found.channels, 1)])
        order = np.lexsort((images, -values), axis=0)[:patches]
        values = np.take_along_axis(values, order, 0)
        images = np.take_along_axis(images, order, 0)
    statistics = found.statistics("max")
    varied = np.flatnonzero(statistics.std > 0)
    heights = (values[-1, varied] - statistics.mean[varied]) / statistics.std[varied]
    best: list[int] = varied[np.lexsort((varied, -heights))].tolist()
    distinct: dict[object, int] = {}
    for unit in best:
        image_id = int(images[0, unit])
        distinct.setdefault(labels[image_id] or image_id, unit)
    return list(dict.fromkeys([*distinct.values(), *best]))[:count]


def same_photograph(store: Store, layer: str) -> tuple[float, float]:
    """Return how often an image's nearest other image has its label: by pixels, and by features.

    Pixels are compared at 32×32 by Euclidean distance, features by cosine similarity.

    Args:
        store: a store whose labels say which images belong together.
        layer: a layer whose pooled units are the features.

    Returns:
        Two shares in [0, 1].
    """
    ids = np.flatnonzero(store.images.readable)
    names = np.array([store.images.labels[image_id] for image_id in ids.tolist()])
    batches = StorePictures(store).batches(ids)
    small = [functional.interpolate(images, (32, 32), mode="area") for _, images in batches]
    pixels = torch.cat(small).flatten(1).double()
    rows = np.concatenate([part for _, part in store.layer(layer).iter_rows()])
    features = functional.normalize(torch.from_numpy(rows).double())
    shares = []
    for closeness in (-torch.cdist(pixels, pixels), features @ features.T):
        nearest = closeness.fill_diagonal_(-torch.inf).argmax(1).numpy()
        shares.append(float((names[nearest] == names).mean()))
    return shares[0], shares[1]


def least_similar(store: Store, layer: str, image_ids: Sequence[int]) -> int:
    """Return the image whose features are least similar to those of the first, by cosine."""
    rows = torch.from_numpy(store.layer(layer).pooled[list(image_ids)]).double()
    return image_ids[int(torch.cosine_similarity(rows[:1], rows).argmin())]
