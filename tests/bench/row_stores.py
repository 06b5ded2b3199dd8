"""Stores of given rows, written without a model: what analyses of many rows are measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from timmscope.mining.collectors import Pooled
from timmscope.mining.plan import Plan
from timmscope.mining.shard_writer import Rows
from timmscope.mining.writer import Writer
from timmscope.store import ImagesRecord, Manifest, ModelRecord, Store, StoreLayer
from timmscope_registry.hooks import Layer

NAME = "features"


def mixture(count: int, dim: int, *, noise: float = 0.5, seed: int = 0) -> Any:
    """Rows `(count, dim)` float32 like a network's: rectified, around one centre in a hundred.

    The centres' variance falls over the directions, a tenth of it being left at the last one.
    """
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, count // 100), dim), dtype=np.float32)
    centres *= np.geomspace(1, 0.1**0.5, dim, dtype=np.float32)
    rows = centres[generator.integers(len(centres), size=count)]
    rows += noise * generator.standard_normal(rows.shape, dtype=np.float32)
    return np.maximum(rows, 0, out=rows)


def rows_store(path: Path, rows: Any) -> StoreLayer:
    """A store whose one layer has these rows `(n, d)`, in shards of the usual size."""
    count, dim = rows.shape
    layer = Layer(
        name=NAME,
        module_type="Linear",
        shape=(dim,),
        layout="vector",
        channels=dim,
        grid=None,
        prefix_tokens=0,
        stride=None,
        order=0,
    )
    plan = Plan(layers=(layer,), rows={NAME: (Pooled(),)}, reducers=(), batch_size=1024)
    manifest = Manifest(
        model=ModelRecord(id="random:none", weights_sha256="0" * 64, preprocessing={}),
        images=ImagesRecord(location="", count=count, fingerprint="none"),
        layers=tuple(plan._record(layer) for layer in plan.layers),
        collectors=(),
        batch_size=plan.batch_size,
        shard_size=plan.shard_size,
        precision="float32",
        versions={"timmscope": "0"},
    )
    for name in ("shards", "reduced"):
        (path / name).mkdir(parents=True)
    manifest.write(path)
    with Writer(path, manifest, plan) as writer:
        for number in range(manifest.shard_count):
            for start, stop in plan.ranges(*manifest.span(number)):
                many = stop - start
                writer.put(
                    Rows(
                        start=start,
                        layers={NAME: {"pooled": rows[start:stop].copy()}},
                        paths=[f"{image}.png" for image in range(start, stop)],
                        labels=[""] * many,
                        sizes=[(1, 1)] * many,
                        reasons=[""] * many,
                    )
                )
    return Store.open(path).layer(NAME)
