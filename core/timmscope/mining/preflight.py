"""Checks a pass before its first image: the folder, the store that is there, images and space."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from timmscope.durable import make_folder
from timmscope.images import ImageSource
from timmscope.store import Manifest, Store, shards
from timmscope.store.files import TEMPORARY
from timmscope.store.journal import NAME as JOURNAL
from timmscope.store.manifest import NAME as MANIFEST
from timmscope_registry import ImageError, ParameterError, StoreError, StoreMismatch

from .plan import Plan, bytes_per_image

log = logging.getLogger("timmscope.mining")


def prepare_folder(folder: Path) -> None:
    """Create the folder of a store.

    Raises:
        StoreError: it holds other files, or cannot be created.
    """
    known = {MANIFEST, MANIFEST + TEMPORARY, JOURNAL, ".lock"}
    known |= {"shards", "reduced", "index", "fields"}
    try:
        if folder.exists() and not (folder / MANIFEST).exists():
            foreign = sorted({entry.name for entry in folder.iterdir()} - known)
            if foreign:
                raise StoreError(
                    f"{folder}: not a store, and not empty ({foreign[0]} …); choose another folder"
                )
        for name in ("shards", "reduced"):
            make_folder(folder / name)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot make a store here ({error.strerror}); choose another folder"
        ) from error


def require_images(source: ImageSource) -> None:
    """Refuse a source without images."""
    if not len(source):
        raise ImageError(f"{source!r} holds no image; name at least one")


def restrict_to_part(manifest: Manifest, part: tuple[int, int] | None) -> Manifest:
    """Return the manifest of the i-th of n parts of a pass; of the whole where `part` is None.

    Raises:
        ParameterError: there is no such part, or it would hold no shard.
    """
    if part is None:
        return manifest
    number, parts = part
    if not 1 <= number <= parts:
        raise ParameterError(
            f"ranges {number}/{parts}: expected i/n with i from 1 to n, as in 2/4",
            parameter="ranges",
        )
    count = manifest.shard_count
    if parts > count:
        raise ParameterError(
            f"ranges {number}/{parts}: {manifest.images.count} images make {count} shards of "
            f"{manifest.shard_size}; make at most {count} parts, or set a smaller shard size",
            parameter="ranges",
        )
    return manifest.model_copy(update={"part": (number, parts)})


def matching_manifest(
    folder: Path, old: Manifest | None, new: Manifest, source: ImageSource
) -> Manifest:
    """Return the manifest to continue with: the store's if it describes the same pass.

    A store without a finished shard takes any settings, since nothing in it depends on them.

    Raises:
        StoreMismatch: the store has shards of another pass; the message says what differs.
    """
    if old is None:
        return new
    differences = old.differences(new)
    if not differences:
        return old
    if not old.shards:
        return new
    if old.images.fingerprint != new.images.fingerprint:
        differences += _changed_images(Store(folder, old), source)
    raise StoreMismatch(
        f"{folder.name} was made from something else ({'; '.join(differences)}); "
        "choose another folder, or repeat the settings of the store",
        differences=differences,
    )


def _changed_images(store: Store, source: ImageSource) -> list[str]:
    """Name images that only the store has, and images that only the source has."""
    stored: set[str] = set()
    for number in store.manifest.shards:
        try:
            names = store.files.column(number, "path").tolist()
        except StoreError:
            continue
        stored.update(name.decode("utf-8", "surrogateescape") for name in names)
    current = set(source.paths)
    lines = []
    if gone := sorted(stored - current):
        lines.append(f"images: {len(gone)} no longer there, as {gone[0]!r}")
    if store.complete and (new := sorted(current - stored)):
        lines.append(f"images: {len(new)} new, as {new[0]!r}")
    return lines or ["images: same names, but contents, labels or order changed"]


def drop_lost_shards(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest without shards whose files are missing or truncated.

    Temporary files of a killed run are deleted.
    """
    for place in (folder, folder / "shards", folder / "reduced"):
        for temporary in place.glob(f"*{TEMPORARY}"):
            temporary.unlink()
    lost = {
        number
        for number, shard in manifest.shards.items()
        if file_size(folder / shards.rows_file(number)) != shard.rows.size
        or file_size(folder / shards.reduced_file(number)) != shard.reduced.size
    }
    if lost:
        log.warning("%s: mining %d damaged shard(s) again", folder.name, len(lost))
    if kept := len(manifest.shards) - len(lost):
        log.info("%s: has %d of %d shards already", folder.name, kept, len(manifest.own_shards))
    merged = manifest.merged
    if lost or (merged and file_size(folder / shards.MERGED) != merged.size):
        return manifest.without_shards(lost)
    return manifest


def require_readable_image(folder: Path, manifest: Manifest) -> None:
    """Refuse a finished pass in which no image could be read, and delete its files."""
    count = manifest.images.count
    if sum(shard.unreadable for shard in manifest.shards.values()) < count:
        return
    _, path, reason = Store(folder, manifest).images.unreadable()[0]
    names = [MANIFEST, JOURNAL]
    for number in manifest.shards:
        names += [shards.rows_file(number), shards.reduced_file(number)]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    raise ImageError(
        f"none of the {count} images can be read; the first is {path}: {reason}", path=path
    )


def require_space(folder: Path, plan: Plan, count: int) -> None:
    """Refuse to start a pass over `count` images whose rows the disk has no room for."""
    needed = bytes_per_image(plan) * count
    free = shutil.disk_usage(folder).free
    large = any("maps" in plan.columns(layer) for layer in plan.layers)
    level = logging.INFO if large else logging.DEBUG
    log.log(level, "%s: needs about %s for %d images", folder.name, format_bytes(needed), count)
    if needed > free:
        raise StoreError(
            f"{folder}: needs about {format_bytes(needed)} for {count} images and the disk has "
            f"{format_bytes(free)} free; choose another disk, fewer layers or no maps"
        )


def file_size(path: Path) -> int:
    """Return the size of a file in bytes, -1 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def format_bytes(size: float) -> str:
    """Return a number of bytes as text with a decimal unit, as ``12.3 MB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
