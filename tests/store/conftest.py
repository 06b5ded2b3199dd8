"""Writes a store without a model, so that every number in it is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from timmscope.collectors import Extrema, Maps, Pooled, Statistics, TopK
from timmscope.mining.batch_rows import BatchRows
from timmscope.mining.plan import Plan
from timmscope.mining.reductions import write_merged
from timmscope.mining.writer import Writer
from timmscope.store import ImagesRecord, Manifest, ModelRecord, Store
from timmscope_registry.hooks import Layer

COUNT, SHARD, BATCH = 50, 16, 5
BAD = {3: "3.png: the file is empty (0 bytes)", 48: "48.png: cannot be decoded (x)"}
NAMES = ["né\nw/日本.png", *(f"dir/{i}.png" for i in range(1, COUNT))]
LABELS = ["" if i % 3 else f"class {i % 2}" for i in range(COUNT)]

SPATIAL = Layer(
    name="blocks.1/x",
    module_type="Conv2d",
    shape=(5, 3, 4),
    layout="NCHW",
    channels=5,
    grid=(3, 4),
    prefix_tokens=0,
    stride=(8.0, 8.0),
    order=0,
)
VECTOR = Layer(
    name="head",
    module_type="Linear",
    shape=(7,),
    layout="vector",
    channels=7,
    grid=None,
    prefix_tokens=0,
    stride=None,
    order=1,
)


@dataclass
class Known:
    """A store and the rows that it must contain: `rows[layer, kind]`, with fill values."""

    path: Path
    rows: dict[tuple[str, str], np.ndarray]

    def open(self) -> Store:
        return Store.open(self.path)


def make_rows() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(7)
    rows: dict[tuple[str, str], np.ndarray] = {}
    for layer, cells in ((SPATIAL, 12), (VECTOR, 1)):
        values = np.round(rng.normal(size=(COUNT, layer.channels, cells)), 1).astype(np.float32)
        values[10, 1] = np.nan
        values[11, 1, 0] = np.inf
        values[:, 2] = np.maximum(values[:, 2], 0)  # many ties at zero
        rows[layer.name, "pooled"] = values.mean(axis=2)
        rows[layer.name, "max"] = values.max(axis=2)
        rows[layer.name, "argmax"] = values.argmax(axis=2).astype(np.int32)
        if layer is SPATIAL:
            rows[layer.name, "maps"] = values.reshape(COUNT, 5, 3, 4)
    for (_, kind), array in rows.items():
        array[list(BAD)] = -1 if kind == "argmax" else np.nan
    return rows


def write_store(path: Path, *, shards: int | None = None, top_k: int = 10) -> Known:
    rows = make_rows()
    plan = Plan(
        layers=(SPATIAL, VECTOR),
        rows={SPATIAL.name: (Pooled(), Extrema(), Maps()), VECTOR.name: (Pooled(), Extrema())},
        reducers=(TopK(k=top_k), Statistics()),
        batch_size=BATCH,
        shard_size=SHARD,
    )
    manifest = Manifest(
        model=ModelRecord(id="random:x", weights_sha256="0" * 64, preprocessing={"size": [3, 8]}),
        images=ImagesRecord(location="", count=COUNT, fingerprint="f"),
        layers=tuple(plan._record(layer) for layer in plan.layers),
        collectors=tuple(
            {"name": c.name, "id": f"timmscope:{c.name}", "parameters": p}
            for c in plan.collectors
            for p in [c.parameters()]
        ),
        batch_size=BATCH,
        shard_size=SHARD,
        threads=1,
        precision="float32",
        versions={"timmscope": "0"},
    )
    for name in ("shards", "reduced"):
        (path / name).mkdir(parents=True)
    manifest.write(path)
    with Writer(path, manifest, plan) as writer:
        for number in range(manifest.shard_count if shards is None else shards):
            for start, stop in plan.ranges(*manifest.span(number)):
                layers: dict[str, dict[str, np.ndarray]] = {}
                for (layer, kind), array in rows.items():
                    part = array[start:stop].copy()
                    layers.setdefault(layer, {})[kind] = part
                writer.put(
                    BatchRows(
                        start=start,
                        layers=layers,
                        paths=NAMES[start:stop],
                        labels=LABELS[start:stop],
                        sizes=[(0, 0) if i in BAD else (i, 2 * i) for i in range(start, stop)],
                        reasons=[BAD.get(i, "") for i in range(start, stop)],
                    )
                )
    if shards is None:
        write_merged(path, writer.manifest, plan.reducers)
    return Known(path, rows)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Known]:
    """Return a function that writes a store once for given options, and copies it from then on."""
    made: dict[str, Known] = {}

    def copied(path: Path, **options: int) -> Known:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = write_store(tmp_path_factory.mktemp("written") / "x.scope", **options)
        shutil.copytree(made[key].path, path)
        return Known(path, {name: rows.copy() for name, rows in made[key].rows.items()})

    return copied


@pytest.fixture
def known(written: Callable[..., Known], tmp_path: Path) -> Known:
    return written(tmp_path / "known.scope")


@pytest.fixture
def write(written: Callable[..., Known], tmp_path: Path) -> Callable[..., Known]:
    def make(name: str, **options: int) -> Known:
        return written(tmp_path / name, **options)

    return make
