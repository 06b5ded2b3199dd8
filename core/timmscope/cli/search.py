"""``timmscope search`` finds images by nearness to a query or by the value of an objective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope.cli.typed_objective import typed_objective

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

    from timmscope.images import ImageSource
    from timmscope.index import Found
    from timmscope.store import Store

Metric = Literal["cosine", "l2", "ip"]


@plain_help
def search(
    store: parameters.StorePath,
    image: Path | None = None,
    /,
    *,
    row: parameters.OptionalWhole = None,
    objective: parameters.Text = None,
    vector: Path | None = None,
    layer: Annotated[str | None, Parameter(name=["--layer", "-l"])] = None,
    count: parameters.Count = 10,
    metric: Metric | None = None,
    where: parameters.Where = None,
    metadata: parameters.Metadata = None,
    images: parameters.Moved = None,
    sheet: parameters.Output = None,
    device: parameters.Device = None,
    json: parameters.Json = False,
) -> None:
    """Find images of a store nearest to an image, a row or a vector, or highest in an objective.

    The first search for near images builds an index and keeps it in the store; ``timmscope index``
    builds one with other settings. For an objective all rows are scored, without an index.

    Parameters
    ----------
    image
        Image file as the query.
    row
        Instead of an image: the id of an image of the store.
    objective
        Instead of an image: an expression of units, directions and classes, as in
        ``blocks.4[12]``, ``0.5*blocks.4[12] - blocks.4[3]``, ``blocks.4@vector.npy`` or
        ``class:espresso``. Images are ranked by its value; with --metric, by nearness to its
        direction.
    vector
        Instead of an image: a ``.npy`` file with one value for each unit of the layer.
    layer
        Layer whose features are compared; by default the last one mined before the logits. For
        classes, the layer that the classifier reads.
    count
        How many images.
    metric
        Measure of nearness; by default that of the saved index, or cosine for a new one.
    sheet
        PNG to write; by default ``timmscope-out/search-QUERY.png``.
    """
    from timmscope.index import search as search_store
    from timmscope.store import Store
    from timmscope_registry import ImageError, ParameterError, StoreError

    queries = {"IMAGE": image, "--row": row, "--objective": objective, "--vector": vector}
    given = {name: value for name, value in queries.items() if value is not None}
    if len(given) != 1:
        what = f"{' and '.join(given)} are given" if given else "no query is given"
        raise ParameterError(f"{what}: expected one of {', '.join(queries)}")
    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    opened = Store.open(store)
    if metadata is not None:
        opened = opened.with_metadata(metadata)
    (query,) = given.values()
    asked = query if vector is None else _read_vector(vector)
    found = search_store(
        opened,
        asked if objective is None else typed_objective(objective),
        count,
        layer=layer,
        metric=metric,
        where=where,
        device=device,
    )
    ids, scores = found.ids.tolist(), found.scores.tolist()
    if not ids:
        other = "" if row is None else f" other than {row}"
        raise StoreError(f"{store} has no row{other}{f' with {where}' if where else ''}")
    name = query.stem if isinstance(query, Path) else query if row is None else f"row-{row}"
    target = sheet or Path("timmscope-out") / f"search-{output.slug(str(name))}.png"
    file: Path | None = target
    try:
        source = opened.source(images)
    except (StoreError, ImageError) as error:
        if sheet is not None or images is not None:
            raise
        output.print_stderr(f"warning: no sheet: {error}")
        file = None
    else:
        output.write_figure(_sheet(opened, source, found, row, objective, where), target)
    paths = opened.images.paths
    if json:
        output.print_json(
            {
                "store": str(store),
                "layer": found.layer,
                "metric": found.metric,
                "query": str(query),
                "where": where,
                "sheet": None if file is None else str(file),
                "nearest": [
                    {"image_id": number, "path": paths[number], "score": score}
                    for number, score in zip(ids, scores, strict=True)
                ],
            }
        )
        return
    labels = opened.images.labels
    classes = bool(labels.names)
    output.table(
        ("rank", found.score_name, "id", *(["label"] if classes else []), "image"),
        [
            (rank, score, number, *([labels[number]] if classes else []), paths[number])
            for rank, (number, score) in enumerate(zip(ids, scores, strict=True), start=1)
        ],
        right=("rank", found.score_name, "id"),
    )
    if len(ids) < count and where is not None:
        output.say(f"\nno more rows with {where}")
    if file is not None:
        output.say(f"\nwrote {file}")


def _title(found: Found, objective: str | None, model: str) -> str:
    if found.metric == "objective":
        return f"highest in {objective} of {model}"
    near = f"near {objective}" if objective else "nearest"
    return f"{near} in {found.layer} of {model}"


def _read_vector(file: Path) -> np.ndarray:
    from timmscope.safe_files import read_npy, why
    from timmscope_registry import ParameterError

    try:
        vector = read_npy(file)
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"{file}: {why(error)}; write a .npy file of numbers with numpy.save",
            parameter="vector",
        ) from error
    if vector.dtype.kind not in "fiu" or vector.size not in vector.shape:
        raise ParameterError(
            f"{file}: holds {vector.dtype} of shape {vector.shape}, expected one row of numbers",
            parameter="vector",
        )
    return vector.reshape(-1)


def _sheet(
    store: Store,
    source: ImageSource,
    found: Found,
    row: int | None,
    objective: str | None,
    where: str | None,
) -> Figure:
    """Draw the images found, after the query if it is an image."""
    import torch

    from timmscope.drawing import sheet_figure
    from timmscope.models import Preprocessing
    from timmscope_registry import ImageError

    prepare = Preprocessing.restored(store.manifest.model.preprocessing)
    pictures: list[Tensor] = [] if found.image is None else [found.image[0]]
    titles = [] if found.image is None else ["query"]
    numbers = found.ids.tolist()
    scores = [f"{score:.4g}" for score in found.scores.tolist()]
    if row is not None:
        numbers, titles = [row, *numbers], ["query"]
    for number in numbers:
        try:
            pictures.append(prepare.load(source, number)[0])
        except ImageError as error:
            output.print_stderr(f"warning: {error}")
            pictures.append(torch.full(prepare.input_size, 0.9))
    return sheet_figure(
        pictures,
        [*titles, *scores],
        title=_title(found, objective, store.manifest.model.id),
        note=f"below: {found.score_name}{f'; only {where}' if where else ''}",
    )
