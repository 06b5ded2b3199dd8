"""Writes one shard as two files: the rows, and the states of the collectors that reduce them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from timmscope.collectors import Collector, LayerBatch
from timmscope.images.tables import encode
from timmscope.store import FileRecord, Manifest, ShardRecord, shards
from timmscope.store.checked_hdf5 import StreamedArray, write_group
from timmscope.store.files import new_hdf5

from .batch_rows import BatchRows
from .collector_errors import collector_errors, storable_state
from .plan import Plan

if TYPE_CHECKING:
    from timmscope_registry.hooks import Layer

CRASH_VARIABLE = "TIMMSCOPE_CRASH_AT"
"""For tests: the value ``point:shard`` kills the process at that point. Points are `begun`
(before a shard), `reduced` and `rows` (after its files), `listed` (after the manifest), and
`joined` (after a shard is merged)."""

_MAX_BUFFERED_ROW = 1 << 16
"""Larger rows, in bytes, are written batch by batch instead of being buffered for the shard."""


class ShardWriter:
    """Buffers or writes the rows of one shard as they come, and finishes its files at the end."""

    def __init__(self, folder: Path, number: int, manifest: Manifest, plan: Plan) -> None:
        self.number = number
        self._files = shards.ShardFiles(folder, manifest)
        self._start, self._stop = manifest.span(number)
        self._plan = plan
        self._done = 0
        count = self._stop - self._start
        self._strings: dict[str, list[bytes]] = {"path": [], "label": [], "reason": []}
        self._sizes = np.zeros((count, 2), dtype=np.int32)
        self._buffered: dict[str, dict[str, np.ndarray]] = {}
        self._streamed: dict[str, dict[str, StreamedArray]] = {}
        self._reducers: dict[tuple[str, str], Collector] = {}
        self._fills: dict[tuple[str, str], float] = {}
        self._stack = ExitStack()
        path = folder / shards.rows_file(number)
        self._file, self._guard = self._stack.enter_context(new_hdf5(path))
        try:
            for layer in plan.layers:
                self._allocate(layer, count)
        except BaseException:
            self.discard()
            raise

    def _allocate(self, layer: Layer, count: int) -> None:
        name = layer.name
        buffered = self._buffered.setdefault(name, {})
        streamed = self._streamed.setdefault(name, {})
        for kind, column in self._plan.columns(layer).items():
            self._fills[name, kind] = column.fill
            shape = (count, *column.shape)
            if np.prod(column.shape) * np.dtype(column.dtype).itemsize <= _MAX_BUFFERED_ROW:
                buffered[kind] = np.empty(shape, dtype=column.dtype)
            else:
                streamed[kind] = StreamedArray(
                    self._file,
                    f"{shards.layer_group(name)}/{kind}",
                    shape,
                    column.dtype,
                    self._files.place(shards.rows_file(self.number)),
                )
        for reducer in self._plan.reducers:
            self._reducers[name, reducer.name] = reducer.fresh()

    @property
    def full(self) -> bool:
        """Whether all images of the shard have been added."""
        return self._start + self._done == self._stop

    def add(self, rows: BatchRows) -> None:
        """Add the next batch."""
        begin, end = self._done, self._done + len(rows.paths)
        if rows.start != self._start + begin:
            raise AssertionError(f"batch {rows.start} added where {self._start + begin} is next")
        bad = np.array([bool(reason) for reason in rows.reasons])
        for name, kinds in rows.layers.items():
            streamed: dict[str, np.ndarray] = {}
            for kind, values in kinds.items():
                if bad.any():
                    values = values.copy()
                    values[bad] = self._fills[name, kind]
                if kind in self._buffered[name]:
                    self._buffered[name][kind][begin:end] = values
                else:
                    self._streamed[name][kind].write(begin, values)
                    streamed[kind] = values
            self._guard.check()
            self._reduce(name, np.arange(begin, end)[~bad], streamed, begin, end)
        self._strings["path"] += map(encode, rows.paths)
        self._strings["label"] += map(encode, rows.labels)
        self._strings["reason"] += map(encode, rows.reasons)
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
        """Update the collectors that read streamed rows; others get the whole shard at its end."""
        for reducer in self._plan.reducers:
            if not any(kind in streamed for kind in reducer.needs):
                continue
            rows = {
                kind: (
                    streamed[kind][places - begin]
                    if kind in streamed
                    else self._buffered[name][kind][places]
                )
                for kind in reducer.needs
            }
            batch = LayerBatch(layer=name, ids=places + self._start, rows=rows)
            collector = self._reducers[name, reducer.name]
            with collector_errors(collector, name, self._start + begin, self._start + end):
                collector.update(batch)

    def finish(self) -> ShardRecord:
        """Write what is buffered, give both files their final names, and return their record."""
        read = np.array([not reason for reason in self._strings["reason"]])
        rows_name, reduced_name = shards.rows_file(self.number), shards.reduced_file(self.number)
        folder = self._files.folder
        with new_hdf5(folder / reduced_name) as (file, _):
            for layer in self._plan.layers:
                self._write_reduced(file, layer.name, read)
        reduced = FileRecord.of(folder / reduced_name)
        crash("reduced", self.number)

        place = self._files.place(rows_name)
        for name, kinds in self._buffered.items():
            write_group(self._file, shards.layer_group(name), kinds, place)
        for arrays in self._streamed.values():
            for array in arrays.values():
                array.finish()
        images = {column: shards.string_array(each) for column, each in self._strings.items()}
        images["status"] = np.where(read, shards.READ, shards.UNREADABLE).astype(np.uint8)
        images["width"], images["height"] = self._sizes[:, 0], self._sizes[:, 1]
        write_group(self._file, "images", images, place)
        self._stack.close()
        crash("rows", self.number)
        return ShardRecord(
            start=self._start,
            stop=self._stop,
            unreadable=int((~read).sum()),
            rows=FileRecord.of(folder / rows_name),
            reduced=reduced,
        )

    def _write_reduced(self, file: h5py.File, name: str, read: np.ndarray) -> None:
        ids = np.arange(self._start, self._stop)[read]
        rows = {
            kind: values.view() if read.all() else values[read]
            for kind, values in self._buffered[name].items()
        }
        for values in rows.values():  # other collectors read them, and the shard will hold them
            values.flags.writeable = False
        batch = LayerBatch(layer=name, ids=ids, rows=rows)
        for reducer in self._plan.reducers:
            collector = self._reducers[name, reducer.name]
            with collector_errors(collector, name, self._start, self._stop):
                if not any(kind in self._streamed[name] for kind in reducer.needs):
                    collector.update(batch)
                state = storable_state(collector.state())
            group = f"{reducer.name}/{shards.layer_group(name)}"
            place = self._files.place(shards.reduced_file(self.number))
            write_group(file, group, state, place)

    def discard(self) -> None:
        """Delete the files of a shard that will not be finished."""
        error = RuntimeError("shard abandoned")
        with suppress(Exception):
            self._stack.__exit__(type(error), error, None)


def crash(point: str, shard: int) -> None:
    """Kill this process if a test has asked for it at this point; see `CRASH_VARIABLE`."""
    if os.environ.get(CRASH_VARIABLE) == f"{point}:{shard}":
        os.kill(os.getpid(), signal.SIGKILL)
