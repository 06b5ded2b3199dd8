"""Making an index: rows from a source into an engine, and a record of what they were."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from timmscope.index.backend import Backend, BuildHints, RecallBenchmark, begin
from timmscope.index.choice import choose_backend
from timmscope.index.files import IndexRecord
from timmscope.index.metrics import SCORE_NAMES, Metric, prepared, space_of
from timmscope.index.recall import held_out, make_exam
from timmscope.index.source import RowSource
from timmscope.progress import task
from timmscope_registry import VectorIndexError

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
        VectorIndexError: unknown metric or backend, impossible wishes, or no row to index.
    """
    if metric not in SCORE_NAMES:
        raise VectorIndexError(
            f"no metric is called {metric!r}: use one of {', '.join(SCORE_NAMES)}"
        )
    check_recall(recall)
    asked = {"backend": backend, "recall": recall, "memory": memory, "seed": seed}
    reason = f"{backend}: asked for"
    if backend == "auto":
        backend, reason = choose_backend(source.count, source.dim, recall=recall, memory=memory)
    hints = BuildHints(count=source.count, memory=memory, seed=seed, scratch=scratch)
    engine = begin(backend, source.dim, space_of(metric), hints)
    non_finite = fill(engine, source, metric)
    if not len(engine):
        why = f": all {non_finite} hold NaN or infinity" if non_finite else ""
        raise VectorIndexError(f"{source.name} has no row to index{why}")
    engine.finish(held_out(engine.ids, seed))
    record = IndexRecord(
        layer=source.layer,
        metric=metric,
        backend=backend,
        dim=source.dim,
        count=len(engine),
        failed=source.failed,
        non_finite=non_finite,
        model=source.model,
        weights_sha256=source.weights_sha256,
        precision=source.precision,
        shards=source.shards,
        facts={"asked": asked, "chosen": reason},
    )
    record = tuned(engine, record, recall, timed=False)
    check_reached(record, recall)
    return engine, record


def fill(engine: Backend, source: RowSource, metric: Metric) -> int:
    """Add a source's finite rows to an engine; returns how many were not finite."""
    non_finite = 0
    with task("indexing", total=source.count) as advance:
        for ids, rows in source.batches:
            good = np.asarray(np.isfinite(rows).all(1))
            non_finite += len(good) - int(good.sum())
            engine.add(prepared(rows[good], metric), ids[good])
            advance(len(ids))
    return non_finite


def tuned(engine: Backend, record: IndexRecord, recall: float, *, timed: bool) -> IndexRecord:
    """Choose search parameters for a recall, and note what was reached and how it was measured."""
    check_recall(recall)
    if engine.facts().get("exact"):
        measured: dict[str, object] = {"k": 0, "queries": 0, "wanted": recall, "reached": 1.0}
    else:
        own = held_out(engine.ids, int(record.facts["asked"]["seed"]))
        exam = make_exam(engine, space_of(record.metric), own)
        measured = _measure(engine, exam, recall, timed)
    facts = {**record.facts, **engine.facts(), "recall": measured}
    return record.model_copy(update={"facts": facts, "count": len(engine)})


def _measure(
    engine: Backend, exam: RecallBenchmark | None, recall: float, timed: bool
) -> dict[str, object]:
    if exam is None:
        return {"k": 0, "queries": 0, "wanted": recall, "reached": 1.0}
    reached = engine.tune(exam, recall, timed=timed)
    return {
        "k": exam.k,
        "queries": len(exam.queries),
        "wanted": recall,
        "reached": round(reached, 6),
    }


def check_reached(record: IndexRecord, recall: float) -> float:
    """Warn when an index stays below the recall that was asked of it; returns what it reaches."""
    reached = float(record.facts["recall"]["reached"])
    if reached < recall:
        warnings.warn(
            f"the index of {record.layer!r} reaches a recall of {reached:.4f} at best, not "
            f"{recall}: backend='flat' is exact",
            stacklevel=3,
        )
    return reached


def check_recall(recall: float) -> None:
    """Refuse a recall that no index has.

    Raises:
        VectorIndexError: not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        raise VectorIndexError(f"recall is {recall}: expected more than 0 and at most 1")
