"""``timmscope top``: what a unit looks for, in real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from timmscope.cli import output
from timmscope.cli.text import plain_help

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@plain_help
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
    from timmscope import ParameterError, Store, load_model, top_patches
    from timmscope.figures import sheet_figure

    if count < 1:
        raise ParameterError(f"--count is {count}, expected at least 1", parameter="count")
    opened = Store.open(store)
    record = opened.layer(layer).record
    model = load_model(opened.manifest.model.id)
    patches = top_patches(opened, model, layer, unit, count, images=images)
    file = sheet or Path("timmscope-out") / f"top-{output.slug(layer)}-{unit}.png"
    figure = sheet_figure(
        [_pixels(patch.image) for patch in patches],
        [f"{patch.entry.value:.4g}" for patch in patches],
        title=f"{layer}[{unit}] of {model.id}",
        note="under each: the unit's maximum in that image",
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
                        "image_id": patch.entry.image_id,
                        "path": patch.path,
                        "value": patch.entry.value,
                        "position": patch.entry.position,
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
                patch.entry.value,
                f"{patch.entry.position[0]},{patch.entry.position[1]}" if record.grid else "",
                patch.entry.image_id,
                patch.path,
            )
            for rank, patch in enumerate(patches, start=1)
        ],
        right=("rank", "value", "cell", "id"),
    )
    output.say(f"\nwrote {file}")


def _pixels(image: Image) -> Tensor:
    """A picture as (3, h, w) in [0, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
