"""Makes docs/images/overview.png.

`make gallery` runs `python docs/_picture.py`, which takes two minutes; the results are seeded.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from timmscope import Adversarial, Attribution, Synthesis, load_model, technique
from timmscope.drawing import overlay, sheet_figure

GOALS = ("tiger cat", "espresso")
UNITS = ("blocks.3[17]", "blocks.4[42]")


def main() -> None:
    """Explain and attack a cat and a cup of coffee, synthesise images, and compose the results."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    model = load_model("pip:efficientnet-lite0")
    images = model.images([folder / "chelsea.png", folder / "coffee.png"])

    cam = technique("grad-cam")()(model, images)
    attack = technique("pgd")()(model, images, targets=list(reversed(GOALS)))
    maximise = technique("activation-maximization")()
    dreams = [maximise(model, goal) for goal in (*GOALS, *UNITS)]
    assert isinstance(cam, Attribution)
    assert isinstance(attack, Adversarial)

    pictures, titles = [], []
    for row in range(2):
        change = attack.images[row] - attack.originals[row]
        _, before, after = attack.class_names[row]
        class_dream, unit_dream = dreams[row], dreams[2 + row]
        assert isinstance(class_dream, Synthesis)
        assert isinstance(unit_dream, Synthesis)
        pictures += [
            attack.originals[row],
            overlay(cam.images[row], cam.maps[row]),
            (0.5 + change * 10).clamp(0, 1),
            attack.images[row],
            class_dream.images[0],
            unit_dream.images[0],
        ]
        titles += [
            f"seen as\n{before}, {attack.confidence_before[row]:.0%}",
            f"where the evidence is\nGrad-CAM, {cam.labels[row]}",
            "a change of at most\n8/255, shown ×10",
            f"with that change\n{after}, {attack.confidence_after[row]:.0%}",
            f"imagined: {GOALS[row]}\nlogit {float(class_dream.final_scores[0]):.0f}",
            f"imagined: a unit\n{UNITS[row]}",
        ]
    figure = sheet_figure(pictures, titles, columns=6)
    path = Path(__file__).parent / "images" / "overview.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    # A dithered palette of 256 colours halves the size of the file.
    full = Image.open(path).convert("RGB")
    palette = full.quantize(256, kmeans=1)
    full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(path, path.stat().st_size // 1024, "KB")


if __name__ == "__main__":
    main()
