"""`search` answers every kind of query on a store, with an index or by reading all rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from timmscope.objectives import Objective
from timmscope.store.model import store_model

from .linear_form import linear_form
from .metrics import Metric
from .strongest import strongest
from .vector_index import VectorIndex

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from timmscope.models import HookedModel
    from timmscope.store import Store


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of `search`, best first, equal scores by ascending id.

    Attributes:
        ids: `(k,)` int64, image ids of the store.
        scores: `(k,)` float32.
        layer: the layer that was searched; None if an objective reads several.
        metric: `cosine`, `l2` or `ip`; `objective` if images are ranked by an objective.
        score_name: the name of the score, for people.
        image: `(1, 3, H, W)` in [0, 1], the query as the model receives it, if it is an image.
    """

    ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    layer: str | None
    metric: str
    score_name: str
    image: Tensor | None = None


def search(
    store: Store,
    query: int | str | Objective | npt.NDArray[Any] | Path | Image.Image | Tensor,
    k: int = 10,
    *,
    layer: str | None = None,
    metric: Metric | None = None,
    where: str | npt.ArrayLike | None = None,
    model: HookedModel | None = None,
    device: str | torch.device | None = None,
    keep: bool = True,
) -> Found:
    """Find the images of a store that are nearest to a query, or highest in an objective.

    An objective is computed from all rows, unless `metric` is given: then the images nearest to its
    direction are found. All other queries use the layer's index, which the first search builds.

    Args:
        store: the store.
        query: the id of an image of the store (int); an objective or its text; a vector `(d,)` as
            a NumPy array; or an image: a `pathlib.Path`, a PIL image, or a tensor in [0, 1].
        k: number of images; all images with a score if there are fewer.
        layer: the layer to search; by default the one that an objective reads, else the last one
            mined before the logits.
        metric: `cosine`, `l2` or `ip`; by default that of the saved index, else cosine.
        where: only these images: a condition, a mask (N,) or ids; see `ImageTable.where`.
        model: the store's model; by default it is loaded if the query needs it.
        device: the device for a model that is loaded here.
        keep: save a new index in the store.

    Raises:
        ObjectiveError: the objective is not a linear function of the rows that the store keeps.
        VectorIndexError: no index can be built, the store has no such row, or `k` is below 1.
        StoreMismatch: `model` is not the one that the store was mined with.
        ParameterError: the condition is wrong.
        ImageError: the image cannot be read.
    """
    chosen = None if where is None else store.images.where(where)
    objective = query if isinstance(query, str | Objective) else None
    if objective is not None and metric is None:
        hits = strongest(store, objective, k, where=chosen, layer=layer, model=model)
        return Found(
            ids=hits.ids[0],
            scores=hits.scores[0],
            layer=layer,
            metric="objective",
            score_name="value",
        )
    name = layer or _objective_layer(objective, store, model) or _last_layer(store)
    index = VectorIndex.of(store.layer(name), metric=metric, keep=keep)
    image = None
    if objective is not None:
        hits = index.search_objective(objective, k, where=chosen, model=model)
    elif isinstance(query, int | np.integer):
        hits = index.search_row(int(query), k, where=chosen)
    elif isinstance(query, np.ndarray):
        hits = index.search(query, k, where=chosen)
    else:
        model = store_model(store, model, device=device)
        image = model.images(query)
        hits = index.search_image(model, image, k, where=chosen)
    return Found(
        ids=hits.ids[0],
        scores=hits.scores[0],
        layer=name,
        metric=index.metric,
        score_name=index.score_name,
        image=None if image is None else image.cpu(),
    )


def _objective_layer(
    objective: Objective | str | None, store: Store, model: HookedModel | None
) -> str | None:
    """Return the layer that an objective reads, or None if it reads several."""
    if objective is None:
        return None
    layers = list(linear_form(objective, store, model=model).vectors)
    return layers[0] if len(layers) == 1 else None


def _last_layer(store: Store) -> str:
    """Return the last mined layer before the logits."""
    return next((name for name in reversed(list(store.layers)) if name != "logits"), "logits")
