"""`merge` joins the parts that several processes or machines have mined to one store.

A shard holds the same bytes whichever process wrote it. So merging links or copies every shard and
then merges the collectors' states in order of id, as a pass over everything does at its end.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from timmscope.collectors import Collector
from timmscope.index.merge import merge_indexes
from timmscope.progress import track
from timmscope.store import FileRecord, Manifest, Store, shards
from timmscope.store.files import link_or_copy, memory_as_store_error
from timmscope.store.journal import add_to_journal, end_journal
from timmscope.store.lock import StoreLock
from timmscope.store.manifest import NAME as MANIFEST
from timmscope.trust import is_known, remember
from timmscope_registry import ParameterError, StoreError, StoreMismatch

from .plan import recorded_collectors
from .preflight import (
    drop_lost_shards,
    format_bytes,
    prepare_folder,
    require_readable_image,
)
from .reductions import write_merged
from .shard_writer import crash

log = logging.getLogger("timmscope.mining")


@dataclass(frozen=True)
class _Part:
    """A store to be merged, and its name in messages."""

    folder: Path
    manifest: Manifest
    name: str

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: the order of the parts must not depend on the order of the arguments."""
        return (min(self.manifest.shards, default=self.manifest.own_shards.start), str(self.folder))


def merge(
    parts: Iterable[Store | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    collectors: Iterable[Collector] = (),
) -> Store:
    """Join stores that ``mine(..., ranges=(i, n))`` made to the store of one pass over everything.

    The result equals that of one pass, byte for byte, in whatever order the parts are given. Shards
    are hard links where the file system allows it, else copies; each is compared with its checksum.
    The images' location is that of the first part. The store may open them if the user trusts all
    parts. A merge that was interrupted resumes when it is called again. If parts have an index of a
    layer, an index over all rows is built with the settings of the first of them.

    Args:
        parts: stores, or their folders, which together have all shards.
        out: folder of the new store, by convention ``NAME.scope``.
        collectors: those of the pass that no plugin registers.

    Raises:
        ParameterError: no part is given, or `out` is one of them.
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
    whole = _common_manifest(found)
    sources = _sources(found, whole)
    prepare_folder(folder)
    with StoreLock(folder), memory_as_store_error(folder):
        if (folder / MANIFEST).exists():
            old = Manifest.read(folder)
            if old.shards and (differences := old.differences(whole)):
                raise StoreMismatch(
                    f"{folder.name} was made from something else ({'; '.join(differences)}); "
                    "choose another folder",
                    differences=differences,
                )
            whole = drop_lost_shards(folder, old if old.shards else whole)
        _require_space(folder, whole, sources)
        if all(is_known(part.folder, part.manifest.trust_digest()) for part in found):
            remember(whole.trust_digest())
        whole.write(folder)
        end_journal(folder)
        digest = whole.pass_digest()
        copied = 0
        for number, part in track(sources.items(), "joining", len(sources)):
            if number not in whole.shards:
                copied += _install_shard(part, number, folder)
                record = part.manifest.shards[number]
                whole = whole.with_shard(number, record)
                add_to_journal(folder, digest, number, record)
                crash("joined", number)
        if copied:
            size = format_bytes(copied)
            log.info("%s: %s copied, since hard links are not possible", folder.name, size)
        require_readable_image(folder, whole)
        if not whole.complete:
            whole = write_merged(
                folder,
                whole,
                recorded_collectors(Store(folder, whole), collectors, reducers_only=True),
            )
        merge_indexes([(part.name, part.folder) for part in found], Store(folder, whole))
    return Store(folder, whole)


def _open(parts: Iterable[Store | str | os.PathLike[str]]) -> list[_Part]:
    folders = [(p.path if isinstance(p, Store) else Path(p)).resolve() for p in parts]
    if not folders:
        raise ParameterError("no part is given; name at least one store", parameter="parts")
    unique = dict.fromkeys(folders)
    names = [folder.name for folder in unique]
    found = [
        _Part(folder, Manifest.read(folder), name if names.count(name) == 1 else str(folder))
        for folder, name in zip(unique, names, strict=True)
    ]
    return sorted(found, key=lambda part: part.order)


def _common_manifest(parts: list[_Part]) -> Manifest:
    """Return the manifest of the whole pass, which must be the same for all parts."""
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


def _sources(parts: list[_Part], whole: Manifest) -> dict[int, _Part]:
    """Return the part from which each shard is taken, by the shard's number.

    Raises:
        StoreError: a shard is in none of the parts.
        StoreMismatch: two parts have different data for a shard.
    """
    sources: dict[int, _Part] = {}
    for part in parts:
        for number, record in part.manifest.shards.items():
            source = sources.setdefault(number, part)
            if source.manifest.shards[number] != record:
                line = f"shard {number}: {source.name} and {part.name} have different data"
                raise StoreMismatch(
                    f"{line}, though both describe the same pass; mine one of them again on the "
                    "other's machine",
                    differences=[line],
                )
    missing = [number for number in range(whole.shard_count) if number not in sources]
    if missing:
        raise StoreError(_describe_missing(parts, whole, missing))
    return dict(sorted(sources.items()))


def _describe_missing(parts: list[_Part], whole: Manifest, missing: list[int]) -> str:
    """Name the parts that are not given, and those that are not finished."""
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


def _install_shard(part: _Part, number: int, folder: Path) -> int:
    """Check a shard's two files, link or copy them, and return the number of copied bytes."""
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


def _require_space(folder: Path, whole: Manifest, sources: dict[int, _Part]) -> None:
    """Refuse to start if the disk has no room for the shards that must be copied."""
    device = folder.stat().st_dev
    needed = sum(
        record.rows.size + record.reduced.size
        for number, part in sources.items()
        if number not in whole.shards and part.folder.stat().st_dev != device
        for record in [part.manifest.shards[number]]
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {format_bytes(needed)} have to be copied from another disk, and this one "
            f"has {format_bytes(free)} free; name a folder on the disk of the parts"
        )
