"""Makes docs/images/techniques.png.

`make gallery` runs `python docs/_techniques.py`, which takes a minute; the results are seeded.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from timmscope import compare, load_model

SHOWN = (
    "saliency",
    "smooth-grad",
    "integrated-gradients",
    "guided-backprop",
    "guided-grad-cam",
    "grad-cam",
    "layer-cam layer=blocks.4",
    "eigen-cam",
    "occlusion patch_px=56 stride_px=14 smooth=yes baseline=blur",
    "rise masks=500",
    "grabcut saliency=grad-cam",
)


def main() -> None:
    """Explain a cat and a cup of coffee with eleven techniques, side by side."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    model = load_model("pip:efficientnet-lite0")
    result = compare(SHOWN, model, [folder / "chelsea.png", folder / "coffee.png"])
    path = Path(__file__).parent / "images" / "techniques.png"
    result.figure().savefig(path, dpi=100)
    # A dithered palette of 256 colours halves the size of the file.
    full = Image.open(path).convert("RGB")
    palette = full.quantize(256, kmeans=1)
    full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(path, path.stat().st_size // 1024, "KB")


if __name__ == "__main__":
    main()
