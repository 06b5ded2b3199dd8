"""``timmscope search``: the images that a layer finds most like a given one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from timmscope.cli import output
from timmscope.cli.text import plain_help

if TYPE_CHECKING:
    from timmscope import Store, VectorIndex


@plain_help
def search(
    store: Path,
    image: Path,
    /,
    *,
    layer: Annotated[str | None, Parameter(name=["--layer", "-l"])] = None,
    count: Annotated[int, Parameter(name=["--count", "-k"])] = 10,
    images: str | None = None,
    sheet: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Find the images of a store nearest to an image, and write a sheet of them.

    The index is built at the first search and kept in the store.

    Parameters
    ----------
    store
        Store that ``timmscope mine`` made.
    image
        Image file to start from.
    layer
        Layer whose features decide; by default the last one mined before the logits.
    count
        How many images.
    images
        Where the store's images are now, if they have moved since.
    sheet
        PNG to write; by default ``timmscope-out/search-IMAGE.png``.
    device
        Where to run the model, as in ``cpu`` or ``cuda:0``.
    json
        Print JSON.
    """
    from timmscope import ParameterError, Store, load_model
    from timmscope.figures import sheet_figure

    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    opened = Store.open(store)
    name = layer or next((n for n in reversed(list(opened.layers)) if n != "logits"), "logits")
    index = _index(opened, name)
    model = load_model(opened.manifest.model.id, device=device)
    query = model.images(image)
    hits = index.search_image(model, query, count)
    ids, scores = hits.ids[0].tolist(), hits.scores[0].tolist()
    source = opened.source(images)
    found = [model.preprocess(source.load(number)) for number in ids]
    file = sheet or Path("timmscope-out") / f"search-{output.slug(image.stem)}.png"
    figure = sheet_figure(
        [query[0].cpu(), *found],
        ["query", *[f"{score:.3f}" for score in scores]],
        title=f"nearest in {name} of {model.id}",
        note=f"under each: {index.score_name}",
    )
    output.write_figure(figure, file)
    paths = opened.images.paths
    if json:
        output.print_json(
            {
                "store": str(store),
                "layer": name,
                "metric": index.metric,
                "query": str(image),
                "sheet": str(file),
                "nearest": [
                    {"image_id": number, "path": paths[number], "score": score}
                    for number, score in zip(ids, scores, strict=True)
                ],
            }
        )
        return
    output.table(
        ("rank", index.score_name, "id", "image"),
        [
            (rank, score, number, paths[number])
            for rank, (number, score) in enumerate(zip(ids, scores, strict=True), start=1)
        ],
        right=("rank", index.score_name, "id"),
    )
    output.say(f"\nwrote {file}")


def _index(store: Store, layer: str) -> VectorIndex:
    """The kept index of a layer, or a new one where none was kept."""
    from timmscope import VectorIndex
    from timmscope.index.files import index_path

    rows = store.layer(layer)
    if index_path(store.path, layer).exists():
        return VectorIndex.load(store, layer)
    index = VectorIndex.build(rows)
    index.save()
    return index
