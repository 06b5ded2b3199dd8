"""``timmscope top``: what a unit looks for, in real images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help


@plain_help
def top(
    store: parameters.StorePath,
    layer: str,
    unit: int,
    /,
    *,
    count: parameters.Count = 9,
    field: Literal["exact", "spatial", "effective"] = "spatial",
    view: str | None = None,
    where: parameters.Where = None,
    metadata: parameters.Metadata = None,
    images: parameters.Moved = None,
    sheet: parameters.Output = None,
    json: parameters.Json = False,
) -> None:
    """Show the images of a store that drive a unit highest, and write a sheet of the patches.

    Parameters
    ----------
    layer
        Layer of the store.
    unit
        Channel of that layer, from 0.
    count
        How many images.
    field
        Which receptive field the patches are: all pixels that can matter (``exact``), those that
        matter locally, global gates left aside (``spatial``), or those with 95 % of the gradient's
        energy on these images (``effective``).
    view
        Explanation to show beside each patch, of this very unit and cell, as in
        ``guided-backprop``.
    sheet
        PNG to write; by default ``timmscope-out/top-LAYER-UNIT.png``.
    """
    from timmscope.patches import top_patches
    from timmscope.patches.figure import patch_figure
    from timmscope.store import Store
    from timmscope_registry import ParameterError, StoreError

    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    opened = Store.open(store)
    if metadata is not None:
        opened = opened.with_metadata(metadata)
    record = opened.layer(layer).record
    patches = top_patches(opened, None, layer, unit, count, field=field, where=where, images=images)
    if not patches:
        chosen = "" if where is None else f" among the images with {where}"
        raise StoreError(f"{layer}[{unit}] has no value{chosen}, so it has no strongest image")
    file = sheet or Path("timmscope-out") / f"top-{output.slug(layer)}-{unit}.png"
    origin = opened.manifest.model.id
    views, title = None, f"{layer}[{unit}] of {origin}"
    if view is not None:
        from timmscope.patches import attribute_patches
        from timmscope.store import store_model

        views = attribute_patches(patches, store_model(opened), layer, unit, view)
        title += f", {view}"
    output.write_figure(patch_figure(patches, title, views), file)
    seen = patches[0].field
    if json:
        output.print_json(
            {
                "store": str(store),
                "layer": layer,
                "unit": unit,
                "where": where,
                "view": view,
                "field": {
                    "kind": seen.kind,
                    "size_px": seen.size,
                    "stride_px": seen.stride,
                    "unknown_operations": seen.unknown,
                },
                "sheet": str(file),
                "top": [
                    {
                        "image_id": patch.entry.image_id,
                        "path": patch.path,
                        "value": patch.entry.value,
                        "position": patch.entry.position,
                        "box_px": patch.box,
                        "cell_px": patch.cell,
                    }
                    for patch in patches
                ],
            }
        )
        return
    output.table(
        ("rank", "value", "cell", "id", "image"),
        [
            (
                rank,
                patch.entry.value,
                f"{patch.entry.position[0]},{patch.entry.position[1]}" if record.grid else "",
                patch.entry.image_id,
                patch.path,
            )
            for rank, patch in enumerate(patches, start=1)
        ],
        right=("rank", "value", "cell", "id"),
    )
    size = "the whole image" if seen.grid is None else f"{seen.size[1]}x{seen.size[0]} px"
    output.say(f"\n{seen.kind} receptive field: {size}")
    output.say(f"wrote {file}")
