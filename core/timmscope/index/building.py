"""Builds an index: adds the rows of a source to an engine, tunes it, and records what it holds."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from timmscope.index.backend import Backend, BuildHints, new_backend
from timmscope.index.choice import choose_backend
from timmscope.index.files import IndexRecord
from timmscope.index.metrics import SCORE_NAMES, Metric, prepare_rows, space_of
from timmscope.index.recall import held_out, recall_benchmark
from timmscope.index.source import RowSource
from timmscope.progress import task
from timmscope_registry import VectorIndexError, get_registry

if TYPE_CHECKING:
    from pathlib import Path


def build(
    source: RowSource,
    *,
    metric: Metric,
    backend: str,
    recall: float,
    memory: int | None,
    seed: int,
    scratch: Path | None,
) -> tuple[Backend, IndexRecord]:
    """Index all rows of a source; see `VectorIndex.build`.

    Raises:
        VectorIndexError: the metric or backend is unknown, the settings are impossible, or there is
            no row to index.
    """
    if metric not in SCORE_NAMES:
        raise VectorIndexError(
            f"no metric is called {metric!r}: use one of {', '.join(SCORE_NAMES)}"
        )
    check_recall(recall)
    asked = {
        "backend": backend,
        "recall": float(recall),
        "memory": None if memory is None else int(memory),
        "seed": int(seed),
    }
    reason = f"{backend}: requested"
    if backend == "auto":
        backend, reason = choose_backend(source.count, source.dim, recall=recall, memory=memory)
    hints = BuildHints(count=source.count, memory=memory, seed=seed, scratch=scratch)
    engine = new_backend(backend, source.dim, space_of(metric), hints)
    non_finite = add_rows(engine, source, metric)
    if not len(engine):
        why = f": all {non_finite} hold NaN or infinity" if non_finite else ""
        raise VectorIndexError(f"{source.name} has no row to index{why}")
    engine.finish(held_out(engine.ids, seed))
    record = IndexRecord(
        layer=source.layer,
        metric=metric,
        backend=get_registry().index_backend(backend).id,
        dim=source.dim,
        count=len(engine),
        failed=source.failed,
        non_finite=non_finite,
        model=source.model,
        weights_sha256=source.weights_sha256,
        defences=source.defences,
        precision=source.precision,
        shards=source.shards,
        facts={"asked": asked, "chosen": reason},
    )
    record = tune(engine, record, recall, timed=False)
    warn_if_below(record, recall)
    return engine, record


def add_rows(engine: Backend, source: RowSource, metric: Metric) -> int:
    """Add a source's finite rows to an engine and return how many rows are not finite."""
    non_finite = 0
    with task("indexing", total=source.count) as advance:
        for ids, rows in source.batches:
            good = np.asarray(np.isfinite(rows).all(1))
            non_finite += len(good) - int(good.sum())
            engine.add(prepare_rows(rows[good], metric), ids[good])
            advance(len(ids))
    return non_finite


def tune(engine: Backend, record: IndexRecord, recall: float, *, timed: bool) -> IndexRecord:
    """Choose search parameters for a recall; the new record has them and the measured recall."""
    check_recall(recall)
    benchmark = None
    if not engine.facts().get("exact"):
        query_ids = held_out(engine.ids, int(record.facts["asked"]["seed"]))
        benchmark = recall_benchmark(engine, space_of(record.metric), query_ids)
    measured: dict[str, object] = {"k": 0, "queries": 0, "wanted": recall, "reached": 1.0}
    if benchmark is not None:
        reached = engine.tune(benchmark, recall, timed=timed)
        measured |= {
            "k": benchmark.k,
            "queries": len(benchmark.queries),
            "reached": round(reached, 6),
        }
    facts = {**record.facts, **engine.facts(), "recall": measured}
    return record.model_copy(update={"facts": facts, "count": len(engine)})


def warn_if_below(record: IndexRecord, recall: float) -> float:
    """Return the measured recall of an index, and warn if it is below the requested recall."""
    reached = float(record.facts["recall"]["reached"])
    if reached < recall:
        warnings.warn(
            f"the index of {record.layer!r} reaches a recall of {reached:.4f} at best, not "
            f"{recall}: backend='flat' is exact",
            stacklevel=3,
        )
    return reached


def check_recall(recall: float) -> None:
    """Refuse an impossible recall.

    Raises:
        VectorIndexError: `recall` is not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        raise VectorIndexError(f"recall is {recall}: expected more than 0 and at most 1")
