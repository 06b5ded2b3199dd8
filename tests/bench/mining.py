"""Benchmark of a pass over images, against the same loader with a bare forward, and a script.

Every pass runs in a new process, so that none inherits another's memory settings. It runs twice
there: over a few images, which warms up and measures the fixed cost of a pass, and over all. The
bare forward runs with glibc's defaults, and with glibc set to keep freed memory as a pass does.
"""

from __future__ import annotations

import os
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
from timmscope.mining.batch import reduce_batch
from timmscope.mining.batch_rows import BatchRows
from timmscope.mining.loader import Batches, Loaded, load_batches
from timmscope.mining.plan import make_plan
from timmscope.mining.shard_writer import ShardWriter

ARCHITECTURES = ("pip:efficientnet-lite0", "random:resnet18", "random:vit_tiny_patch16_224")
IMAGES, FEW, BATCH, WORKERS, LAYERS = 1024, 64, 32, 2, 10


KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
PEERS = {
    "bare": "the same loader, bare forward",
    "kept": "the same, freed memory kept",
    "script": "timm, DataLoader, hooks, np.save",
}


def mining(names: tuple[str, ...] = ARCHITECTURES, runs: int = 3) -> Iterator[Pair]:
    """Time a pass that keeps ten layers, the bare forward, and a script of thirty lines.

    For the bare forwards there is a second row for the steady state: the seconds of all images
    minus those of the first few. Then each stage alone is compared with a bare forward.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder) / "images", IMAGES)
        for name in names:
            rounds = [
                {arm: _measure(arm, name, folder) for arm in ("ours", *PEERS)} for _ in range(runs)
            ]
            for peer, title in PEERS.items():
                yield _pair(f"mine {name}", title, [(r["ours"][1], r[peer][1]) for r in rounds])
                if peer != "script":
                    steady = [(_steady(r["ours"]), _steady(r[peer])) for r in rounds]
                    yield _pair(f"mine {name}", f"{title}, steady", steady)
            costs = [_measure("stages", name, folder) for _ in range(runs)]
            for stage, part in enumerate(STAGES[1:], start=1):
                seconds = [(run[stage], run[0]) for run in costs]
                yield _pair(f"mine {name}, {FEW} images", STAGES[0], seconds, ours=part)


def pictures(folder: Path, count: int) -> None:
    """Write JPEG files of noise with 400 x 320 pixels."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((400, 320))
        picture.save(folder / f"{number:04d}.jpg", quality=90)


def _pair(
    name: str,
    theirs: str,
    seconds: list[tuple[float, float]],
    ours: str = f"{LAYERS} layers kept",
) -> Pair:
    return Pair(
        name=name,
        ours=ours,
        theirs=theirs,
        ours_s=statistics.median(a for a, _ in seconds),
        theirs_s=statistics.median(b for _, b in seconds),
        ratio=statistics.median(a / b for a, b in seconds),
        runs=len(seconds),
    )


def _steady(seconds: list[float]) -> float:
    return seconds[1] - seconds[0]


def _measure(arm: str, name: str, folder: str) -> list[float]:
    """Return the seconds for few images and for all, or for every stage, in a new process."""
    line = [sys.executable, "-m", "tests.bench.mining", arm, name, folder]
    environment = os.environ | (KEPT if arm in ("kept", "stages") else {})
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [float(line) for line in done.stdout.splitlines()]


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
    """Run the loader of a pass and the unchanged model, in the memory format of a pass."""
    ranges = [(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
    batches = Batches(open_images(images), model.preprocessing, ranges)
    inner = torch.channels_last if _convolutional(model) else torch.contiguous_format
    with torch.inference_mode():
        for batch in load_batches(batches, workers=WORKERS):
            model(batch.images.contiguous(memory_format=inner))


def _script(model: HookedModel, images: list[Path], folder: Path) -> None:
    """Do what people write by hand: timm's transform, torch's loader, hooks, one file per layer."""
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


STAGES = ("bare forward", "decoding, one process", "forward", "reducing", "writing, one thread")
_SHARD = 1024


def _stages(model: HookedModel, images: list[Path], folder: Path) -> list[float]:
    """Return the seconds of each stage for the images, one stage after the other."""
    plan = make_plan(
        model,
        None,
        layers=spread(model, LAYERS),
        maps=(),
        collectors=(),
        top_k=None,
        batch_size=BATCH,
        shard_size=_SHARD,
        threads=None,
        precision=None,
        count=_SHARD,
    )
    manifest = plan.manifest(model, open_images(images))
    manifest = manifest.model_copy(
        update={"images": manifest.images.model_copy(update={"count": _SHARD})}
    )
    ranges = plan.ranges(0, len(images))
    batches = Batches(open_images(images), model.preprocessing, ranges)
    loaded: list[Loaded] = []
    decoding = seconds_of(lambda: loaded.extend(load_batches(batches, workers=0)))
    inner = torch.channels_last if _convolutional(model) else torch.contiguous_format
    pixels = [batch.images.contiguous(memory_format=inner) for batch in loaded]

    def forwards(some: HookedModel) -> None:
        with torch.inference_mode():
            for batch in pixels:
                some(batch)

    reduced: list[dict[str, dict[str, np.ndarray]]] = []

    def recorded() -> None:
        reduced[:] = [reduce_batch(plan.folded or model, plan, batch) for batch in pixels]

    def written() -> None:
        shard = ShardWriter(folder, 0, manifest, plan)
        for start in range(0, _SHARD, BATCH):
            rows = reduced[start // BATCH % len(reduced)]
            names = [f"{number:07d}.jpg" for number in range(start, start + BATCH)]
            blank = [""] * BATCH
            shard.add(
                BatchRows(
                    start=start,
                    layers=rows,
                    paths=names,
                    labels=blank,
                    sizes=[(400, 320)] * BATCH,
                    reasons=blank,
                )
            )
        shard.finish()

    ways = (lambda: forwards(model), lambda: forwards(plan.folded or model), recorded)
    rounds = [[seconds_of(way) for way in ways] for _ in range(5)][1:]  # the first warms up
    bare, folded, whole = (statistics.median(way) for way in zip(*rounds, strict=True))
    for place in ("shards", "reduced"):
        (folder / place).mkdir()
    writing = seconds_of(written) * len(images) / _SHARD
    return [bare, decoding, folded, whole - folded, writing]


def _convolutional(model: HookedModel) -> bool:
    layouts = [layer.layout for layer in model.layers.values() if layer.grid is not None]
    return layouts.count("NCHW") * 2 > len(layouts)


def spread(model: HookedModel, count: int) -> list[str]:
    """Return layers spread evenly over the depth of a model, including the last one."""
    names = [name for name, layer in model.layers.items() if layer.grid is not None]
    places = np.linspace(0, len(names) - 1, count).round().astype(int)
    return [names[place] for place in places]


def main(arm: str, name: str, folder: str) -> None:
    """Run one arm over few images and over all, or the stages, and print the seconds."""
    model = load_model(name)
    images = sorted((Path(folder) / "images").iterdir())
    if arm == "stages":
        with tempfile.TemporaryDirectory() as out:
            print(*_stages(model, images[:FEW], Path(out)), sep="\n")
        return
    run = {"ours": _ours, "bare": _bare, "kept": _bare, "script": _script}[arm]
    for some in (images[:FEW], images):
        with tempfile.TemporaryDirectory() as out:
            print(seconds_of(lambda some=some, out=out: run(model, some, Path(out))))


if __name__ == "__main__":
    main(*sys.argv[1:])
