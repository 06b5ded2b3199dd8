"""Makes docs/images/atlas.webp, a sheet of an atlas.

`make gallery` runs `python docs/_atlas.py`, which takes some minutes; the result is seeded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from timmscope import load_model, make_atlas, mine

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
WIDTH = 1080


def main() -> None:
    """Make the atlas of six units from crops of a few photographs."""
    model = load_model("pip:efficientnet-lite0")
    with tempfile.TemporaryDirectory() as folder:
        crops = write_crops(Path(folder) / "photos")
        store = mine(model, crops, Path(folder) / "photos.scope", layers=["blocks.3"], workers=0)
        synthesis = "activation-maximization steps=24"
        made = make_atlas(
            store, "blocks.3", units=[2, 3, 4, 7, 8, 10], technique=synthesis, model=model
        )
        page = Image.open(made.folder / "page-000.png").convert("RGB")
    path = Path(__file__).parent / "images" / "atlas.webp"
    height = round(page.height * WIDTH / page.width)
    page.resize((WIDTH, height), Image.Resampling.LANCZOS).save(path, quality=70, method=6)
    print("atlas", path.stat().st_size // 1024, "KB")


def write_crops(folder: Path) -> Path:
    """Write five square crops of each photograph."""
    import skimage

    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in PHOTOS:
        photo = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        for number in range(5):
            side = int(generator.integers(150, min(photo.size)))
            x, y = (int(generator.integers(0, length - side + 1)) for length in photo.size)
            crop = photo.crop((x, y, x + side, y + side))
            crop.save(folder / f"{Path(name).stem}-{number}.jpg", quality=95)
    return folder


if __name__ == "__main__":
    main()
