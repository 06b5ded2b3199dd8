"""Writes stores of any size in seconds: known rows go through the real writer, without a model.

Rows are clustered, as features are: image ``i`` belongs to cluster ``i % clusters`` and lies around
its centre. They are generated shard by shard from the seed, so that a brute-force test can generate
any range again with `rows_of`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from timmscope.collectors import Extrema, Pooled, RowCollector, Statistics, TopK
from timmscope.mining.batch_rows import BatchRows
from timmscope.mining.plan import Plan
from timmscope.mining.reductions import write_merged
from timmscope.mining.writer import Writer
from timmscope.store import ImagesRecord, Manifest, ModelRecord, Store
from timmscope_registry.hooks import Layer

LAYER = "features"
SPREAD = 0.6
"""Standard deviation within a cluster; that of the centres is 1."""


def rows_of(
    start: int, stop: int, *, width: int = 64, clusters: int = 100, seed: int = 0, block: int = 1000
) -> np.ndarray:
    """Return the pooled rows of images `start` to `stop` - 1, (stop - start, width) float32.

    `block` is the store's shard size: every shard has its own random stream.
    """
    centres = np.random.default_rng(seed).normal(size=(clusters, width)).astype(np.float32)
    parts = []
    for number in range(start // block, -(-stop // block)):
        first = number * block
        rng = np.random.default_rng((seed, number))
        noise = rng.standard_normal((block, width), dtype=np.float32)
        rows = centres[np.arange(first, first + block) % clusters] + SPREAD * noise
        parts.append(rows[max(start - first, 0) : stop - first])
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def write_synthetic(
    path: Path,
    count: int,
    *,
    width: int = 64,
    clusters: int = 100,
    seed: int = 0,
    shard_size: int = 1000,
    reductions: bool = False,
    unreadable: Collection[int] = (),
    shards: Collection[int] | None = None,
    given: np.ndarray | None = None,
) -> Store:
    """Write a store of one layer, ``features``, of `width` units without a grid.

    Image ``i`` is called ``dir<i // 10000>/<i>.jpg``, is labelled ``cluster <i % clusters>``, and
    measures 200 + i % 300 by 150 + i % 200 pixels. A million images of 512 units take 2 GB.

    Args:
        path: folder to make.
        count: number of images.
        width: number of units.
        clusters: number of clusters.
        seed: of the rows.
        shard_size: images per shard.
        reductions: keep maxima, top-k and statistics too; slower, and three times the bytes.
        unreadable: ids of images that could not be read.
        shards: numbers of shards to write; by default all, and the store is complete.
        given: rows (count, width) to write instead of those of `rows_of`.
    """
    layer = Layer(
        name=LAYER,
        module_type="Linear",
        shape=(width,),
        layout="vector",
        channels=width,
        grid=None,
        prefix_tokens=0,
        stride=None,
        order=0,
    )
    kept: list[RowCollector] = [Pooled(), *([Extrema()] if reductions else [])]
    plan = Plan(
        layers=(layer,),
        rows={LAYER: tuple(kept)},
        reducers=(TopK(k=100), Statistics()) if reductions else (),
        batch_size=shard_size,
        shard_size=shard_size,
    )
    manifest = Manifest(
        model=ModelRecord(id="module:synthetic", weights_sha256="0" * 64, preprocessing={}),
        images=ImagesRecord(location="", count=count, fingerprint=f"synthetic {seed}"),
        layers=tuple(plan._record(layer) for layer in plan.layers),
        collectors=tuple(
            {"name": c.name, "id": f"timmscope:{c.name}", "parameters": p}
            for c in plan.collectors
            for p in [c.parameters()]
        ),
        batch_size=shard_size,
        shard_size=shard_size,
        threads=1,
        precision="float32",
        versions={"timmscope": "0"},
    )
    for name in ("shards", "reduced"):
        (path / name).mkdir(parents=True, exist_ok=True)
    manifest.write(path)
    bad = set(unreadable)
    with Writer(path, manifest, plan) as writer:
        for number in range(manifest.shard_count) if shards is None else sorted(shards):
            start, stop = manifest.span(number)
            ids = range(start, stop)
            rows = (
                rows_of(start, stop, width=width, clusters=clusters, seed=seed, block=shard_size)
                if given is None
                else given[start:stop].copy()
            )
            kinds = {"pooled": rows}
            if reductions:
                kinds |= {"max": rows, "argmax": np.zeros(rows.shape, np.int32)}
            writer.put(
                BatchRows(
                    start=start,
                    layers={LAYER: kinds},
                    paths=[f"dir{i // 10000:03d}/{i:07d}.jpg" for i in ids],
                    labels=[f"cluster {i % clusters}" for i in ids],
                    sizes=[(0, 0) if i in bad else (200 + i % 300, 150 + i % 200) for i in ids],
                    reasons=[
                        f"{i:07d}.jpg: cannot be decoded (x)" if i in bad else "" for i in ids
                    ],
                )
            )
    if shards is None:
        write_merged(path, writer.manifest, plan.reducers)
    return Store.open(path)
