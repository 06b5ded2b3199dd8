"""What the report shows is chosen by rule from the store: never by hand, never by chance."""

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
    """What the model says of an image: its five most probable classes, with probabilities."""

    image_id: int
    classes: list[int]
    probabilities: list[float]


def guesses(
    store: Store, candidates: Sequence[int], wanted: int, *, first: Sequence[str] = ()
) -> list[Guess]:
    """Images with the most confident predictions, as many distinct ones as there are.

    Args:
        store: with a layer of logits.
        candidates: ids of the images that may be chosen.
        wanted: how many; fewer where there are fewer images.
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
    """Units that single something out.

    A unit is the better the further the *weakest* of its strongest images stands above the unit's
    average, in standard deviations: so all its patches count, not one odd image. Units whose
    strongest image has the label of one before, or is the same, come after all others.

    Args:
        store: with the layer.
        layer: its name.
        count: units wanted.
        patches: strongest images of each unit.
        where: condition on the images that these are chosen from.
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
    """How often an image's nearest other image has its label: by pixels, and by features.

    Args:
        store: whose labels say what belongs together.
        layer: whose pooled units are the features, compared by cosine; pixels are compared at
            32×32 by Euclidean distance.

    Returns:
        two shares in [0, 1].
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
    """Which of some images has features that point furthest away from those of the first."""
    rows = torch.from_numpy(store.layer(layer).pooled[list(image_ids)]).double()
    return image_ids[int(torch.cosine_similarity(rows[:1], rows).argmin())]
