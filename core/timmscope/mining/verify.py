"""Checks every file of a store, and replaces damaged ones if asked to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.index.verify import examine_indexes, index_files, rebuild_index
from timmscope.progress import track
from timmscope.store import FileRecord, Manifest, Store, shards
from timmscope.store.journal import NAME as JOURNAL
from timmscope.store.journal import end_journal
from timmscope.store.lock import StoreLock
from timmscope.store.shards import ShardFiles
from timmscope_registry import StoreCorrupted

from .mine import resume
from .preflight import file_size

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
        checked: number of files that were checked.
        damage: files that are missing, truncated, altered or swapped.
        missing: numbers of shards that are not mined yet.
        repaired: files that were computed again.
        changed: repaired files that differ from the lost ones, because images or libraries have
            changed since; empty after an exact repair.
    """

    checked: int
    damage: tuple[Damage, ...]
    missing: tuple[int, ...] = ()
    repaired: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the store is now complete and undamaged."""
        return not self.missing and len(self.repaired) >= len(self.damage)


def verify(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    model: HookedModel | None = None,
    images: Images | None = None,
    collectors: Iterable[Collector] = (),
    trust: bool = False,
) -> Report:
    """Compare every file of a store and of its indexes with its checksum, and read it.

    Args:
        path: the store.
        repair: mine damaged and missing shards again, and build damaged indexes again with their
            settings; all other files stay as they are.
        model: the model for a repair; by default the manifest's, loaded by its id.
        images: the images for a repair; by default the manifest's, opened at their location.
        collectors: for a repair, those of the pass that no plugin registers.
        trust: whether a repair may open the manifest's model and images; see `Store.open`.

    Raises:
        StoreError: the folder holds no store, or the model or images cannot be opened, or the store
            is not trusted to open them.
        StoreMismatch: the model or images differ from those that the store was made from.
    """
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
    if manifest.part is None and not missing and manifest.merged is None:
        damage.append(Damage(shards.MERGED, "the collectors' states are not merged yet"))
    if not repair:
        damage += [Damage(item.file, item.reason) for item in indexes]
        return Report(checked=checked, damage=tuple(damage), missing=missing)

    repaired: list[str] = []
    changed: list[str] = []
    if damage or missing:
        bad = {item.file for item in damage}
        redo = {
            number
            for number in manifest.shards
            if bad & {shards.rows_file(number), shards.reduced_file(number)}
        }
        resume(folder, redo=redo, model=model, images=images, collectors=collectors, trust=trust)
        manifest = Manifest.read(folder)
        after = _expected(manifest)
        repaired = [item.file for item in damage if item.file in after]
        changed = [name for name in repaired if after[name] != expected.get(name, after[name])]
        if changed:  # an index of the lost rows is now out of date
            indexes = examine_indexes(Store(folder, manifest))
    elif (folder / JOURNAL).exists():  # left by a pass or repair that died at its end
        with StoreLock(folder):
            Manifest.read(folder).write(folder)  # with the shards that the journal lists
            end_journal(folder)
    repaired += [item.file for item in indexes if rebuild_index(Store(folder, manifest), item)]
    damage += [Damage(item.file, item.reason) for item in indexes]
    return Report(
        checked=checked, damage=tuple(damage), repaired=tuple(repaired), changed=tuple(changed)
    )


def wrong_sizes(folder: Path, manifest: Manifest) -> list[Damage]:
    """Return files that are missing or have another size than recorded; this reads no contents."""
    found = []
    for name, record in _expected(manifest).items():
        size = file_size(folder / name)
        if size < 0:
            found.append(Damage(name, "it is missing"))
        elif size != record.size:
            found.append(Damage(name, f"it has {size} bytes and was written with {record.size}"))
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
    """Return what is wrong with a file; empty if nothing is."""
    if reason := files.damage(name, record):
        return reason
    try:
        with files.open(name, record) as file:
            for array in file.arrays():
                file.check(array)
    except StoreCorrupted as error:  # the checksum is right, so it was written like this
        return str(error)
    return ""
