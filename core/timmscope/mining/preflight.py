"""What happens before the first image: the folder, the agreement with what is there, the space."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from timmscope.images import ImageSource
from timmscope.store import Manifest, Store, shards
from timmscope.store.files import TEMPORARY
from timmscope.store.manifest import NAME as MANIFEST
from timmscope_registry import ImageError, ParameterError, StoreError, StoreMismatch

from .plan import Plan, bytes_per_image

log = logging.getLogger("timmscope.mining")


def prepare(folder: Path) -> None:
    """Make the folder, unless it is something else's."""
    known = {MANIFEST, MANIFEST + TEMPORARY, ".lock", "shards", "reduced", "index", "fields"}
    try:
        if folder.exists() and not (folder / MANIFEST).exists():
            foreign = sorted({entry.name for entry in folder.iterdir()} - known)
            if foreign:
                raise StoreError(
                    f"{folder}: not a store, and not empty ({foreign[0]} …); choose another folder"
                )
        for name in ("shards", "reduced"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot make a store here ({error.strerror}); choose another folder"
        ) from error


def require_images(source: ImageSource) -> None:
    """Refuse a source without images."""
    if not len(source):
        raise ImageError(f"{source!r} holds no image; name at least one")


def part_of(manifest: Manifest, part: tuple[int, int] | None) -> Manifest:
    """The same pass, over the i-th of n runs of its shards.

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


def agree(folder: Path, old: Manifest | None, new: Manifest, source: ImageSource) -> Manifest:
    """Return the store's manifest if it describes the same pass; else say what differs.

    A store without a finished shard holds nothing that could be mixed up, and takes any settings.
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
    """Name images that the store has and the source lacks, and the other way round."""
    stored: set[str] = set()
    for number in store.manifest.shards:
        try:
            names = store.files.read(number, lambda f: shards.read_strings(f["images/path"]))
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


def present(folder: Path, manifest: Manifest) -> Manifest:
    """Strike out shards whose files are gone or cut short, and sweep up after a killed run."""
    for place in (folder, folder / "shards", folder / "reduced"):
        for left in place.glob(f"*{TEMPORARY}"):
            left.unlink()
    lost = {
        number
        for number, shard in manifest.shards.items()
        if _size(folder / shards.rows_file(number)) != shard.rows.size
        or _size(folder / shards.reduced_file(number)) != shard.reduced.size
    }
    if lost:
        log.warning("%s: mining %d damaged shard(s) again", folder.name, len(lost))
    if kept := len(manifest.shards) - len(lost):
        log.info("%s: %d of %d shards were there", folder.name, kept, len(manifest.own_shards))
    merged = manifest.merged
    if lost or (merged and _size(folder / shards.MERGED) != merged.size):
        return manifest.without_shards(lost)
    return manifest


def require_some(folder: Path, manifest: Manifest) -> None:
    """Refuse a finished pass that could not read one image, and clear away its empty rows."""
    count = manifest.images.count
    if sum(shard.unreadable for shard in manifest.shards.values()) < count:
        return
    _, path, reason = Store(folder, manifest).images.unreadable()[0]
    names = [MANIFEST]
    for number in manifest.shards:
        names += [shards.rows_file(number), shards.reduced_file(number)]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    raise ImageError(
        f"not one of the {count} images can be read; the first is {path}: {reason}", path=path
    )


def require_space(folder: Path, plan: Plan, count: int) -> None:
    """Refuse to start what cannot end."""
    needed = bytes_per_image(plan) * count
    free = shutil.disk_usage(folder).free
    large = any("maps" in plan.columns(layer) for layer in plan.layers)
    level = logging.INFO if large else logging.DEBUG
    log.log(level, "%s: about %s for %d images", folder.name, amount(needed), count)
    if needed > free:
        raise StoreError(
            f"{folder}: needs about {amount(needed)} for {count} images and the disk has "
            f"{amount(free)} free; choose another disk, fewer layers or no maps"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def amount(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
