"""`mine` runs a model over a data set and writes a store.

It resolves the settings, compares them with the store that the folder may hold already, mines the
shards that are missing, and merges the collectors' states.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from timmscope.collectors import Collector
from timmscope.images import Images, ImageSource, open_images
from timmscope.store import Manifest, Store
from timmscope.store.files import memory_as_store_error
from timmscope.store.journal import end_journal
from timmscope.store.lock import StoreLock
from timmscope.store.manifest import NAME as MANIFEST
from timmscope.store.model import store_model
from timmscope.trust import remember
from timmscope_registry import ParameterError, StoreError, UnsupportedModel

from .batch_size import choose_batch_size
from .loader import Batches, load_batches
from .partial_shard import PartialShard, partial_file, remove_partial_shards
from .pipeline import run_pipeline
from .plan import Plan, make_plan, recorded_collectors, recorded_plan
from .precision import precision_error
from .preflight import (
    drop_lost_shards,
    matching_manifest,
    prepare_folder,
    require_images,
    require_readable_image,
    require_space,
    restrict_to_part,
)
from .reductions import write_merged

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
    batch_size: int | Literal["auto"] | None = None,
    shard_size: int | Literal["auto"] | None = None,
    threads: int | None = None,
    precision: str | None = None,
    ranges: tuple[int, int] | None = None,
    workers: int | None = None,
    start_method: str | None = None,
) -> Store:
    """Run a model over images and keep its layers' activations, reduced, in a store.

    The store keeps the spatial mean, the spatial maximum and the maximum's cell for every image and
    unit, and the strongest images and statistics of every unit. Called again with the same folder,
    the pass resumes where it stopped, and settings that are not given are taken from the store.

    Args:
        model: the model.
        images: a folder, a list, an array, a tar (`timmscope.open_images`), or a source.
        out: folder of the store, by convention ``NAME.scope``; created if it does not exist.
        layers: names of layers; by default the last one with a grid and the pooled features.
        maps: layers whose full activation maps are kept; see `bytes_per_image` for the size.
        collectors: more collectors beside pooled, extrema, top-k and statistics; a name stands for
            a plugin's collector with its default parameters.
        top_k: number of strongest images to keep for every unit (100).
        batch_size: images per forward (32); ``auto`` takes the largest power of two, up to 64 on a
            CPU and 256 on an accelerator, that the free memory allows, and logs it. The size is
            part of the store: a resumed pass keeps it, however much memory is free by then.
        shard_size: images per shard; ``auto``, the default, takes 1024, or more where a store would
            have over 16,384 shards. A killed pass loses at most the batches in work.
        threads: threads of a forward on the CPU; by default as many as torch uses. The number is
            part of the store, since another one may change the last bits of the rows.
        precision: ``float32`` (default), or ``bfloat16`` or ``bf16`` (autocast; rows are float32).
            Its error against float32 is kept in ``store.manifest.precision_error``.
        ranges: (i, n) to mine only the i-th of n parts, counted from 1. Each part has its own
            folder; parts may run at the same time or on several machines. `merge` joins them.
        workers: processes that read images; the result does not depend on it. By default one per
            CPU, at most 2; 0 reads in this process.
        start_method: how to start the workers (`fork`, `forkserver`, `spawn`); by default Python's
            own choice.

    Raises:
        StoreMismatch: the store was made from another model, other images or settings.
        StoreError: another process writes to the store, the disk is full or too small, or there is
            not enough memory.
        ImageError: there are no images, or none of them can be read.
        LayerNotFound, ParameterError: a name or setting is wrong.
        ModelError: the model takes neither 1 nor 3 channels.
        UnsupportedModel: the model is a prediction function.
        PluginError: a collector failed; the message names it, the layer and the images.
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
            "batch_size auto may differ between the parts; give all parts one number",
            parameter="batch_size",
        )
    if model.is_function:
        raise UnsupportedModel(
            f"{model.id} is a prediction function: it has no layers to mine, and no digest by "
            "which a store would know it again; mine a module, HookedModel(module)"
        )
    model.preprocessing.require_pictures()
    source = open_images(images)
    require_images(source)
    prepare_folder(folder)
    with StoreLock(folder), memory_as_store_error(folder):
        old = Manifest.read(folder) if (folder / MANIFEST).exists() else None
        plan = make_plan(
            model,
            old,
            layers=layers,
            maps=maps,
            collectors=collectors,
            top_k=top_k,
            batch_size=None if batch_size == "auto" else batch_size,
            shard_size=None if shard_size == "auto" else shard_size,
            threads=threads,
            precision=precision,
            count=len(source),
        )
        if batch_size == "auto" and (old is None or not old.shards):
            plan = replace(plan, batch_size=choose_batch_size(model, plan))
        new = plan.manifest(model, source)
        part = ranges if ranges is not None or old is None else old.part
        manifest = matching_manifest(folder, old, restrict_to_part(new, part), source)
        if manifest.images.location == new.images.location:
            remember(manifest.trust_digest())
        return _run(model, source, folder, manifest, plan, workers, start_method)


def resume(
    folder: Path,
    *,
    redo: set[int] | None = None,
    model: HookedModel | None = None,
    images: Images | None = None,
    collectors: Iterable[Collector] = (),
    workers: int | None = None,
    trust: bool = False,
) -> Store:
    """Complete a store; its model and images are opened as its manifest records them.

    Neither is opened if all shards exist and only the merged state has to be computed again.

    Args:
        folder: the store.
        redo: numbers of shards to mine again; the merged state is always computed again.
        model: the store's model; by default loaded by its id.
        images: the store's images; by default opened at their location.
        collectors: those of the pass that no plugin registers.
        workers: as for `mine`.
        trust: whether the recorded model and images may be opened; see `Store.open`.

    Raises:
        StoreError: as for `mine`; also if the model or the images have to be passed.
        StoreMismatch: the model or the images differ from those of the store.
    """
    with StoreLock(folder), memory_as_store_error(folder):
        old, own = Manifest.read(folder), list(collectors)
        if not redo:
            whole = drop_lost_shards(folder, old.without_shards(set()))
            if not whole.missing:
                reducers = recorded_collectors(Store(folder, old), own, reducers_only=True)
                return Store(folder, write_merged(folder, whole, reducers))
        store = Store(folder, old, trust=trust)
        if images is None and not old.images.location:
            raise StoreError(f"{folder.name} was mined from images in memory; pass them as images=")
        if images is None:
            store.require_trust()
        model = store_model(store, model)
        source = open_images(old.images.location if images is None else images)
        plan = recorded_plan(Store(folder, old), model, own)
        new = restrict_to_part(plan.manifest(model, source), old.part)
        manifest = matching_manifest(folder, old, new, source)
        manifest = manifest.without_shards(redo or set())
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
    """Mine the missing shards, then merge the collectors' states."""
    manifest = drop_lost_shards(folder, manifest)
    if todo := manifest.missing:
        ranges, kept = _batches_to_do(folder, manifest, plan, todo)
        require_space(folder, plan, sum(stop - start for start, stop in ranges))
        manifest.write(folder)
        end_journal(folder)
        with _threads(plan.threads):
            if manifest.precision_error is None:
                error = precision_error(model, plan, source)
                manifest = manifest.model_copy(update={"precision_error": error})
                manifest.write(folder)
            workers = min(2, os.cpu_count() or 1) if workers is None else workers
            batches = Batches(source, model.preprocessing, ranges)
            loaded = load_batches(
                batches, workers=min(workers, len(ranges)), start_method=start_method
            )
            manifest = run_pipeline(model, source, folder, manifest, plan, loaded, kept)
    remove_partial_shards(folder)
    if manifest.part is None:
        require_readable_image(folder, manifest)
        if not manifest.complete:
            manifest = write_merged(folder, manifest, plan.reducers)
    else:
        manifest.write(folder)
    end_journal(folder)  # also one that a killed pass has left beside a complete manifest
    return Store(folder, manifest)


def _batches_to_do(
    folder: Path, manifest: Manifest, plan: Plan, shards: list[int]
) -> tuple[list[tuple[int, int]], int]:
    """Return the batches whose rows are not kept, as ranges of ids, and the number of kept images.

    Rows of a shard that a stopped pass has begun are kept; see `PartialShard`.
    """
    ranges: list[tuple[int, int]] = []
    kept = 0
    for number in shards:
        batches = plan.ranges(*manifest.span(number))
        done = 0
        if partial_file(folder, number).exists():
            done = sum(1 for _ in PartialShard(folder, number, manifest, plan).batches())
        kept += sum(stop - start for start, stop in batches[:done])
        ranges += batches[done:]
    if kept:
        log.info("%s: has %d images of an unfinished shard already", folder.name, kept)
    return ranges, kept


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run forwards in a number of threads, and set the process's own number again."""
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)
