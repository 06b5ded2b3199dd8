"""`mine`: one pass of a model over a data set.

Worker processes decode, this thread runs the model and reduces on its device, a third writes. All
three work on fixed ranges of image ids, so that a pass that was killed and started again leaves the
same bytes as one that was not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from timmscope.images import Images, ImageSource, open_images
from timmscope.progress import task
from timmscope.store import Manifest, Store, shards
from timmscope.store.manifest import NAME as MANIFEST
from timmscope_registry import ImageError, ParameterError, StoreError

from .collectors import Collector
from .loader import Batches, Loaded, load_batches
from .lock import StoreLock
from .plan import Plan, make_plan, plan_of
from .preparation import agree, prepare, present, require_space
from .shard_writer import Rows
from .writer import Writer, write_merged

if TYPE_CHECKING:
    from timmscope.models import HookedModel

log = logging.getLogger("timmscope.mining")


def mine(
    model: HookedModel,
    images: Images,
    out: str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    maps: Sequence[str] = (),
    collectors: Iterable[Collector | str] = (),
    top_k: int | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    precision: str | None = None,
    workers: int | None = None,
    start_method: str | None = None,
) -> Store:
    """Run a model over images and keep what its layers answered in a store.

    Of every image and unit it keeps the spatial mean, the spatial maximum and its cell; of every
    unit its strongest images and its statistics. Started again on the same folder it goes on where
    it stopped, and what was left out of the call is taken from the store.

    Args:
        model: the model.
        images: a folder, a list, an array, a tar (`timmscope.open_images`), or a source.
        out: folder of the store, by custom ``NAME.scope``; made where it does not exist.
        layers: names of layers; by default the last one with a grid and the pooled features.
        maps: layers of which to keep full activation maps; see `bytes_per_image` for the size.
        collectors: more collectors, beside pooled, extrema, top-k and statistics; a name stands
            for a plugin's, with its default parameters.
        top_k: strongest images kept of every unit (100).
        batch_size: images a forward (32).
        shard_size: images a shard (1024); at most that much work is lost when killed.
        precision: ``float32`` (default) or ``bfloat16`` (autocast; rows are float32).
        workers: processes that read images; the result does not depend on it. By default one a
            processor, at most 2; 0 reads in this process.
        start_method: how to start them (`fork`, `forkserver`, `spawn`); Python's own by default.

    Raises:
        StoreMismatch: the store was made from another model, other images or settings.
        StoreError: another process writes to the store, the disk is full or too small.
        ImageError: no images, or not one of them can be read.
        LayerNotFound, ParameterError: a wrong name or setting.
    """
    folder = Path(out).resolve()
    if workers is not None and workers < 0:
        raise ParameterError(f"workers must not be negative: {workers}", parameter="workers")
    source = open_images(images)
    if not len(source):
        raise ImageError(f"{source!r} holds no image; name at least one")
    prepare(folder)
    with StoreLock(folder):
        old = Manifest.read(folder) if (folder / MANIFEST).exists() else None
        plan = make_plan(
            model,
            old,
            layers=layers,
            maps=maps,
            collectors=collectors,
            top_k=top_k,
            batch_size=batch_size,
            shard_size=shard_size,
            precision=precision,
        )
        manifest = agree(folder, old, plan.manifest(model, source), source)
        return _run(model, source, folder, manifest, plan, workers, start_method)


def resume(
    folder: Path,
    *,
    redo: set[int] | None = None,
    model: HookedModel | None = None,
    images: Images | None = None,
    workers: int | None = None,
) -> Store:
    """Complete a store, from its manifest alone where model and images can be opened again.

    Args:
        folder: the store.
        redo: numbers of shards to mine again; the merged state is made again in any case.
        model: the store's model; by default loaded by its id.
        images: the store's images; by default opened at their location.
        workers: as for `mine`.

    Raises:
        StoreError: as for `mine`; also when model or images have to be given.
        StoreMismatch: model or images are not those of the store.
    """
    with StoreLock(folder):
        old = Manifest.read(folder)
        model = model or _load_model(old)
        if images is None and not old.images.location:
            raise StoreError(f"{folder.name} was mined from images in memory; pass them as images=")
        source = open_images(old.images.location if images is None else images)
        plan = plan_of(old, model)
        manifest = agree(folder, old, plan.manifest(model, source), source)
        for number in redo or ():
            for name in (shards.rows_file(number), shards.reduced_file(number)):
                (folder / name).unlink(missing_ok=True)
        manifest = manifest.without_shards(redo or set())
        manifest.write(folder)
        return _run(model, source, folder, manifest, plan, workers, None)


def _run(
    model: HookedModel,
    source: ImageSource,
    folder: Path,
    manifest: Manifest,
    plan: Plan,
    workers: int | None,
    start_method: str | None,
) -> Store:
    """Mine the shards that are missing and merge."""
    manifest = present(folder, manifest)
    todo = [n for n in range(manifest.shard_count) if n not in manifest.shards]
    if todo:
        ranges = [batch for n in todo for batch in plan.ranges(*manifest.span(n))]
        require_space(folder, plan, sum(stop - start for start, stop in ranges))
        manifest.write(folder)
        workers = min(2, os.cpu_count() or 1) if workers is None else workers
        batches = Batches(source, model.preprocessing, ranges)
        loaded = load_batches(batches, workers=min(workers, len(ranges)), start_method=start_method)
        manifest = _pass(model, source, folder, manifest, plan, loaded)
    if sum(shard.unreadable for shard in manifest.shards.values()) == len(source):
        _, path, reason = Store(folder, manifest).images.unreadable()[0]
        raise ImageError(
            f"not one of the {len(source)} images can be read; the first says: {reason}", path=path
        )
    if not manifest.complete:
        manifest = write_merged(folder, manifest, plan)
    return Store(folder, manifest)


def _pass(
    model: HookedModel,
    source: ImageSource,
    folder: Path,
    manifest: Manifest,
    plan: Plan,
    loaded: Generator[Loaded, None, None],
) -> Manifest:
    """Feed batches through the model to the writer; returns the manifest with all shards."""
    spent = {"reading": 0.0, "model": 0.0, "writing": 0.0}
    done = sum(shard.stop - shard.start for shard in manifest.shards.values())
    with ExitStack() as stack:
        stack.enter_context(closing(loaded))  # ends the workers now, not when an error is forgotten
        batch = next(loaded, None)  # workers start before the writer's thread and its locks exist
        advance = stack.enter_context(task("mining", total=len(source)))
        advance(done)
        writer = stack.enter_context(Writer(folder, manifest, plan))
        while batch is not None:
            began = perf_counter()
            reduced = reduce_batch(model, plan, batch.images)
            ran = perf_counter()
            writer.put(_rows(batch, reduced, source))
            wrote = perf_counter()
            advance(len(batch.images))
            batch = next(loaded, None)
            spent["model"] += ran - began
            spent["writing"] += wrote - ran
            spent["reading"] += perf_counter() - wrote
    log.info("seconds waited: %s", ", ".join(f"{key} {value:.1f}" for key, value in spent.items()))
    return writer.manifest


def reduce_batch(
    model: HookedModel, plan: Plan, images: Tensor
) -> dict[str, dict[str, np.ndarray]]:
    """Run the model as far as needed and return rows by layer and kind, reduced on its device.

    Args:
        model: the model.
        plan: what to compute.
        images: (B, C, H, W) in [0, 1].
    """
    names = [layer.name for layer in plan.layers]
    with torch.inference_mode(), _repeatable(model, plan.precision):
        with model.record(*names) as recording:
            model(images.to(model.device, non_blocking=True))
        rows = {
            layer.name: {
                kind: values
                for collector in plan.rows[layer.name]
                for kind, values in collector.reduce(layer, recording[layer.name]).items()
            }
            for layer in plan.layers
        }
        return {
            name: {kind: values.cpu().numpy() for kind, values in kinds.items()}
            for name, kinds in rows.items()
        }


@contextmanager
def _repeatable(model: HookedModel, precision: str) -> Iterator[None]:
    """Choose kernels by shape alone, not by a race between them, so that a repeat is identical."""
    kind = model.device.type
    with ExitStack() as stack:
        if kind == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
            )
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
        yield


def _rows(batch: Loaded, reduced: dict[str, dict[str, np.ndarray]], source: ImageSource) -> Rows:
    ids = range(batch.start, batch.start + len(batch.images))
    labels = source.labels
    return Rows(
        start=batch.start,
        layers=reduced,
        paths=[source.paths[i] for i in ids],
        labels=["" if labels is None else labels[i] or "" for i in ids],
        sizes=batch.sizes,
        reasons=batch.reasons,
    )


def _load_model(manifest: Manifest) -> HookedModel:
    from timmscope.models import load_model

    if manifest.model.id.startswith("module:"):
        raise StoreError(
            f"the store's model {manifest.model.id} has no source to load it from; "
            "pass it as model="
        )
    return load_model(manifest.model.id)
