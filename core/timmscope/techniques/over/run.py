"""Works through an image set in chunks, keeps what a technique makes of it, and can be resumed.

A chunk is a fixed range of images. What was made of it is written first, then a line of the
journal, and both are on the disk before the next chunk: a run that is stopped at any place loses at
most the chunk in work, and ends with the same bytes as one that is not stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from timmscope.draws import ImageNumbers, image_numbers
from timmscope.durable import make_folder
from timmscope.images import ImageSource, open_images
from timmscope.mining.loader import Batches, Loaded, load_batches
from timmscope.mining.preflight import format_bytes, require_images
from timmscope.models import HookedModel, Preprocessing
from timmscope.progress import quiet, remark, task
from timmscope.results import load_result
from timmscope.results.csv_text import csv_text
from timmscope.results.result import RECORD, Provenance, Result
from timmscope.results.saving import remove_unfinished
from timmscope.store.files import memory_as_store_error, replacing
from timmscope.store.lock import StoreLock
from timmscope.store.records import Journal
from timmscope.store.run_images import KIND, Missing, Run, encoded, read_facts
from timmscope.techniques.over.columns import Columns
from timmscope.techniques.over.growing_array import GrowingArray
from timmscope.techniques.over.inputs import Inputs
from timmscope.techniques.over.result import ImageSetRun, column_tensor
from timmscope.techniques.session import chunk_size
from timmscope.techniques.warn_once import each_warning_once
from timmscope_registry import (
    ImageError,
    ParameterError,
    StoreCorrupted,
    StoreError,
    TechniqueError,
    TimmscopeError,
)

if TYPE_CHECKING:
    from timmscope.techniques.over.base import PerImageTechnique

MOST_PER_CHUNK = 32
"""Largest default number of images per chunk."""
TABLE = "images.csv"
_SHOWN = 8
_MOST_TEXTS = 20
_NOT_FACTS = ("image", "file")
_RENAMED = {"label": "label_used"}
"""Facts whose name means something else of an image set: `label` is that of the image."""
_MOST_WORKERS = 2


@dataclass(frozen=True)
class Job:
    """A run before it starts.

    Attributes:
        technique: the technique.
        model: its model, if it takes one.
        source: the images.
        preprocessing: how images are prepared.
        inputs: the other arguments of its call.
        chunk: images per chunk.
        seed: seed of random numbers.
        batched: whether the call takes a batch size.
        facts: provenance of the run.
        settings: everything that decides its bytes.
    """

    technique: PerImageTechnique
    model: HookedModel | None
    source: ImageSource
    preprocessing: Preprocessing
    inputs: Inputs
    chunk: int
    seed: int
    batched: bool
    facts: Provenance
    settings: dict[str, Any]

    @property
    def kept(self) -> str:
        """What is kept of each image."""
        return self.technique.over_keeps

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First image of each chunk, and the one after its last."""
        count = len(self.source)
        return [(low, min(low + self.chunk, count)) for low in range(0, count, self.chunk)]

    def call(self, numbers: Sequence[int], images: Tensor) -> Result:
        """Call the technique with some images of the set, `(n, C, H, W)`."""
        arguments = self.inputs.of_images(numbers) | {self.technique.over_argument: images}
        if self.batched:
            arguments["batch_size"] = self.chunk
        with image_numbers(ImageNumbers(tuple(numbers))), quiet():
            return self.technique(model=self.model, seed=self.seed, **arguments)  # type: ignore[operator,no-any-return]


def run_over(
    technique: PerImageTechnique,
    model: HookedModel | None,
    images: Any,
    output: str | os.PathLike[str],
    arguments: Mapping[str, Any],
    *,
    use_labels: bool,
    batch_size: int | None,
    workers: int | None,
    seed: int,
) -> ImageSetRun:
    """Run a technique over an image set; see `PerImageTechnique.over`."""
    if workers is not None and (not isinstance(workers, int) or workers < 0):
        raise ParameterError(
            f"workers is {workers!r}: expected an int, 0 or more", parameter="workers"
        )
    source = open_images(images)
    require_images(source)
    job = _job(technique, model, source, arguments, use_labels, batch_size, seed)
    folder = Path(output)
    try:
        make_folder(folder)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot create this folder ({error.strerror}); choose another"
        ) from error
    with StoreLock(folder, "run"), memory_as_store_error(folder):
        before = [f"{job.kept}.npy"] if job.kept else []
        journal = Journal(folder, job.settings, KIND, "a run over images", before)
        done = journal.count == len(job.ranges)
        if done and (folder / RECORD).exists():
            with suppress(TimmscopeError):
                return load_result(folder, ImageSetRun)
        _complete(job, journal, folder, workers)
        return _finished(job, folder)


def _job(
    technique: PerImageTechnique,
    model: HookedModel | None,
    source: ImageSource,
    arguments: Mapping[str, Any],
    use_labels: bool,
    batch_size: int | None,
    seed: int,
) -> Job:
    inputs = Inputs.of(technique, model, source, arguments, use_labels)
    if model is None:
        known = _size_of_first(source)
    else:
        known = model.preprocessing
        known.require_pictures()
    batched = technique.over_argument == "images"
    if not batched or model is None:
        if batch_size is not None:
            raise ParameterError(
                f"{technique.title()} takes one image at a time: leave out batch_size",
                parameter="batch_size",
            )
        chunk = 1
    else:
        one = torch.empty((1, *known.input_size), device="meta")
        chunk = chunk_size(model, one, batch_size)
        chunk = chunk if batch_size is not None else min(chunk, MOST_PER_CHUNK)
    facts = technique._provenance(model, seed, **inputs.record)
    settings = {
        "technique": facts.technique,
        "parameters": facts.parameters,
        "model": facts.model,
        "weights_sha256": facts.weights_sha256,
        "preprocessing": known.to_dict(),
        "images": {"count": len(source), "fingerprint": source.fingerprint()},
        "arguments": inputs.record,
        "use_labels": use_labels,
        "batch_size": chunk,
        "seed": seed,
        "kept": technique.over_keeps,
    }
    return Job(technique, model, source, known, inputs, chunk, seed, batched, facts, settings)


def _size_of_first(source: ImageSource) -> Preprocessing:
    """Return the preprocessing to the size of the first image that can be read.

    Raises:
        ImageError: none can.
    """
    reason = ""
    for number in range(len(source)):
        try:
            width, height = source.load(number).size
        except ImageError as error:
            reason = reason or str(error)
            continue
        return Preprocessing(
            input_size=(3, height, width), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0
        )
    raise ImageError(f"none of the {len(source)} images can be read; the first error is: {reason}")


def _complete(job: Job, journal: Journal, folder: Path, workers: int | None) -> None:
    """Work through the chunks that are missing."""
    count = len(job.source)
    ranges = job.ranges[journal.count :]
    shape: tuple[int, ...] = ()
    made = 0
    missing: dict[str, int] = {}
    for record in journal:
        shape = tuple(record["shape"]) or shape
        made += record["stop"] - record["start"] - len(record["missing"])
        for why, _ in record["missing"].values():
            missing[why] = missing.get(why, 0) + 1
    file = folder / f"{job.kept}.npy"
    done = count if not ranges else ranges[0][0]
    if job.kept and shape and not GrowingArray(file, (count, *shape)).holds(done):
        raise StoreCorrupted(
            f"{file}: holds less than {done} of {count} images, which the run has made; restore it "
            "from a copy, or run again into another folder"
        )
    if job.kept and not shape:
        file.unlink(missing_ok=True)  # of a run that was killed in its first chunk
    if not ranges:
        return
    workers = min(_MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
    batches = Batches(job.source, job.preprocessing, ranges)
    loaded = load_batches(batches, workers=min(workers, len(ranges) - 1))
    with (
        closing(loaded),
        task(f"{job.technique.title()} over images", total=count) as advance,
    ):
        advance(done)
        own_warnings = each_warning_once()
        for batch in loaded:
            with own_warnings():
                chunk = _chunk(job, batch, shape)
            if not made and not chunk.numbers and chunk.error is not None:
                raise chunk.error
            if job.kept and chunk.rows is not None:
                if not shape:
                    _require_space(folder, (count, *chunk.rows.shape[1:]))
                shape = chunk.rows.shape[1:]
            if job.kept and shape:
                rows = np.full((len(batch.images), *shape), np.nan, "<f4")
                if chunk.rows is not None:
                    rows[[number - batch.start for number in chunk.numbers]] = chunk.rows
                GrowingArray(file, (count, *shape)).write(batch.start, rows)
                checksums = [f"{xxhash.xxh3_64_intdigest(row.data):016x}" for row in rows]
            else:
                checksums = []
            journal.add(_record(job, batch, chunk, shape, checksums))
            made += len(chunk.numbers)
            for each in chunk.missing.values():
                missing[each.why] = missing.get(each.why, 0) + 1
            remark(", ".join(f"{number} {why}" for why, number in sorted(missing.items())))
            advance(len(batch.images))


@dataclass(frozen=True)
class _Chunk:
    """What was made of a chunk; `error` is the first for which the technique refused an image."""

    numbers: list[int]
    facts: list[dict[str, Any]]
    rows: np.ndarray | None
    missing: dict[int, Missing]
    error: TechniqueError | None


def _chunk(job: Job, batch: Loaded, shape: tuple[int, ...]) -> _Chunk:
    """Run the technique on the readable images of a chunk, or on each alone if it refuses one."""
    missing = {
        batch.start + row: Missing("unreadable", reason)
        for row, reason in enumerate(batch.reasons)
        if reason
    }
    error: TechniqueError | None = None
    made: list[tuple[list[int], Result]] = []
    numbers = [number for number in _numbers(batch) if number not in missing]
    parts = [numbers] if numbers else []
    while parts:
        part = parts.pop(0)
        rows = [number - batch.start for number in part]
        try:
            result = job.call(part, batch.images[rows])
            _require_shape(job, result, shape)
        except TechniqueError as refusal:
            error = error or refusal
            if len(part) > 1:
                parts = [[number] for number in part]
            else:
                missing[part[0]] = Missing("refused", " ".join(str(refusal).split()))
            continue
        made.append((part, result))
        shape = _kept(job, result).shape[1:] if job.kept else shape
    facts = [row for _, result in made for row in _facts(result)]
    kept = [_kept(job, result) for _, result in made] if job.kept else []
    return _Chunk(
        numbers=[number for part, _ in made for number in part],
        facts=facts,
        rows=np.concatenate(kept) if kept else None,
        missing=missing,
        error=error,
    )


def _numbers(batch: Loaded) -> range:
    return range(batch.start, batch.start + len(batch.images))


def _kept(job: Job, result: Result) -> np.ndarray:
    """Return what is kept of the images of a result, `(n, …)` float32."""
    values: Tensor = getattr(result, job.kept)
    return values.detach().cpu().float().numpy()


def _require_shape(job: Job, result: Result, shape: tuple[int, ...]) -> None:
    """Refuse a result of another shape than those before.

    Raises:
        TechniqueError: it has another.
    """
    if job.kept and shape and (found := _kept(job, result).shape[1:]) != shape:
        sizes = ["×".join(map(str, each)) for each in (found, shape)]
        raise TechniqueError(f"the result is {sizes[0]}, those before are {sizes[1]}")


def _facts(result: Result) -> list[dict[str, Any]]:
    """Return the facts of each image, from the summary of a result."""
    return [
        {
            _RENAMED.get(name, name): _plain(value)
            for name, value in row.items()
            if name not in _NOT_FACTS
        }
        for row in result.summary()
    ]


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _record(
    job: Job, batch: Loaded, chunk: _Chunk, shape: tuple[int, ...], checksums: list[str]
) -> dict[str, Any]:
    """Return the journal's line of a chunk."""
    numbers = _numbers(batch)
    labels = job.source.labels
    names = dict.fromkeys(name for facts in chunk.facts for name in facts)
    return {
        "start": numbers.start,
        "stop": numbers.stop,
        "names": [job.source.paths[number] for number in numbers],
        "labels": None if labels is None else [labels[number] for number in numbers],
        "missing": {str(number): list(each) for number, each in sorted(chunk.missing.items())},
        "shape": list(shape) if job.kept else [],
        "checksums": checksums,
        "facts": {name: [encoded(facts.get(name)) for facts in chunk.facts] for name in names},
    }


def _require_space(folder: Path, shape: tuple[int, ...]) -> None:
    """Refuse to go on if the disk has no room for all rows.

    Raises:
        StoreError: it has none.
    """
    needed, free = 4 * int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {shape[0]} images need {format_bytes(needed)} and the disk has "
            f"{format_bytes(free)} free; choose another disk"
        )


def _finished(job: Job, folder: Path) -> ImageSetRun:
    """Write the table and the result of a run that is through.

    Raises:
        ImageError: no image could be read.
        TechniqueError: the technique refused all of them.
    """
    run = Run.read(folder)
    reasons = {why: _reasons(run, why) for why in ("unreadable", "refused")}
    if len(run.missing) == run.count:
        first = next(each for each in reasons.values() if each)[0]
        kind = TechniqueError if reasons["refused"] else ImageError
        raise kind(
            f"nothing was made of the {run.count} images; the first reason is, of "
            f"{first['image']}: {first['reason']}"
        )
    if job.kept:
        GrowingArray(folder / f"{job.kept}.npy", (run.count, *run.shape)).complete()
    columns = Columns.of(run.count, ((number, own) for number, _, _, own in read_facts(folder)))
    _write_table(folder, columns, run.labels is not None)
    numbers = [name for name in columns.names if name in columns.values]
    shown = _shown(job, run)
    result = ImageSetRun(
        provenance=job.facts,
        count=run.count,
        made=run.count - len(run.missing),
        kept=job.kept,
        columns=numbers,
        shares=[name in columns.shares for name in numbers],
        values=column_tensor([columns.values[name] for name in numbers], run.count),
        texts={name: dict(found.most_common(_MOST_TEXTS)) for name, found in columns.texts.items()},
        unreadable=reasons["unreadable"],
        refused=reasons["refused"],
        shown=shown.made,
        shown_from=shown.originals,
        shown_names=shown.names,
    )
    remove_unfinished(folder)
    result.save(folder)
    return result.placed_in(folder)


def _reasons(run: Run, why: str) -> list[dict[str, str]]:
    return [
        {"image": run.names[number], "reason": each.reason}
        for number, each in sorted(run.missing.items())
        if each.why == why
    ]


def _write_table(folder: Path, columns: Columns, labelled: bool) -> None:
    """Write the facts of every image as CSV, which a store's conditions can read."""
    heading = True
    with replacing(folder / TABLE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for _, path, label, own in read_facts(folder):
            row = {"path": path, **({"label": label} if labelled else {})}
            row |= {name: _cell(own.get(name)) for name in columns.names}
            text = csv_text([row])
            file.write(text if heading else text.partition("\r\n")[2])
            heading = False
        file.flush()
        os.fsync(file.fileno())


def _cell(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


@dataclass(frozen=True)
class _Shown:
    made: Tensor | None
    originals: Tensor | None
    names: list[str]


def _shown(job: Job, run: Run) -> _Shown:
    """Return a few images, evenly spread, with what was made of them."""
    made = [number for number in range(run.count) if number not in run.missing]
    chosen = [made[place * len(made) // _SHOWN] for place in range(_SHOWN)]
    kept = run.rows() if job.kept else None
    rows, originals, names = [], [], []
    for number in dict.fromkeys(chosen):
        with suppress(ImageError):
            image, _ = job.preprocessing.load(job.source, number)
            if kept is not None:
                rows.append(torch.from_numpy(kept[number]))
            originals.append(image)
            names.append(run.names[number])
    if not originals:
        return _Shown(None, None, [])
    return _Shown(torch.stack(rows) if rows else None, torch.stack(originals), names)
