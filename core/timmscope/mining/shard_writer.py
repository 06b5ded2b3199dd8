"""Writes one shard: rows as they come, reductions at its end, two files put in place together."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from timmscope.collectors import Collector, LayerBatch
from timmscope.images.tables import encode
from timmscope.store import FileRecord, ShardRecord, shards
from timmscope.store.files import GuardedFile, new_hdf5

from .collector_errors import collector_errors, storable_state
from .plan import Plan

if TYPE_CHECKING:
    from timmscope_registry.hooks import Layer

CRASH_VARIABLE = "TIMMSCOPE_CRASH_AT"
"""For tests: ``point:shard`` kills the process there; points are `begun`, `reduced`, `rows` and
`listed` (before a shard is written, after each of its two files, after the manifest)."""

_STREAMED = 1 << 16
"""Rows of more bytes than this go to disk batch by batch instead of waiting in memory."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One batch on its way to disk.

    Attributes:
        start: id of the first image.
        layers: rows by layer and kind, (B, …).
        paths: the images' names.
        labels: their labels, "" where there is none.
        sizes: width and height in pixels, (B, 2).
        reasons: why an image could not be read, "" for those that could.
    """

    start: int
    layers: Mapping[str, Mapping[str, np.ndarray]]
    paths: list[str]
    labels: list[str]
    sizes: list[tuple[int, int]]
    reasons: list[str]


class ShardWriter:
    """One shard being written."""

    def __init__(self, folder: Path, number: int, span: tuple[int, int], plan: Plan) -> None:
        self.number = number
        self._folder = folder
        self._start, self._stop = span
        self._plan = plan
        self._done = 0
        count = self._stop - self._start
        self._names: dict[str, list[bytes]] = {"path": [], "label": [], "reason": []}
        self._sizes = np.zeros((count, 2), dtype=np.int32)
        self._waiting: dict[str, dict[str, np.ndarray]] = {}
        self._streams: dict[str, dict[str, h5py.Dataset]] = {}
        self._parts: dict[tuple[str, str], Collector] = {}
        self._fills: dict[tuple[str, str], float] = {}
        self._stack = ExitStack()
        self._file, self._guard = self._open(folder / shards.rows_file(number))
        try:
            for layer in plan.layers:
                self._prepare(layer, count)
        except BaseException:
            self.discard()
            raise

    def _open(self, path: Path) -> tuple[h5py.File, GuardedFile]:
        return self._stack.enter_context(new_hdf5(path))

    def _prepare(self, layer: Layer, count: int) -> None:
        name, columns = layer.name, self._plan.columns(layer)
        waiting, streams = self._waiting.setdefault(name, {}), self._streams.setdefault(name, {})
        for kind, column in columns.items():
            self._fills[name, kind] = column.fill
            shape = (count, *column.shape)
            if np.prod(column.shape) * np.dtype(column.dtype).itemsize <= _STREAMED:
                waiting[kind] = np.empty(shape, dtype=column.dtype)
            else:
                group = self._file.require_group(shards.layer_group(name))
                streams[kind] = shards.new_dataset(group, kind, shape, column.dtype)
        for reducer in self._plan.reducers:
            self._parts[name, reducer.name] = reducer.fresh()

    @property
    def full(self) -> bool:
        """Whether all images of the range have come."""
        return self._start + self._done == self._stop

    def add(self, rows: Rows) -> None:
        """Take in the next batch."""
        begin, end = self._done, self._done + len(rows.paths)
        if rows.start != self._start + begin:
            raise AssertionError(f"batch {rows.start} came where {self._start + begin} was due")
        bad = np.array([bool(reason) for reason in rows.reasons])
        for name, kinds in rows.layers.items():
            streamed: dict[str, np.ndarray] = {}
            for kind, values in kinds.items():
                if bad.any():
                    values = values.copy()
                    values[bad] = self._fills[name, kind]
                if kind in self._waiting[name]:
                    self._waiting[name][kind][begin:end] = values
                else:
                    self._streams[name][kind][begin:end] = values
                    streamed[kind] = values
            self._guard.check()
            self._reduce(name, np.arange(begin, end)[~bad], streamed, begin, end)
        self._names["path"] += map(encode, rows.paths)
        self._names["label"] += map(encode, rows.labels)
        self._names["reason"] += map(encode, rows.reasons)
        self._sizes[begin:end] = rows.sizes
        self._done = end

    def _reduce(
        self,
        name: str,
        places: np.ndarray,
        streamed: Mapping[str, np.ndarray],
        begin: int,
        end: int,
    ) -> None:
        """Feed the collectors that read streamed rows; the others wait for the whole shard."""
        for reducer in self._plan.reducers:
            if not any(kind in streamed for kind in reducer.needs):
                continue
            rows = {
                kind: (
                    streamed[kind][places - begin]
                    if kind in streamed
                    else self._waiting[name][kind][places]
                )
                for kind in reducer.needs
            }
            batch = LayerBatch(layer=name, ids=places + self._start, rows=rows)
            part = self._parts[name, reducer.name]
            with collector_errors(part, name, self._start + begin, self._start + end):
                part.update(batch)

    def finish(self) -> ShardRecord:
        """Write the rest, put both files in place and describe them."""
        read = np.array([not reason for reason in self._names["reason"]])
        path = self._folder / shards.reduced_file(self.number)
        with new_hdf5(path) as (file, _):
            self._span(file)
            for layer in self._plan.layers:
                self._write_reduced(file, layer.name, read)
        reduced = FileRecord.of(path)
        crash("reduced", self.number)

        self._span(self._file)
        for name, kinds in self._waiting.items():
            group = self._file.require_group(shards.layer_group(name))
            for kind, values in kinds.items():
                shards.new_dataset(group, kind, values.shape, values.dtype, values)
        images = self._file.require_group("images")
        for column, names in self._names.items():
            shards.write_strings(images, column, names)
        status = np.where(read, shards.READ, shards.UNREADABLE).astype(np.uint8)
        shards.write_arrays(images, {"status": status})
        shards.write_arrays(images, {"width": self._sizes[:, 0], "height": self._sizes[:, 1]})
        self._stack.close()
        crash("rows", self.number)
        return ShardRecord(
            start=self._start,
            stop=self._stop,
            unreadable=int((~read).sum()),
            rows=FileRecord.of(self._folder / shards.rows_file(self.number)),
            reduced=reduced,
        )

    def _write_reduced(self, file: h5py.File, name: str, read: np.ndarray) -> None:
        ids = np.arange(self._start, self._stop)[read]
        waiting = self._waiting[name]
        rows = {
            kind: values.view() if read.all() else values[read] for kind, values in waiting.items()
        }
        for values in rows.values():  # other collectors see them, and the shard will hold them
            values.flags.writeable = False
        batch = LayerBatch(layer=name, ids=ids, rows=rows)
        for reducer in self._plan.reducers:
            part = self._parts[name, reducer.name]
            with collector_errors(part, name, self._start, self._stop):
                if not any(kind in self._streams[name] for kind in reducer.needs):
                    part.update(batch)
                state = storable_state(part.state())
            group = file.require_group(f"{reducer.name}/{shards.layer_group(name)}")
            shards.write_arrays(group, state)

    def _span(self, file: h5py.File) -> None:
        file.attrs["start"] = self._start
        file.attrs["stop"] = self._stop

    def discard(self) -> None:
        """Remove what was written of a shard that will not be finished."""
        error = RuntimeError("shard abandoned")
        with suppress(Exception):
            self._stack.__exit__(type(error), error, None)


def crash(point: str, shard: int) -> None:
    """Kill this process where a test wants it to die."""
    if os.environ.get(CRASH_VARIABLE) == f"{point}:{shard}":
        os.kill(os.getpid(), signal.SIGKILL)
