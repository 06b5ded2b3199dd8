"""Makes docs/images/imagined-classes.webp and imagined-units.webp: ten classes and ten units.

`make gallery` runs `python docs/_imagined.py`, which takes some minutes; the results are seeded.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from timmscope import HookedModel, load_model, technique
from timmscope.drawing import sheet_figure

FOLDER = Path(__file__).parent / "images"
WIDTH = 1400
STEPS = 128
CLASSES = (
    "flamingo", "tiger cat", "goldfish", "lionfish", "monarch",
    "espresso", "pizza", "analog clock", "tennis ball", "jeep",
)  # fmt: skip
UNITS = ("blocks.2[3|11|17|30]", "blocks.4[17|40|52]", "blocks.5[8|60|100]")


def main() -> None:
    """Make both sheets."""
    model = load_model("pip:efficientnet-lite0")
    judge = load_model("pip:efficientnet-lite1")
    ascent: Any = technique("activation-maximization")
    made = ascent(steps=STEPS, judge=judge)(model, "class:" + "|".join(CLASSES))
    notes = zip(made.notes["transfer_rank"], made.notes["transfer_probability"], strict=True)
    titles = [
        f"{name}\nrank {rank}, p {probability:.2f}"
        for name, (rank, probability) in zip(made.labels, notes, strict=True)
    ]
    sheet = sheet_figure(
        made.images, titles, columns=5, title="Ten classes of EfficientNet-Lite0, from noise",
        note="below each: the rank and the probability of the class for EfficientNet-Lite1, which "
        "took no part",
    )  # fmt: skip
    keep(sheet, FOLDER / "imagined-classes.webp")
    keep(units(model, ascent(steps=STEPS)), FOLDER / "imagined-units.webp")


def units(model: HookedModel, ascent: Any) -> Figure:
    """Return the sheet of units."""
    results = [ascent(model, target) for target in UNITS]
    images = torch.cat([result.images for result in results])
    titles = [
        f"{label}\n{score:.1f}"
        for result in results
        for label, score in zip(result.labels, result.final_scores.tolist(), strict=True)
    ]
    return sheet_figure(
        images, titles, columns=5, title="Ten units of EfficientNet-Lite0, from early to late",
        note="below each: the unit's mean over the positions",
    )  # fmt: skip


def keep(figure: Figure, path: Path) -> None:
    """Write a figure as WebP."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    picture = Image.open(buffer).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    picture.resize((WIDTH, height), Image.Resampling.LANCZOS).save(path, quality=80, method=6)
    print(path.stem, path.stat().st_size // 1024, "KB")


if __name__ == "__main__":
    main()
