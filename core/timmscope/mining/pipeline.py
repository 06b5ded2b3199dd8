"""Runs the pipeline of a pass: from images through the model to the store.

Worker processes decode images, this thread runs the model and reduces on its device, and another
thread writes. All of them work on fixed ranges of image ids, so that a pass that was killed and
resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from timmscope.images import ImageSource
from timmscope.progress import remark, task
from timmscope.store import Manifest

from .allocator import GrowthTrimmer, keep_freed_memory
from .batch import reduce_batch
from .batch_rows import BatchRows
from .loader import Loaded
from .plan import Plan
from .writer import Writer

if TYPE_CHECKING:
    from timmscope.models import HookedModel

log = logging.getLogger("timmscope.mining")


def run_pipeline(
    model: HookedModel,
    source: ImageSource,
    folder: Path,
    manifest: Manifest,
    plan: Plan,
    loaded: Generator[Loaded, None, None],
    kept: int,
) -> Manifest:
    """Run the model on all batches, write the shards, and return the manifest with them.

    Args:
        model: the model.
        source: the images.
        folder: the store.
        manifest: the description of the pass, with the shards that exist.
        plan: what to compute.
        loaded: the batches.
        kept: number of images of unfinished shards whose rows are kept already.
    """
    spent = {"reading": 0.0, "model": 0.0, "writing": 0.0}
    done = sum(shard.stop - shard.start for shard in manifest.shards.values())
    unreadable = sum(shard.unreadable for shard in manifest.shards.values())
    with ExitStack() as stack:
        stack.enter_context(closing(loaded))  # ends the workers even while an error is kept
        batch = next(loaded, None)  # starts the workers before the writer's thread has locks
        advance = stack.enter_context(task("mining images", total=manifest.image_count))
        advance(done + kept)
        if model.device.type == "cpu":
            stack.enter_context(keep_freed_memory())
        writer = stack.enter_context(Writer(folder, manifest, plan))
        trimmer = GrowthTrimmer()
        while batch is not None:
            began = perf_counter()
            reduced = reduce_batch(plan.folded or model, plan, batch.images, batch.start)
            ran = perf_counter()
            writer.put(_rows(batch, reduced, source))
            wrote = perf_counter()
            advance(len(batch.images))
            unreadable += sum(map(bool, batch.reasons))
            bad = f"{unreadable} unreadable, " if unreadable else ""
            shard = manifest.own_shards.index(batch.start // manifest.shard_size) + 1
            remark(f"{bad}shard {shard} of {len(manifest.own_shards)}")
            trimmer.after_batch()
            batch = next(loaded, None)
            spent["model"] += ran - began
            spent["writing"] += wrote - ran
            spent["reading"] += perf_counter() - wrote
    log.debug("seconds waited: %s", ", ".join(f"{key} {value:.1f}" for key, value in spent.items()))
    return writer.manifest


def _rows(
    batch: Loaded, reduced: dict[str, dict[str, np.ndarray]], source: ImageSource
) -> BatchRows:
    ids = range(batch.start, batch.start + len(batch.images))
    labels = source.labels
    return BatchRows(
        start=batch.start,
        layers=reduced,
        paths=[source.paths[i] for i in ids],
        labels=["" if labels is None else labels[i] or "" for i in ids],
        sizes=batch.sizes,
        reasons=batch.reasons,
    )
