"""Makes docs/images/techniques/NAME.webp, a figure of each technique.

`make gallery` runs `python docs/_samples.py STORE` with the store of `timmscope demo`. It takes
some minutes, and the results are seeded. Names after the store make the figures of these
techniques alone: `make gallery ARGS=grad-cam`.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from timmscope import (
    HookedModel,
    Result,
    Store,
    class_logit,
    each,
    load_model,
    load_trained,
    match,
    mine,
    technique,
)
from timmscope_registry import get_registry

FOLDER = Path(__file__).parent / "images" / "techniques"
WIDTH = 1080
LAYER = "bn2"
FACETED = 40
"""A unit that photographs of several kinds excite."""
PARAMETERS: dict[str, dict[str, Any]] = {
    "adversarial-training": {"epsilon": 0.1, "epochs": 15, "learning_rate": 2e-3},
    "distillation-training": {
        "temperature": 100,
        "epsilon": 0.1,
        "epochs": 30,
        "learning_rate": 2e-3,
    },
    "lipschitz-training": {"layers": "spectral", "epochs": 20, "learning_rate": 2e-3},
    "noise-training": {"epochs": 20, "learning_rate": 2e-3},
    "ibp-training": {"epsilon": 0.1, "epochs": 30, "learning_rate": 2e-3},
    "interval-bounds": {"epsilons": (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15)},
    "carlini-wagner": {"step_size": 5e-4, "searches": 5, "first_constant": 0.1},
    "sigma-zero": {"steps": 200},
    "gaussian-filter": {"sigma": 2},
    "bit-depth": {"bits": 2},
    "median-filter": {"side": 7},
    "total-variation": {"weight": 0.1, "steps": 60},
    "hopskipjump": {"queries": 800},
    "mi-fgsm": {"diverse_input": 0.5},
    "eot-pgd": {"steps": 10, "samples": 4, "scored": 20},
    "occlusion": {"patch_px": 56, "stride_px": 28},
    "rise": {"masks": 500},
    "randomized-smoothing": {"sigma": 0.1, "n": 100},
    "grabcut": {"saliency": "grad-cam"},
    "score-cam": {"layer": "blocks.4"},
    "ablation-cam": {"layer": "blocks.4"},
    "neural-style": {"steps": 60},
    "image-quilting": {"size": 240, "block_px": 16},
    "fab": {"norm": "l2", "steps": 15, "target_classes": 3},
    "feature-inversion": {"weight": 300},
    "maco": {"steps": 128, "crops": 6},
    "multifaceted": {"facets": 4, "steps": 128},
    "decoder-training": {"kind": "vae", "code_length": 8, "width": 16, "epochs": 30},
    "deep-inversion": {"steps": 150, "tv_weight": 300},
    "deep-dream": {"steps": 20, "step_size": 0.012},
    "activation-maps": {"layer": "blocks.1.0.bn1", "units": "0-5"},
    "top-patches": {"units": "3,7,11", "k": 6},
    "embedding-map": {"method": "tsne"},
    "clusters": {"method": "hdbscan"},
    "anomalies": {"score": "knn"},
}
PROVABLE = {"interval-bounds": "ibp-training", "lipschitz-bound": "lipschitz-training"}
LAYERS = {"top-patches": "blocks.2.1.bn1", "unit-report": "blocks.4.1.bn1"}


def main(store: Path, names: list[str]) -> None:
    """Run each technique on photographs and save its figure."""
    import skimage

    photos = Path(skimage.__file__).parent / "data"
    cat, coffee = photos / "chelsea.png", photos / "coffee.png"
    model, opened = load_model("pip:efficientnet-lite0"), Store.open(store)
    FOLDER.mkdir(exist_ok=True)
    for entry in get_registry().techniques():
        name = entry.spec.name
        if entry.plugin.distribution == "timmscope" and (not names or name in names):
            result = sample(entry.id, name, model, opened, cat, coffee)
            print(name, keep(result, FOLDER / f"{name}.webp"), "KB", flush=True)


def prior(kind: Any, folder: Path) -> Result:
    """Train a decoder of digits, and let each class of a digits network climb its codes."""
    from tests.digits.load import digits_network

    network, (_, file) = digits_network("standard"), digits(folder)
    decoder, training = tempfile.mkdtemp(), technique("decoder-training")
    chosen: Any = training(**PARAMETERS["decoder-training"])
    chosen(network, file, output=decoder)
    made = kind(decoder=decoder, judge=digits_network("fast"), training_images=file, batch_size=8)
    return made(network, class_logit(list(range(8))))


def sample(id: str, name: str, model: HookedModel, store: Store, cat: Path, coffee: Path) -> Result:
    """Run one technique on the photographs or the store, and return its result."""
    if name == "generative-prior":
        return prior(technique(id), store.path.parent)
    if name == "data-free-distillation":
        return student_of_noise(id, store.path.parent)
    stored = {"store": store} if name == "multifaceted" else {}
    run: Any = technique(id)(**PARAMETERS.get(name, {}), **stored)
    if name.startswith("attention"):
        return run(load_model("random:vit_tiny_patch16_224?seed=0"), [cat, coffee])
    if run.base == "attribution":
        return run(model, [cat, coffee])
    if name == "feature-inversion":
        layers = (match(name, images=cat) for name in ("blocks.0", "blocks.2", "blocks.4"))
        return run(model, each(*layers))
    if name == "deep-inversion":
        return run(model, class_logit(["espresso", "flamingo", "pizza", "tennis ball"]))
    if name == "deep-dream":
        return run(model, "blocks.4", init=cat)
    if name == "feature-accentuation":
        return run(model, "tabby", init=cat)
    if name == "multifaceted":
        return run(model, f"{LAYER}[{FACETED}]")
    if run.base == "synthesis":
        return run(model, "espresso")
    if name in PROVABLE:  # they prove nothing for a network that is not trained for them
        network, file = digits(store.path.parent)
        training: Any = technique(PROVABLE[name])(**PARAMETERS[PROVABLE[name]])
        trained = training(network, file, output=tempfile.mkdtemp()).model(network)
        return run(trained, *some_digits(file, 12))
    if name == "targeted-linf-objective":
        return run(model, [cat, coffee], targets=["espresso", "tiger cat"])
    if run.base in ("attack", "defence", "certification"):
        return run(model, [cat, coffee])
    if name == "adversarial-patch":
        return run(model, store.path.with_name("images"), target="toaster", split="label")
    if run.base == "universal-attack":
        return run(model, store.path.with_name("images"), split="label")
    if run.base == "style" and "model" not in run.takes:
        gravel = cat.with_name("gravel.png")
        return run(content=cat, styles=gravel)
    if run.base == "style":
        return run(model, cat, coffee)
    if run.base == "training":
        return run(*digits(store.path.parent), output=tempfile.mkdtemp())
    if name == "decision-slice":
        from tests.digits.load import digits_network, held_out_digits

        beside: Any = technique(id)(other=digits_network("pgd"), extent=2.5)
        return beside(digits_network("standard"), held_out_digits(3)[0])
    if run.base == "model":
        return run(model, cat) if name == "activation-maps" else run(model)
    if name == "representational-similarity":
        return run([store])
    if name == "compare-datasets":
        others = store.path.with_name("no-cats")
        cats = shutil.ignore_patterns("chelsea*")
        shutil.copytree(store.path.with_name("images"), others, ignore=cats, dirs_exist_ok=True)
        made = mine(model, others, others.with_suffix(".scope"), layers=[LAYER])
        return run([store, made], layer=LAYER)
    queries = [cat] if name == "nearest-neighbours" else None
    return run(store, queries, layer=LAYERS.get(name, LAYER), model=model)


def digits(folder: Path) -> tuple[HookedModel, Path]:
    """Return a small network and the file of scikit-learn's digits."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    known = load_digits()
    file = folder / "digits.npz"
    np.savez(file, images=(known.images * 15.9).astype("uint8"), labels=known.target)
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
    ]
    network = nn.Sequential(*layers)
    return HookedModel(network, mean=(0,), std=(1,), input_size=(1, 8, 8), crop_pct=1.0), file


def student_of_noise(id: str, folder: Path) -> Result:
    """Distil a network that reads digits from its answers to noise."""
    import numpy as np
    from tests.digits.load import NETWORKS, register

    register()
    teacher = load_trained(NETWORKS / "standard", load_model("digits:cnn?seed=0"))
    network, file = digits(folder)
    noise = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    np.savez(folder / "noise.npz", images=noise)
    distil: Any = technique(id)(teacher=teacher, epochs=60, batch_size=50, learning_rate=2e-3)
    output = tempfile.mkdtemp()
    trained: Result = distil(network, folder / "noise.npz", held_out=file, output=output)
    return trained


def some_digits(file: Path, count: int) -> tuple[Any, list[int]]:
    """Return the first images of the file as a tensor, and their labels."""
    import numpy as np
    import torch

    with np.load(file) as arrays:
        images = torch.from_numpy(arrays["images"][:count])[:, None].float() / 255
        return images, arrays["labels"][:count].tolist()


def keep(result: Result, path: Path) -> int:
    """Write the figure, no wider than a page, and return the size of the file in KB."""
    buffer = io.BytesIO()
    result.figure().savefig(buffer, format="png", dpi=110)
    picture = Image.open(buffer).convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    picture.crop((0, 0, picture.width, min(picture.height, 2 * WIDTH))).save(
        path, quality=60, method=6
    )
    return path.stat().st_size // 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
