"""A pass over images beside the same decoding feeding a bare forward, and a hand-written script.

Every pass runs in a process of its own, so that none inherits another's memory settings. It is
done twice there: over few images, which warms up and shows what a pass costs once, and over all.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tests.bench.pairs import Pair, seconds_of

from timmscope import HookedModel, load_model, mine
from timmscope.images import open_images
from timmscope.mining.loader import Batches, load_batches

ARCHITECTURES = ("pip:efficientnet-lite0", "random:resnet18", "random:vit_tiny_patch16_224")
IMAGES, FEW, BATCH, WORKERS, LAYERS = 1024, 64, 32, 2, 10


def mining(names: tuple[str, ...] = ARCHITECTURES, runs: int = 1) -> Iterator[Pair]:
    """A pass that keeps ten layers, beside the bare forward and a script of thirty lines.

    Beside the bare forward there is a second row, of the steady state: the seconds of the images
    beyond the first few.
    """
    peers = {"bare": "the same loader, bare forward", "script": "timm, DataLoader, hooks, np.save"}
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder) / "images", IMAGES)
        for name in names:
            rounds = [
                {arm: _measure(arm, name, folder) for arm in ("ours", *peers)} for _ in range(runs)
            ]
            for peer, title in peers.items():
                yield _pair(f"mine {name}", title, [(r["ours"][1], r[peer][1]) for r in rounds])
                if peer == "bare":
                    steady = [(_steady(r["ours"]), _steady(r[peer])) for r in rounds]
                    yield _pair(f"mine {name}", f"{title}, steady", steady)


def pictures(folder: Path, count: int) -> None:
    """Noise of 400 x 320 pixels as JPEG."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((400, 320))
        picture.save(folder / f"{number:04d}.jpg", quality=90)


def _pair(name: str, theirs: str, seconds: list[tuple[float, float]]) -> Pair:
    return Pair(
        name=name,
        ours=f"{LAYERS} layers kept",
        theirs=theirs,
        ours_s=statistics.median(a for a, _ in seconds),
        theirs_s=statistics.median(b for _, b in seconds),
        ratio=statistics.median(a / b for a, b in seconds),
        runs=len(seconds),
    )


def _steady(seconds: tuple[float, float]) -> float:
    return seconds[1] - seconds[0]


def _measure(arm: str, name: str, folder: str) -> tuple[float, float]:
    """Seconds for few images and for all, in a new process."""
    line = [sys.executable, "-m", "tests.bench.mining", arm, name, folder]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    few, every = map(float, done.stdout.split()[-2:])
    return few, every


def _ours(model: HookedModel, images: list[Path], folder: Path) -> None:
    mine(
        model,
        images,
        folder / "ours.scope",
        layers=spread(model, LAYERS),
        batch_size=BATCH,
        workers=WORKERS,
    )


def _bare(model: HookedModel, images: list[Path], folder: Path) -> None:
    """The loader of a pass and the model as it is, with activations in the pass's memory format."""
    ranges = [(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
    batches = Batches(open_images(images), model.preprocessing, ranges)
    inner = torch.channels_last if _convolutional(model) else torch.contiguous_format
    with torch.inference_mode():
        for batch in load_batches(batches, workers=WORKERS):
            model(batch.images.contiguous(memory_format=inner))


def _script(model: HookedModel, images: list[Path], folder: Path) -> None:
    """What people write: timm's transform, torch's loader, hooks, a file a layer at the end."""
    import timm.data

    bare = model.module
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=bare))

    class Pictures(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(images[index]).convert("RGB"))

    kept: dict[str, list[tuple[np.ndarray, ...]]] = {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(module: object, inputs: object, output: torch.Tensor) -> None:
            units = output.flatten(2) if output.ndim == 4 else output.transpose(1, 2)
            value, place = units.max(2)
            kept.setdefault(layer, []).append((units.mean(2).numpy(), value.numpy(), place.numpy()))

        return hook

    parts = dict(bare.named_modules())
    names = [name for name in spread(model, LAYERS) if name in parts]
    hooks = [parts[name].register_forward_hook(keep(name)) for name in names]
    loader = torch.utils.data.DataLoader(Pictures(), batch_size=BATCH, num_workers=WORKERS)
    with torch.inference_mode():
        for batch in loader:
            bare(batch)
    for hook in hooks:
        hook.remove()
    for name, batches in kept.items():
        mean, value, place = map(np.concatenate, zip(*batches, strict=True))
        best = np.argsort(-value, axis=0)[:100]
        facts = {"mean": mean, "max": value, "place": place, "best": best}
        facts |= {"average": value.mean(0), "deviation": value.std(0)}
        for fact, array in facts.items():
            np.save(folder / f"{name}.{fact}.npy", array)


def _convolutional(model: HookedModel) -> bool:
    layouts = [layer.layout for layer in model.layers.values() if layer.grid is not None]
    return layouts.count("NCHW") * 2 > len(layouts)


def spread(model: HookedModel, count: int) -> list[str]:
    """Layers spread evenly over the depth of a model, the last one included."""
    names = [name for name, layer in model.layers.items() if layer.grid is not None]
    places = np.linspace(0, len(names) - 1, count).round().astype(int)
    return [names[place] for place in places]


def main(arm: str, name: str, folder: str) -> None:
    """One way of the three, over few images and over all; prints the seconds of both."""
    model = load_model(name)
    images = sorted((Path(folder) / "images").iterdir())
    run = {"ours": _ours, "bare": _bare, "script": _script}[arm]
    for some in (images[:FEW], images):
        with tempfile.TemporaryDirectory() as out:
            print(seconds_of(lambda some=some, out=out: run(model, some, Path(out))))


if __name__ == "__main__":
    main(*sys.argv[1:])
