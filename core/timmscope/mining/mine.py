"""`mine`: one pass of a model over a data set.

Settings are resolved and compared with what the folder holds; what is missing is mined and merged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from timmscope.collectors import Collector
from timmscope.images import Images, ImageSource, open_images
from timmscope.store import Manifest, Store, shards
from timmscope.store.lock import StoreLock
from timmscope.store.manifest import NAME as MANIFEST
from timmscope.store.model import store_model
from timmscope_registry import ParameterError, StoreError

from .batch_size import choose_batch_size
from .loader import Batches, load_batches
from .pipeline import run_pipeline
from .plan import Plan, make_plan, plan_of, recorded_collectors
from .precision import precision_error
from .preflight import agree, part_of, prepare, present, require_images, require_some, require_space
from .reductions import write_merged

if TYPE_CHECKING:
    from timmscope.models import HookedModel


def mine(
    model: HookedModel,
    images: Images,
    out: str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    maps: Sequence[str] = (),
    collectors: Iterable[Collector | str] = (),
    top_k: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    shard_size: int | None = None,
    precision: str | None = None,
    ranges: tuple[int, int] | None = None,
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
        batch_size: images a forward (32); ``auto`` takes the largest power of two, up to 64 on a
            processor and 256 on an accelerator, that the free memory allows, and says which. It
            is part of the store: a pass that goes on keeps it, whatever is free by then.
        shard_size: images a shard (1024); at most that much work is lost when killed.
        precision: ``float32`` (default), or ``bfloat16`` or ``bf16`` (autocast; rows are float32).
            Its error against float32 is kept in ``store.manifest.precision_error``.
        ranges: (i, n) to mine only the i-th of n parts, counted from 1, each in a folder of its
            own, at the same time or on several machines; `merge` joins them.
        workers: processes that read images; the result does not depend on it. By default one a
            processor, at most 2; 0 reads in this process.
        start_method: how to start them (`fork`, `forkserver`, `spawn`); Python's own by default.

    Raises:
        StoreMismatch: the store was made from another model, other images or settings.
        StoreError: another process writes to the store, the disk is full or too small.
        ImageError: no images, or not one of them can be read.
        LayerNotFound, ParameterError: a wrong name or setting.
        ModelError: the model takes other than 1 or 3 channels.
        PluginError: a collector failed; names it, the layer and the images.
    """
    folder = Path(out).resolve()
    if workers is not None and workers < 0:
        raise ParameterError(f"workers must not be negative: {workers}", parameter="workers")
    if isinstance(batch_size, str) and batch_size != "auto":
        raise ParameterError(
            f"batch_size {batch_size!r}: expected a number of images, or auto",
            parameter="batch_size",
        )
    if batch_size == "auto" and ranges is not None:
        raise ParameterError(
            "batch_size auto may come out differently for each part; give all parts one number",
            parameter="batch_size",
        )
    model.preprocessing.require_pictures()
    source = open_images(images)
    require_images(source)
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
            batch_size=None if batch_size == "auto" else batch_size,
            shard_size=shard_size,
            precision=precision,
        )
        if batch_size == "auto" and (old is None or not old.shards):
            plan = replace(plan, batch_size=choose_batch_size(model, plan))
        new = plan.manifest(model, source)
        part = ranges if ranges is not None or old is None else old.part
        manifest = agree(folder, old, part_of(new, part), source)
        return _run(model, source, folder, manifest, plan, workers, start_method)


def resume(
    folder: Path,
    *,
    redo: set[int] | None = None,
    model: HookedModel | None = None,
    images: Images | None = None,
    collectors: Iterable[Collector] = (),
    workers: int | None = None,
) -> Store:
    """Complete a store, from its manifest alone where model and images can be opened again.

    Neither is opened where every shard is there and only the merged state is to be made again.

    Args:
        folder: the store.
        redo: numbers of shards to mine again; the merged state is made again in any case.
        model: the store's model; by default loaded by its id.
        images: the store's images; by default opened at their location.
        collectors: those of the pass that no plugin registers.
        workers: as for `mine`.

    Raises:
        StoreError: as for `mine`; also when model or images have to be given.
        StoreMismatch: model or images are not those of the store.
    """
    with StoreLock(folder):
        old, own = Manifest.read(folder), list(collectors)
        if not redo:
            whole = present(folder, old.without_shards(set()))
            if not whole.missing:
                reducers = recorded_collectors(Store(folder, old), own, reducers_only=True)
                return Store(folder, write_merged(folder, whole, reducers))
        model = store_model(Store(folder, old), model)
        if images is None and not old.images.location:
            raise StoreError(f"{folder.name} was mined from images in memory; pass them as images=")
        source = open_images(old.images.location if images is None else images)
        plan = plan_of(Store(folder, old), model, own)
        manifest = agree(folder, old, part_of(plan.manifest(model, source), old.part), source)
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
    if todo := manifest.missing:
        ranges = [batch for n in todo for batch in plan.ranges(*manifest.span(n))]
        require_space(folder, plan, sum(stop - start for start, stop in ranges))
        if manifest.precision_error is None:
            error = precision_error(model, plan, source)
            manifest = manifest.model_copy(update={"precision_error": error})
        manifest.write(folder)
        workers = min(2, os.cpu_count() or 1) if workers is None else workers
        batches = Batches(source, model.preprocessing, ranges)
        loaded = load_batches(batches, workers=min(workers, len(ranges)), start_method=start_method)
        manifest = run_pipeline(model, source, folder, manifest, plan, loaded)
    if manifest.part is None:
        require_some(folder, manifest)
    if not manifest.complete:
        manifest = write_merged(folder, manifest, plan.reducers)
    return Store(folder, manifest)
