"""The pointing game measures whether the map's highest point lies on the object."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from timmscope.evaluation.metric import Case, Measurement, Metric
from timmscope.models import HookedModel
from timmscope.safe_files import UnsafeFile, require_regular, why
from timmscope_registry import ParameterError

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels of the image file; right and lower are exclusive."""
_VISIBLE = 0.02
"""Largest brightness that resampling may leave of a box outside the crop."""
BOX_COLUMNS = ("path", "left", "upper", "right", "lower")


class PointingGame(Metric):
    """Pointing game (Zhang et al., ECCV 2016): 1 if the map peaks inside a box, else 0.

    A peak within the tolerance of a box is a hit too. The mean over a data set is
    `hits / (hits + misses)`; images whose boxes are all cropped away do not count. Of equal peaks
    the first in reading order is used.
    """

    name: ClassVar[str] = "pointing-game"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    tolerance_px: int = Field(default=15, ge=0)
    """Largest distance from a box that is a hit, in pixels of the model's input."""

    def measure(self, case: Case) -> Measurement | None:
        """Return 1 for a hit, 0 for a miss, None without a visible box."""
        if case.inside is None or not bool(case.inside.any()):
            return None
        y, x = divmod(int(case.heat.argmax()), case.heat.shape[1])
        rows, columns = torch.nonzero(case.inside, as_tuple=True)
        nearest = ((rows - y).square() + (columns - x).square()).min()
        return Measurement(float(int(nearest) <= self.tolerance_px**2))


class Boxes:
    """Boxes of images by name: the path of the image in its source, or the name of its file.

    Args:
        boxes: a CSV file with the columns path, left, upper, right and lower, one row per box; or
            a mapping from names to boxes.

    Raises:
        ParameterError: the file cannot be read, or a box is empty.
    """

    def __init__(self, boxes: str | Path | Mapping[str, Sequence[Box]]) -> None:
        given = _read(Path(boxes)) if isinstance(boxes, str | Path) else boxes
        self._by_name = {
            name: [_checked(name, box) for box in rows] for name, rows in given.items()
        }

    def of(self, name: str) -> list[Box]:
        """Return the boxes of an image, which may be none."""
        return self._by_name.get(name) or self._by_name.get(PurePosixPath(name).name) or []

    @property
    def example(self) -> str:
        """Quoted name of one of the images that have boxes."""
        return repr(next(iter(self._by_name), "nothing"))

    def digest(self) -> str:
        """Return a digest of all boxes."""
        text = json.dumps(sorted(self._by_name.items()))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def inside(self, model: HookedModel, name: str, size: tuple[int, int]) -> Tensor | None:
        """Return which pixels of the model's input lie in the boxes of an image, `(H, W)` bool.

        A picture of the image's size (width, height) that is white in the boxes goes through the
        model's own resize and crop. If that shrinks the boxes to less than a pixel, the brightest
        pixel is inside. Boxes outside the crop have no pixel.
        """
        boxes = self.of(name)
        if not boxes:
            return None
        picture = Image.new("RGB", size)
        draw = ImageDraw.Draw(picture)
        for box in boxes:
            left, upper, right, lower = _pixels(box, size)
            if left < right and upper < lower:
                draw.rectangle((left, upper, right - 1, lower - 1), fill="white")
        white = model.preprocess(picture)[0]
        brightest = float(white.max())
        return white > (0.5 * brightest if brightest > _VISIBLE else 1.0)


def _read(file: Path) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    try:
        require_regular(file)
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            missing = [name for name in BOX_COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ParameterError(
                    f"{file} has no column {', '.join(missing)}: expected {', '.join(BOX_COLUMNS)}",
                    parameter="boxes",
                )
            for row in rows:
                try:
                    box = tuple(float(row[name]) for name in BOX_COLUMNS[1:])
                except (TypeError, ValueError):
                    raise ParameterError(
                        f"{file}, line {rows.line_num}: left, upper, right and lower must be "
                        "numbers of pixels",
                        parameter="boxes",
                    ) from None
                boxes.setdefault(row["path"], []).append(box)  # type: ignore[arg-type]
    except (OSError, UnicodeDecodeError, UnsafeFile, csv.Error) as error:
        raise ParameterError(
            f"no boxes can be read from {file}: {why(error)}", parameter="boxes"
        ) from None
    return boxes


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels of a picture (width, height) that a box touches, as an exclusive box."""
    left, right = (min(max(side, 0), size[0]) for side in (box[0], box[2]))
    upper, lower = (min(max(side, 0), size[1]) for side in (box[1], box[3]))
    return math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower)


def _checked(name: str, box: Sequence[float]) -> Box:
    if not all(math.isfinite(side) for side in box):
        raise ParameterError(
            f"the box {tuple(box)} of {name} has no size: expected finite numbers of pixels",
            parameter="boxes",
        )
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise ParameterError(
            f"the box {tuple(box)} of {name} is empty: expected left < right and upper < lower",
            parameter="boxes",
        )
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
