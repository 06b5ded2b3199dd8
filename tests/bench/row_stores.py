"""Writes stores of given rows without a model, for benchmarks of analyses of many rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.mining.synthetic import LAYER, write_synthetic

from timmscope.mining.plan import SHARD_SIZE
from timmscope.store import StoreLayer


def mixture(count: int, dim: int, *, noise: float = 0.5, seed: int = 0) -> Any:
    """Return rows `(count, dim)` float32 like those of a network: rectified, around centres.

    There is one centre per 100 rows. The centres' variance decreases over the dimensions to a tenth
    at the last one.
    """
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, count // 100), dim), dtype=np.float32)
    centres *= np.geomspace(1, 0.1**0.5, dim, dtype=np.float32)
    rows = centres[generator.integers(len(centres), size=count)]
    rows += noise * generator.standard_normal(rows.shape, dtype=np.float32)
    return np.maximum(rows, 0, out=rows)


def rows_store(path: Path, rows: Any) -> StoreLayer:
    """Return the only layer of a new store with these rows `(n, d)`, in shards of default size."""
    count, width = rows.shape
    store = write_synthetic(path, count, width=width, shard_size=SHARD_SIZE, given=rows)
    return store.layer(LAYER)
