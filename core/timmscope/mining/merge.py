"""`merge`: the parts that several processes or machines mined, joined to one store.

A shard holds the same bytes whoever wrote it, so joining is putting every shard in its place and
merging the reductions in order of id, which is what one pass over everything does at its end.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from timmscope.collectors import Collector
from timmscope.index.merge import join_indexes
from timmscope.progress import track
from timmscope.store import FileRecord, Manifest, Store, shards
from timmscope.store.files import link_or_copy
from timmscope.store.lock import StoreLock
from timmscope.store.manifest import NAME as MANIFEST
from timmscope_registry import ParameterError, StoreError, StoreMismatch

from .plan import recorded_collectors
from .preflight import amount, prepare, present, require_some
from .reductions import write_merged
from .shard_writer import crash

log = logging.getLogger("timmscope.mining")


@dataclass(frozen=True)
class _Part:
    """A store to be merged, and what to call it in messages."""

    folder: Path
    manifest: Manifest
    name: str

    @property
    def order(self) -> tuple[int, str]:
        """Its place among the parts, whatever the order in which they were named."""
        return (min(self.manifest.shards, default=self.manifest.own_shards.start), str(self.folder))


def merge(
    parts: Iterable[Store | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    collectors: Iterable[Collector] = (),
) -> Store:
    """Join stores that ``mine(..., ranges=(i, n))`` made to the store of one pass over everything.

    The result is the same as that of one pass, byte for byte, in whatever order the parts are
    named. Shards are hard links where the file system allows it, else copies; each is checked
    against its checksum. The images' location is that of the first part. Interrupted and called
    again, it goes on where it stopped. Where parts have an index of a layer, one over all rows is
    built with the settings of the first of them.

    Args:
        parts: stores, or their folders; any whose shards together are all.
        out: folder of the new store, by custom ``NAME.scope``.
        collectors: those of the pass that no plugin registers.

    Raises:
        StoreMismatch: the parts come from different models, images or settings.
        StoreError: a part is missing or not finished; the folder holds something else; the disk
            is full.
        StoreCorrupted: a shard of a part is damaged; the message names it.
    """
    folder = Path(out).resolve()
    found = _open(parts)
    if folder in {part.folder for part in found}:
        raise ParameterError(
            f"{folder} is one of the parts; name a new folder for the whole", parameter="out"
        )
    whole = _agree(found)
    owners = _owners(found, whole)
    prepare(folder)
    with StoreLock(folder):
        if (folder / MANIFEST).exists():
            old = Manifest.read(folder)
            if old.shards and (differences := old.differences(whole)):
                raise StoreMismatch(
                    f"{folder.name} was made from something else ({'; '.join(differences)}); "
                    "choose another folder",
                    differences=differences,
                )
            whole = present(folder, old if old.shards else whole)
        _require_space(folder, whole, owners)
        whole.write(folder)
        copied = 0
        for number, part in track(owners.items(), "joining", len(owners)):
            if number not in whole.shards:
                copied += _place(part, number, folder)
                whole = whole.with_shard(number, part.manifest.shards[number])
                whole.write(folder)
                crash("joined", number)
        if copied:
            log.info("%s: %s copied, for want of hard links", folder.name, amount(copied))
        require_some(folder, whole)
        if not whole.complete:
            whole = write_merged(
                folder,
                whole,
                recorded_collectors(Store(folder, whole), collectors, reducers_only=True),
            )
        join_indexes([(part.name, part.folder) for part in found], Store(folder, whole))
    return Store(folder, whole)


def _open(parts: Iterable[Store | str | os.PathLike[str]]) -> list[_Part]:
    folders = [(p.path if isinstance(p, Store) else Path(p)).resolve() for p in parts]
    if not folders:
        raise ParameterError("no part was named; name at least one store", parameter="parts")
    unique = dict.fromkeys(folders)
    short = [folder.name for folder in unique]
    found = [
        _Part(folder, Manifest.read(folder), name if short.count(name) == 1 else str(folder))
        for folder, name in zip(unique, short, strict=True)
    ]
    return sorted(found, key=lambda part: part.order)


def _agree(parts: list[_Part]) -> Manifest:
    """The description of the whole, if that of all parts is the same."""
    first, *others = parts
    whole = first.manifest.empty_whole()
    for part in others:
        names = {"ours": first.name, "theirs": part.name}
        if differences := whole.differences(part.manifest.empty_whole(), **names):
            raise StoreMismatch(
                f"{first.name} and {part.name} are parts of different passes "
                f"({'; '.join(differences)}); mine one of them again",
                differences=differences,
            )
    return whole


def _owners(parts: list[_Part], whole: Manifest) -> dict[int, _Part]:
    """Which part gives each shard.

    Raises:
        StoreError: nobody has some shard.
        StoreMismatch: two have different ones.
    """
    owners: dict[int, _Part] = {}
    for part in parts:
        for number, record in part.manifest.shards.items():
            owner = owners.setdefault(number, part)
            if owner.manifest.shards[number] != record:
                line = f"shard {number}: {owner.name} and {part.name} have others"
                raise StoreMismatch(
                    f"{line}, though both describe the same pass; mine one of them again on the "
                    "other's machine",
                    differences=[line],
                )
    missing = [number for number in range(whole.shard_count) if number not in owners]
    if missing:
        raise StoreError(_missing(parts, whole, missing))
    return dict(sorted(owners.items()))


def _missing(parts: list[_Part], whole: Manifest, missing: list[int]) -> str:
    """Name the parts that nobody gave, and those that are not finished."""
    lines = []
    for part in parts:
        if left := [number for number in part.manifest.missing if number in missing]:
            lines.append(
                f"{part.name} is not finished: {len(left)} of {len(part.manifest.own_shards)} "
                "shards are missing; run the same timmscope mine again to complete it"
            )
            missing = [number for number in missing if number not in left]
    counts = {part.manifest.part[1] for part in parts if part.manifest.part}
    if missing and len(counts) == 1:
        (count,) = counts
        given = {part.manifest.part[0] for part in parts if part.manifest.part}
        absent = [str(i) for i in range(1, count + 1) if i not in given]
        what = "part" if len(absent) == 1 else "parts"
        lines.append(
            f"{what} {', '.join(absent)} of {count} {'is' if len(absent) == 1 else 'are'} missing"
        )
    elif missing:
        start, stop = whole.span(missing[0])[0], whole.span(missing[-1])[1]
        lines.append(
            f"{len(missing)} of {whole.shard_count} shards are in none of the parts, between "
            f"image {start} and {stop - 1}"
        )
    return "; ".join(lines)


def _place(part: _Part, number: int, folder: Path) -> int:
    """Check a shard's two files, put them in place, and return the bytes that were copied."""
    record = part.manifest.shards[number]
    files = shards.ShardFiles(part.folder, part.manifest)
    copied = 0
    for name, expected in (
        (shards.reduced_file(number), record.reduced),
        (shards.rows_file(number), record.rows),
    ):
        if reason := files.damage(name, expected):
            raise files.corrupted(name, reason)
        if not link_or_copy(part.folder / name, folder / name):
            copied += expected.size
            if FileRecord.of(folder / name) != expected:
                raise StoreError(
                    f"{folder / name}: the copy differs from {part.folder / name}; merge again"
                )
    return copied


def _require_space(folder: Path, whole: Manifest, owners: dict[int, _Part]) -> None:
    """Refuse to start copying what does not fit."""
    device = folder.stat().st_dev
    needed = sum(
        record.rows.size + record.reduced.size
        for number, part in owners.items()
        if number not in whole.shards and part.folder.stat().st_dev != device
        for record in [part.manifest.shards[number]]
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {amount(needed)} have to be copied from another disk, and this one has "
            f"{amount(free)} free; name a folder on the disk of the parts"
        )
