"""Says where atlases lie and which store they belong to, and reads their pictures.

The names of an atlas's files follow from the numbers of its units, so no file of a stranger names
another one. What a symbolic link puts in their place is refused.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from PIL import Image

import timmscope.checked_json as checked_json
from timmscope.images import open_image
from timmscope.safe_files import UnsafeFile, read_regular, why
from timmscope.store.files import machine_error
from timmscope_registry import ImageError, StoreCorrupted, StoreMismatch

if TYPE_CHECKING:
    from timmscope.store import Store

NAME = "atlas"
"""Name of the file of settings, without `.json`."""
UNITS = "units"
"""Folder of the pictures of units."""
_MOST_BYTES = 1 << 26
_MOST_PIXELS = 1 << 26
_SHOWN = 12


def atlas_folder(store: Store, layer: str) -> Path:
    """Return the folder of a layer's atlas, beside the store: `photos.scope.atlas/blocks.4`.

    Raises:
        LayerNotFound: the store has no such layer.
    """
    name = quote(store.layer(layer).name, safe="#")
    if name.startswith("."):  # no folder above, and none that is hidden
        name = f"%2E{name[1:]}"
    return store.path.with_name(f"{store.path.name}.atlas") / name


def image_name(unit: int, number: int) -> str:
    """Return the name of a unit's synthesised image; `number` is 0 for its first."""
    return f"{UNITS}/{unit:05d}{f'-{number + 1}' if number else ''}.png"


def patches_name(unit: int) -> str:
    """Return the name of the picture with all patches of a unit."""
    return f"{UNITS}/{unit:05d}-patches.webp"


def page_name(number: int) -> str:
    """Return the name of a sheet, from 0."""
    return f"page-{number:03d}.png"


def fingerprint(store: Store) -> dict[str, str]:
    """Return what tells a store from others: digests of what decides its rows, and of the rows."""
    shards = sorted(store.manifest.shards.items())
    return {
        "pass": store.manifest.pass_digest(),
        "rows_sha256": checked_json.digest_of({str(n): each.rows.sha256 for n, each in shards}),
    }


def require_same_store(folder: Path, known: dict[str, str], store: Store) -> None:
    """Refuse an atlas that was made from another store, or from one that has changed since.

    Raises:
        StoreMismatch: it was.
    """
    now = fingerprint(store)
    differing = [key for key in now if known.get(key) != now[key]]
    if not differing:
        return
    differences = [f"store.{key}: {known.get(key)} → {now[key]}" for key in differing]
    if "pass" in differing:
        ids = " → ".join(str(each["pass"])[:_SHOWN] for each in ({"pass": "none"} | known, now))
        what = f"was made from another store than {store.path} ({ids})"
        advice = "name the store that it belongs to, or another folder"
    else:
        what = f"was made before rows of {store.path} changed"
        advice = "delete it and make it again"
    raise StoreMismatch(f"the atlas {folder} {what}: {advice}", differences=differences)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of an atlas.

    Raises:
        StoreCorrupted: a link leads out of the folder.
    """
    path = folder / name
    try:
        within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        within = False
    if not within:
        raise StoreCorrupted(
            f"{path}: leads out of the atlas by a link; expected a file in it: delete the link, "
            "and make the atlas again",
            shard=name,
        )
    return path


def holds(folder: Path, name: str, digest: str) -> bool:
    """Return whether a file of an atlas is there, as it was written.

    Raises:
        StoreCorrupted: a link leads out of the folder.
    """
    try:
        data = read_regular(inside(folder, name), _MOST_BYTES)
    except (OSError, UnsafeFile):
        return False
    return hashlib.sha256(data).hexdigest() == digest


def read_picture(folder: Path, name: str, digest: str | None) -> Image.Image:
    """Return a picture of an atlas, RGB.

    Raises:
        StoreCorrupted: it is missing, was altered, or lies outside of the folder.
        StoreError: it cannot be read now.
    """
    path = inside(folder, name)
    try:
        data = read_regular(path, _MOST_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise UnsafeFile("it differs from its digest, so it was damaged or edited")
        return open_image(io.BytesIO(data), name=str(path), max_pixels=_MOST_PIXELS)
    except (OSError, UnsafeFile, ImageError) as error:
        raise machine_error(error, path) or StoreCorrupted(
            f"{path} cannot be read ({why(error)}): delete it and run timmscope atlas again, which "
            "makes only this unit anew",
            shard=name,
        ) from error
