"""``timmscope top``: what a unit looks for, in real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import output


def top(
    store: Path,
    layer: str,
    unit: int,
    /,
    *,
    count: Annotated[int, Parameter(name=["--count", "-k"])] = 9,
    images: str | None = None,
    sheet: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: output.Flag = False,
) -> None:
    """Show the images of a store that drive a unit highest, and write a sheet of the patches.

    Parameters
    ----------
    store
        Store that ``timmscope mine`` made.
    layer
        Layer of the store.
    unit
        Channel of that layer, from 0.
    count
        How many images.
    images
        Where the images are now, if they have moved since.
    sheet
        PNG to write; by default ``timmscope-out/top-LAYER-UNIT.png``.
    json
        Print JSON.
    """
    from timmscope import ParameterError, Store, top_patches
    from timmscope.figures import sheet_figure

    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    rows = Store.open(store).layer(layer)
    patches = top_patches(rows, unit, count, images=images)
    file = sheet or Path("timmscope-out") / f"top-{output.slug(layer)}-{unit}.png"
    figure = sheet_figure(
        [patch.picture for patch in patches],
        [f"{patch.value:.4g}" for patch in patches],
        title=f"{layer}[{unit}] of {rows.store.manifest.model.id}",
    )
    output.write_figure(figure, file)
    if json:
        output.print_json(
            {
                "store": str(store),
                "layer": layer,
                "unit": unit,
                "sheet": str(file),
                "top": [
                    {
                        "image_id": patch.image_id,
                        "path": patch.path,
                        "value": patch.value,
                        "position": patch.position,
                        "box_px": patch.box,
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
                patch.value,
                f"{patch.position[0]},{patch.position[1]}" if rows.record.grid else "",
                patch.image_id,
                patch.path,
            )
            for rank, patch in enumerate(patches, start=1)
        ],
        right=("rank", "value", "cell", "id"),
    )
    output.say(f"\nwrote {file}")
