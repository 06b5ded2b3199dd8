"""All first-party contributions pass the conformance suite."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
from timmscope.testing.subjects import shared_store, tiny_pictures
from timmscope_registry import get_registry

QUICK = {
    "adversarial-patch": {"epochs": 1, "batch": 12, "area": 0.2},
    "adversarial-training": {"epochs": 2, "batch_size": 8, "steps": 2, "judge_steps": 2},
    "activation-maximization": {"steps": 4},
    "activation-maps": {"layer": "act1"},
    "apgd": {"steps": 4},
    "autoattack": {"steps": 2, "queries": 5, "target_classes": 2},
    "carlini-wagner": {"steps": 4, "searches": 2},
    "class-visualization": {"steps": 4, "frames": 2},
    "ddn": {"steps": 4},
    "decision-slice": {"attack": "ddn steps=3", "resolution": 3},
    "data-free-distillation": {
        "teacher": "random:test_resnet?num_classes=10&img_size=32",
        "epochs": 2,
        "batch_size": 8,
    },
    "deep-inversion": {"steps": 4, "frames": 2},
    "deepfool": {"steps": 2, "candidates": 3},
    "fab": {"steps": 3, "target_classes": 2},
    "fmn": {"steps": 4},
    "eot-pgd": {"steps": 2, "samples": 2, "scored": 3},
    "distillation-training": {"epochs": 2, "batch_size": 8, "judge_steps": 2},
    "decoder-training": {"kind": "vae", "layer": "act2", "epochs": 2, "batch_size": 8, "width": 2},
    "deep-dream": {"octaves": 1, "steps": 4, "frames": 2},
    "feature-inversion": {"steps": 4, "frames": 2},
    "hopskipjump": {"steps": 2, "samples": 20, "start_tries": 30},
    "ibp-training": {"epochs": 2, "batch_size": 8, "judge_steps": 2},
    "image-quilting": {"size": 32, "block_px": 8},
    "feature-accentuation": {"steps": 4, "crops": 2, "frames": 2},
    "maco": {"steps": 4, "crops": 2, "size": 32, "frames": 2},
    "grabcut": {"saliency": "grad-cam", "foreground": 0.5, "background": 0.3},
    "integrated-gradients": {"steps": 3},
    "mi-fgsm": {"steps": 3, "diverse_input": 0.5, "translation_px": 3, "variance_samples": 1},
    "lipschitz-bound": {"clever_batches": 3, "clever_samples": 2},
    "lipschitz-training": {"layers": "spectral", "epochs": 2, "batch_size": 8, "judge_steps": 2},
    "neural-style": {"steps": 3},
    "noise-training": {"epochs": 2, "batch_size": 8, "judge_steps": 2},
    "occlusion": {"patch_px": 8, "stride_px": 8},
    "pgd": {"steps": 3},
    "randomized-smoothing": {"n0": 5, "n": 30},
    "rise": {"masks": 9},
    "sigma-zero": {"steps": 4},
    "smooth-grad": {"samples": 3},
    "square": {"queries": 9},
    "targeted-linf-objective": {"steps": 2, "penalties": (10.0, 1.0)},
    "top-patches": {"units": [0, 5], "k": 2},
    "universal-perturbation": {"epochs": 1, "batch": 12},
}
"""Parameters of slow techniques; with the defaults they run once."""


@cache
def _decoder() -> str:
    """Train a decoder of the tiny model's layer, once for all checks."""
    folder = Path(tempfile.mkdtemp(prefix="decoder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pixels = (tiny_images(8) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(folder / "images.npz", images=pixels)
    training: Any = technique("decoder-training")(layer="act2", epochs=1, batch_size=4, width=2)
    training(tiny_model("cnn"), folder / "images.npz", output=folder / "decoder")
    return str(folder / "decoder")


MADE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "generative-prior": lambda _: {"decoder": _decoder(), "steps": 3, "frames": 2},
    "multifaceted": lambda _: {
        "store": str(shared_store("cnn").path),
        "facets": 2,
        "steps": 4,
        "frames": 2,
    },
}
"""Parameters that name files."""


def _list_of_files(folder: Path) -> str:
    names = sorted(str(path) for path in tiny_pictures(folder).rglob("*.png"))
    (folder / "list.txt").write_text("\n".join(names))
    return str(folder / "list.txt")


def _array(folder: Path) -> str:
    pixels = (tiny_images(4) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(folder / "some.npz", images=pixels)
    return str(folder / "some.npz")


def _tar(folder: Path) -> str:
    import tarfile

    with tarfile.open(folder / "some.tar", "w") as archive:
        for number, path in enumerate(sorted(tiny_pictures(folder).rglob("*.png"))):
            archive.add(path, f"{number:04d}.png")
    return str(folder / "some.tar")


def _run(folder: Path) -> str:
    pictures = tiny_pictures(folder)
    technique("jpeg")().over(tiny_model("cnn"), pictures, folder / "run", workers=0)
    return str(folder / "run")


MAKE: dict[str, Callable[[Path], str]] = {
    "folder": lambda folder: str(tiny_pictures(folder)),
    "list": _list_of_files,
    "array": _array,
    "webdataset": _tar,
    "over": _run,
}

WHOLE = {
    "attack": ("pgd", "hopskipjump"),
    "attribution": ("integrated-gradients", "rise"),
    "certification": ("randomized-smoothing",),
    "defence": ("randomized-resize",),
    "model": ("filters",),
    "store": ("clusters",),
    "stores": ("representational-similarity",),
    "style": ("neural-style",),
    "synthesis": ("deep-dream",),
    "training": ("noise-training",),
    "universal-attack": ("universal-perturbation",),
}
"""Techniques that keep every promise in `make test`, by base."""
IN_THE_SOAK = (
    "runs-on-nhwc",
    "runs-on-hybrid",
    "process-settings-are-untouched",
    "independent-of-global-seeds",
    "works-on-a-frozen-model",
    "works-without-autograd",
    "works-in-bfloat16",
)
"""Promises that the base keeps for nearly all of its techniques: the soak asks the others too."""

SLOW_DEFAULTS = ("carlini-wagner", "maco", "rise", "sigma-zero")
"""Techniques whose defaults take seconds."""

for _entry in get_registry().entries():
    _name = _entry.spec.name
    _repeated = _entry.kind == "technique" and _name not in WHOLE[_entry.spec.base]
    globals()[f"test_{_entry.kind}_{_name}".replace(" ", "_").replace("-", "_")] = conformance(
        _entry.id,
        kind=_entry.kind,
        parameters=MADE.get(_name) or QUICK.get(_name),
        make=MAKE.get(_name) if _entry.kind == "image source" else None,
        marks=dict.fromkeys(
            (
                *(IN_THE_SOAK if _repeated else ()),
                *(("runs-with-its-defaults",) if _name in SLOW_DEFAULTS else ()),
            ),
            pytest.mark.soak,
        ),
    )


def test_techniques_of_every_base_keep_every_promise() -> None:
    bases = {entry.spec.name: entry.spec.base for entry in get_registry().techniques()}
    assert WHOLE.keys() == set(bases.values())
    assert all(bases[name] == base for base, names in WHOLE.items() for name in names)


def test_all_image_sources_are_tested_with_images() -> None:
    assert {entry.spec.name for entry in get_registry().image_sources()} == set(MAKE)
