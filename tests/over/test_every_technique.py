"""Every technique of ours that takes images works through an image set as it does in a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from timmscope import ImageSetRun, PerImageTechnique, open_images, technique
from timmscope.testing import tiny_images, tiny_model
from timmscope_registry import get_registry

BASES = ("attribution", "attack", "defence", "certification", "style")
EVERY = [
    entry.id
    for entry in get_registry().techniques()
    if entry.spec.base in BASES and entry.id.startswith("timmscope:")
]
QUICK: dict[str, dict[str, Any]] = {
    "timmscope:neural-style": {"steps": 2},
    "timmscope:image-quilting": {"size": 32, "block_px": 8, "passes": 1},
    "timmscope:grabcut": {"saliency": "grad-cam", "foreground": 0.5, "background": 0.3},
    "timmscope:occlusion": {"patch_px": 8},
    "timmscope:rise": {"masks": 40},
    "timmscope:apgd": {"steps": 10},
    "timmscope:autoattack": {"steps": 5, "queries": 20, "target_classes": 2},
    "timmscope:carlini-wagner": {"steps": 10, "searches": 3},
    "timmscope:ddn": {"steps": 10},
    "timmscope:eot-pgd": {"steps": 3, "samples": 2, "scored": 5},
    "timmscope:fab": {"steps": 5, "target_classes": 2},
    "timmscope:fmn": {"steps": 10},
    "timmscope:hopskipjump": {"steps": 2, "samples": 20},
    "timmscope:sigma-zero": {"steps": 20},
    "timmscope:square": {"queries": 50},
    "timmscope:targeted-linf-objective": {"steps": 3},
    "timmscope:randomized-smoothing": {"n0": 10, "n": 200},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_an_image_set_gives_what_a_call_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageSetRun, "figure", lambda _: Figure(figsize=(1, 1)))
    kind = technique(name)
    used: Any = kind(**QUICK.get(name, {}))
    assert isinstance(used, PerImageTechnique)
    layout = "token" if "attention" in name else "cnn"
    model = tiny_model(layout)
    pixels = (tiny_images(3) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "set.npz", images=pixels)
    source = open_images(tmp_path / "set.npz")
    images = torch.stack([model.preprocessing.load(source, number)[0] for number in range(3)])
    if used.base == "style":
        own = model if "model" in used.takes else None
        images = images if own is not None else torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        styles = [torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
        call = used(own, images[:1], styles, seed=3)
        made = used.over(own, source, tmp_path / "out", styles=styles, workers=0, seed=3)
        kept = torch.from_numpy(made.images().pixels(0))
        torch.testing.assert_close(kept, call.images[0], rtol=1e-4, atol=1e-4)
        return
    call = used(model, images, seed=3, batch_size=2)
    made = used.over(model, source, tmp_path / "out", workers=0, seed=3, batch_size=2)
    assert made.made == 3, made.refused
    for row, (found, wanted) in enumerate(zip(made.rows(), call.summary(), strict=True)):
        for fact in made.columns:
            assert found[fact] == pytest.approx(wanted[fact], rel=1e-3, abs=1e-4), (row, fact)
    if made.kept == "maps":
        for row in range(3):
            wanted_map = call.maps[row].float()
            torch.testing.assert_close(
                torch.from_numpy(made.maps()[row]), wanted_map, rtol=1e-3, atol=1e-4
            )
