"""Writes shards in a separate thread, while the model works on the next batches."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from pathlib import Path

from timmscope.store import Manifest
from timmscope.store.journal import add_to_journal

from .batch_rows import BatchRows
from .partial_shard import PartialShard
from .plan import Plan
from .shard_writer import ShardWriter, crash

_QUEUE_SIZE = 3
"""Number of batches that may wait for the writer."""


class Writer:
    """Takes batches in order of id and writes finished shards, inside a ``with`` block.

    Leaving the block waits until all batches are written, after an error or an interrupt too, so
    that computed rows are not lost; a second interrupt ends the wait. An error in the thread is
    raised by the next `put` or when the block is left. The batches of an incomplete shard are kept
    (`PartialShard`).
    """

    def __init__(self, folder: Path, manifest: Manifest, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self.manifest = manifest
        self._digest = manifest.pass_digest()
        self._queue: queue.Queue[BatchRows | None] = queue.Queue(_QUEUE_SIZE)
        self._error: BaseException | None = None
        self._abandon = threading.Event()
        self._thread = threading.Thread(target=self._run, name="timmscope-writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self._enqueue(None)
            self._thread.join()
        except BaseException:
            self._abandon.set()
            raise
        if error is None and self._error is not None:
            raise self._error

    def put(self, rows: BatchRows) -> None:
        """Pass a batch to the thread; waits while the queue is full."""
        self._enqueue(rows)
        if self._error is not None:
            raise self._error

    def _enqueue(self, item: BatchRows | None) -> None:
        while self._error is None:
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return

    def _run(self) -> None:
        shard: ShardWriter | None = None
        kept: PartialShard | None = None
        try:
            while not self._abandon.is_set():
                try:
                    rows = self._queue.get(timeout=0.2)
                except queue.Empty:
                    continue
                if rows is None:
                    return
                if shard is None or kept is None:
                    number = rows.start // self.manifest.shard_size
                    crash("begun", number)
                    shard = ShardWriter(self._folder, number, self.manifest, self._plan)
                    kept = PartialShard(self._folder, number, self.manifest, self._plan)
                    for batch in kept.batches():
                        shard.add(batch)
                shard.add(rows)
                kept.add(rows)
                crash("batch", rows.start)
                if shard.full:
                    self._finish(shard)
                    kept.remove()
                    shard = kept = None
        except BaseException as error:
            self._error = error
        finally:
            if kept is not None:
                kept.close()
            if shard is not None:
                shard.discard()

    def _finish(self, shard: ShardWriter) -> None:
        record = shard.finish()
        self.manifest = self.manifest.with_shard(shard.number, record)
        add_to_journal(self._folder, self._digest, shard.number, record)
        crash("listed", shard.number)
