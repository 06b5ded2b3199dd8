"""Checks every file of a store, and makes the damaged ones again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from timmscope.progress import track
from timmscope.store import shards
from timmscope.store.manifest import FileRecord, Manifest
from timmscope.store.shards import ShardFiles
from timmscope_registry import StoreCorrupted

if TYPE_CHECKING:
    from timmscope.collectors import Collector
    from timmscope.images import Images
    from timmscope.models import HookedModel


@dataclass(frozen=True)
class Damage:
    """A damaged file, relative to the store, and what is wrong with it."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found.

    Attributes:
        checked: number of files that were examined.
        damage: files that are missing, truncated, altered or swapped.
        missing: numbers of shards that the pass has not reached yet.
        repaired: files that were made again.
        changed: repaired files that differ from the lost ones, because images or libraries
            changed in between; empty after a faithful repair.
    """

    checked: int
    damage: tuple[Damage, ...]
    missing: tuple[int, ...] = ()
    repaired: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the store is now whole."""
        return not self.missing and len(self.repaired) >= len(self.damage)


def verify(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    model: HookedModel | None = None,
    images: Images | None = None,
    collectors: Iterable[Collector] = (),
) -> Report:
    """Check every file of a store against its checksum, and read it; its indexes as well.

    Args:
        path: the store.
        repair: mine damaged shards again (and those the pass has not reached), and build damaged
            indexes again with their settings; all others stay as they are.
        model: the model for that; by default the manifest's, loaded by its id.
        images: the images for that; by default the manifest's, opened at their location.
        collectors: for that, those of the pass that no plugin registers.

    Raises:
        StoreError: no store there, or the manifest's model or images cannot be opened.
        StoreMismatch: model or images are not those the store was made from.
    """
    from timmscope.index.verify import examine_indexes, index_files, rebuild_index
    from timmscope.store.store import Store

    folder = Path(path).resolve()
    manifest = Manifest.read(folder)
    files = ShardFiles(folder, manifest)
    expected = _expected(manifest)
    damage = [
        Damage(name, reason)
        for name, record in track(expected.items(), "verifying", total=len(expected))
        if (reason := _examine(files, name, record))
    ]
    indexes = examine_indexes(Store(folder, manifest))
    checked = len(expected) + len(index_files(folder))
    missing = tuple(manifest.missing)
    if not repair:
        damage += [Damage(item.file, item.reason) for item in indexes]
        return Report(checked=checked, damage=tuple(damage), missing=missing)

    repaired: list[str] = []
    changed: list[str] = []
    if damage or missing:
        from timmscope.mining import resume  # mining writes stores, so it imports this package

        bad = {item.file for item in damage}
        redo = {
            number
            for number in manifest.shards
            if bad & {shards.rows_file(number), shards.reduced_file(number)}
        }
        resume(folder, redo=redo, model=model, images=images, collectors=collectors)
        manifest = Manifest.read(folder)
        after = _expected(manifest)
        repaired = [item.file for item in damage if item.file in after]
        changed = [name for name in repaired if after[name] != expected[name]]
        if changed:  # an index of the lost rows is out of date now
            indexes = examine_indexes(Store(folder, manifest))
    repaired += [item.file for item in indexes if rebuild_index(Store(folder, manifest), item)]
    damage += [Damage(item.file, item.reason) for item in indexes]
    return Report(
        checked=checked, damage=tuple(damage), repaired=tuple(repaired), changed=tuple(changed)
    )


def wrong_sizes(folder: Path, manifest: Manifest) -> list[Damage]:
    """Files that are missing or of another size than was written: what is seen without reading."""
    found = []
    for name, record in _expected(manifest).items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            found.append(Damage(name, "it is missing"))
        else:
            if size != record.size:
                found.append(
                    Damage(name, f"it has {size} bytes and was written with {record.size}")
                )
    return found


def _expected(manifest: Manifest) -> dict[str, FileRecord]:
    found = {}
    for number, shard in manifest.shards.items():
        found[shards.rows_file(number)] = shard.rows
        found[shards.reduced_file(number)] = shard.reduced
    if manifest.merged is not None:
        found[shards.MERGED] = manifest.merged
    return found


def _examine(files: ShardFiles, name: str, record: FileRecord) -> str:
    """Say what is wrong with a file, or nothing."""
    if reason := files.damage(name, record):
        return reason
    try:
        with files.open(name, record) as file:
            file.visititems(_read_all)
    except StoreCorrupted as error:  # the checksum is right: it was written like this
        return str(error)
    return ""


def _read_all(name: str, item: h5py.Group | h5py.Dataset) -> None:
    if isinstance(item, h5py.Dataset) and item.chunks:
        for chunk in item.iter_chunks():
            item[chunk]
