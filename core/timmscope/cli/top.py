"""``timmscope top`` runs the technique ``top-patches`` on one unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help


@plain_help
def top(
    store: parameters.StorePath,
    layer: str,
    unit: parameters.Whole,
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
    """Show the images of a store that activate a unit most, and draw the patches that do so.

    Parameters
    ----------
    layer
        Layer of the store.
    unit
        Channel of that layer, from 0.
    count
        How many images.
    field
        Receptive field that is cut out: all pixels that can matter (``exact``), the same without
        global gates (``spatial``), or the pixels with 95 % of the gradient's energy on these images
        (``effective``).
    view
        Attribution technique that explains the unit in each patch, as in ``guided-backprop``.
    sheet
        PNG to write; by default ``timmscope-out/top-LAYER-UNIT.png``.
    """
    from timmscope.patches import UnitPatches
    from timmscope.store import Store
    from timmscope.techniques import technique
    from timmscope_registry import ParameterError

    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    opened = Store.open(store)
    if metadata is not None:
        opened = opened.with_metadata(metadata)
    kind: Any = technique("timmscope:top-patches")
    cut = kind(units=unit, k=count, field=field, view=view)
    result: UnitPatches = cut(opened, layer=layer, where=where, location=images)
    file = sheet or Path("timmscope-out") / f"top-{output.slug(layer)}-{unit}.png"
    output.write_figure(result.figure(), file)
    seen = result.fields[0]
    if json:
        places = [part[0].tolist() for part in (result.positions, result.boxes, result.cells)]
        output.print_json(
            {
                "store": str(store),
                "layer": layer,
                "unit": unit,
                "where": where,
                "view": view,
                "field": seen,
                "note": result.note,
                "sheet": str(file),
                "top": [
                    {
                        "image_id": row["image_id"],
                        "path": row["image"],
                        "value": row["value"],
                        "position": position,
                        "box_px": None if row["left_px"] is None else box,
                        "cell_px": cell,
                    }
                    for row, position, box, cell in zip(result.table(), *places, strict=True)
                ],
            }
        )
        return
    output.table(
        ("rank", "value", "cell", "id", "image"),
        [
            (
                row["rank"],
                row["value"],
                f"{row['row']},{row['column']}" if result.gridded else "",
                row["image_id"],
                row["image"],
            )
            for row in result.table()
        ],
        right=("rank", "value", "cell", "id"),
    )
    height, width = seen["size_px"]
    size = f"{width}x{height} px" if result.gridded else "the whole image"
    output.say(f"\n{seen['kind']} receptive field: {'; '.join([size, *result.remarks[1:]])}")
    output.say(f"wrote {file}")
