"""Fixture that writes given rows to a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from timmscope.collectors import Extrema, Pooled, Statistics, TopK
from timmscope.mining.batch_rows import BatchRows
from timmscope.mining.plan import Plan
from timmscope.mining.reductions import write_merged
from timmscope.mining.writer import Writer
from timmscope.store import ImagesRecord, Manifest, ModelRecord, Store, StoreLayer
from timmscope_registry.hooks import Layer

Keep = Callable[..., StoreLayer]


def keep_rows(
    path: Path,
    pooled: np.ndarray,
    maxima: np.ndarray | None = None,
    labels: Sequence[str | None] | None = None,
    *,
    shard_size: int = 7,
    top_k: int = 5,
    unreadable: Sequence[int] = (),
) -> StoreLayer:
    """Write a store of one layer, ``x``; maxima are the means by default."""
    pooled = np.asarray(pooled, np.float32)
    maxima = pooled if maxima is None else np.asarray(maxima, np.float32)
    layer = Layer(
        name="x",
        module_type="ReLU",
        shape=(pooled.shape[1], 4, 4),
        layout="NCHW",
        channels=pooled.shape[1],
        grid=(4, 4),
        prefix_tokens=0,
        stride=(8.0, 8.0),
        order=0,
    )
    plan = Plan(
        layers=(layer,),
        rows={"x": (Pooled(), Extrema())},
        reducers=(TopK(k=top_k), Statistics()),
        batch_size=shard_size,
        shard_size=shard_size,
    )
    manifest = Manifest(
        model=ModelRecord(id="random:x", weights_sha256="0" * 64, preprocessing={}),
        images=ImagesRecord(location="", count=len(pooled), fingerprint="f"),
        layers=(plan._record(layer),),
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
        (path / name).mkdir(parents=True)
    manifest.write(path)
    with Writer(path, manifest, plan) as writer:
        for number in range(manifest.shard_count):
            span = slice(*manifest.span(number))
            ids = range(len(pooled))[span]
            rows = {
                "pooled": pooled[span].copy(),
                "max": maxima[span].copy(),
                "argmax": np.full(pooled[span].shape, number % 16, np.int32),
            }
            writer.put(
                BatchRows(
                    start=span.start,
                    layers={"x": rows},
                    paths=[f"{i}.png" for i in ids],
                    labels=[(labels[i] or "" if labels else "") for i in ids],
                    sizes=[(0, 0) if i in unreadable else (10, 10) for i in ids],
                    reasons=["broken" if i in unreadable else "" for i in ids],
                )
            )
    write_merged(path, writer.manifest, plan.reducers)
    return Store.open(path).layer("x")


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Write rows (N, C) to a store and return its layer."""

    def make(*arguments: object, **options: object) -> StoreLayer:
        number = len(list(tmp_path.glob("*.scope")))
        return keep_rows(tmp_path / f"{number}.scope", *arguments, **options)  # type: ignore[arg-type]

    return make
