"""``timmscope mine``: one pass over a data set, kept in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import output
from timmscope.cli.text import plain_help

SHOWN = 10
"""Unreadable images named one by one; all are in the store."""


@plain_help
def mine(
    model: str,
    images: str,
    /,
    *,
    store: Annotated[Path, Parameter(name=["--output", "-o"])],
    layer: Annotated[tuple[str, ...], Parameter(name=["--layer", "-l"], show_default=False)] = (),
    maps: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    top_k: int | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Run a model over images and keep its activations in a store.

    A pass that was interrupted goes on where it stopped when the same command is given again.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    images
        A folder, a text file of paths, an ``.npz`` or HDF5 file, a webdataset ``.tar``.
    store
        Folder to make, by custom ``NAME.scope``.
    layer
        Layer to mine; may be repeated. By default the last one with a grid and the pooled
        features.
    maps
        Layer whose full maps to keep as well; large. May be repeated.
    top_k
        How many of the strongest images to keep for every unit; by default 100.
    batch_size
        Images a forward; by default 32.
    shard_size
        Images in a file of the store; by default 1024.
    workers
        Processes that decode images; by default one a processor, at most 2.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print JSON.
    """
    from timmscope import load_model
    from timmscope import mine as run

    made = run(
        load_model(model, device=device),
        images,
        store,
        layers=list(layer) or None,
        maps=list(maps),
        batch_size=batch_size,
        shard_size=shard_size,
        top_k=top_k,
        workers=workers,
    )
    bad = made.images.unreadable()
    size = sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file())
    if json:
        output.print_json(
            {
                "store": str(store),
                "model": made.manifest.model.id,
                "images": len(made),
                "unreadable": [
                    {"image_id": number, "path": path, "reason": reason}
                    for number, path, reason in bad
                ],
                "layers": list(made.layers),
                "bytes": size,
            }
        )
        return
    output.table(
        ("layer", "layout", "units", "grid", "kept"),
        [
            (
                record.name,
                record.layout,
                record.channels,
                "×".join(map(str, record.grid)) if record.grid else "",
                ", ".join(record.kinds),
            )
            for record in made.layers.values()
        ],
        right=("units",),
    )
    if bad:
        output.say()
        output.table(("unreadable image", "reason"), [entry[1:] for entry in bad[:SHOWN]])
        if len(bad) > SHOWN:
            output.say(f"… and {len(bad) - SHOWN} more")
    skipped = f", {len(bad)} of them unreadable and skipped" if bad else ""
    output.say(f"\n{store}: {len(made)} images{skipped}; {size / 1e6:.1f} MB")
    gridded = [name for name, record in made.layers.items() if record.grid]
    seen = (gridded or list(made.layers))[-1]
    output.say(f"next: timmscope top {store} {seen} 0")
    output.say(f"      timmscope search {store} IMAGE")
