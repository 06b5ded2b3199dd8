"""Makes docs/images/receptive-fields.png.

`make gallery` runs `python docs/_fields.py`, which takes half a minute; the result is seeded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from timmscope import load_model, receptive_field
from timmscope.drawing import sheet_figure
from timmscope.receptive_fields import KINDS

SHOWN = (
    ("pip:efficientnet-lite0", "blocks.2"),
    ("pip:efficientnet-lite0", "blocks.4"),
    ("random:efficientnet_b0?seed=0", "blocks.2"),
    ("random:vit_tiny_patch16_224?seed=0", "blocks.3"),
)
COLOURS = {"exact": "#d55e00", "spatial": "#e69f00", "effective": "#56b4e9"}
SCALE = 2


def main() -> None:
    """Draw the three receptive fields of the middle cell of several layers."""
    import skimage

    photograph = Path(skimage.__file__).parent / "data" / "chelsea.png"
    pictures, titles = [], []
    for name, layer in SHOWN:
        model = load_model(name)
        pixels = (model.images(photograph)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        fields = {kind: receptive_field(model, layer, kind) for kind in KINDS}
        rows, columns = fields["exact"].grid or (1, 1)
        picture = Image.fromarray(pixels).resize([side * SCALE for side in pixels.shape[1::-1]])
        draw = ImageDraw.Draw(picture)
        for order, (kind, field) in enumerate(fields.items()):
            # Boxes of equal fields are drawn with small offsets, so that all of them are visible.
            left, upper, right, lower = field.box((rows // 2, columns // 2))
            out, last = 4 * (2 - order), picture.width - 1 - 4 * order
            start = [max(4 * order, edge * SCALE - out) for edge in (left, upper)]
            end = [min(last, edge * SCALE - 1 + out) for edge in (right, lower)]
            draw.rectangle((*start, *end), outline=COLOURS[kind], width=4)
        pictures.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255)
        sizes = ", ".join(f"{kind} {field.size[1]}" for kind, field in fields.items())
        titles.append(f"{name.partition(':')[2].partition('?')[0]} {layer}\n{sizes} px")
    figure = sheet_figure(
        pictures,
        titles,
        columns=4,
        cell_in=2.3,
        note="field of the middle cell: exact red, spatial orange, effective blue",
    )
    figure.savefig(Path(__file__).parent / "images" / "receptive-fields.png", dpi=110)


if __name__ == "__main__":
    main()
