"""The pointing game: does the map's highest point lie on the object?"""

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
from timmscope_registry import ParameterError

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels of the image file; right and lower are exclusive."""
_IN_SIGHT = 0.02
"""Brightness that resampling leaves of what is out of sight, at most."""
BOX_COLUMNS = ("path", "left", "upper", "right", "lower")


class PointingGame(Metric):
    """Pointing game (Zhang et al., ECCV 2016): 1 if the map peaks inside a box, else 0.

    A peak no further from a box than the tolerance counts as a hit. Over a data set it is
    `hits / (hits + misses)`; images whose boxes are all cropped away take no part. Of equal peaks
    the first in reading order counts.
    """

    name: ClassVar[str] = "pointing-game"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    tolerance_px: int = Field(default=15, ge=0)
    """How far from a box is still a hit, in pixels of the model's input."""

    def measure(self, case: Case) -> Measurement | None:
        """1 for a hit, 0 for a miss, None without a box to hit."""
        if case.inside is None or not bool(case.inside.any()):
            return None
        y, x = divmod(int(case.heat.argmax()), case.heat.shape[1])
        rows, columns = torch.nonzero(case.inside, as_tuple=True)
        nearest = ((rows - y).square() + (columns - x).square()).min()
        return Measurement(float(int(nearest) <= self.tolerance_px**2))


class Boxes:
    """Boxes of images by name: of the whole path as the source gives it, or of the file alone.

    Args:
        boxes: a CSV file with the columns path, left, upper, right and lower, a row a box; or a
            mapping from names to boxes.

    Raises:
        ParameterError: the file cannot be read as that, or a box is empty.
    """

    def __init__(self, boxes: str | Path | Mapping[str, Sequence[Box]]) -> None:
        given = _read(Path(boxes)) if isinstance(boxes, str | Path) else boxes
        self._by_name = {
            name: [_checked(name, box) for box in rows] for name, rows in given.items()
        }

    def of(self, name: str) -> list[Box]:
        """Boxes of an image; none if it has none."""
        return self._by_name.get(name) or self._by_name.get(PurePosixPath(name).name) or []

    @property
    def example(self) -> str:
        """Name of one of the images that have boxes."""
        return repr(next(iter(self._by_name), "nothing"))

    def digest(self) -> str:
        """Changes when a box does."""
        text = json.dumps(sorted(self._by_name.items()))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def inside(self, model: HookedModel, name: str, size: tuple[int, int]) -> Tensor | None:
        """The pixels of the model's input that lie in the boxes of an image, `(H, W)` bool.

        The boxes go through the model's own resize and crop, as a picture of the image's size
        (width, height) that is white in them; what they are shrunk to less than a pixel by keeps
        its brightest one. Boxes that the crop leaves out are in no pixel.
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
        return white > (0.5 * brightest if brightest > _IN_SIGHT else 1.0)


def _read(file: Path) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    try:
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
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParameterError(
            f"no boxes can be read from {file}: {getattr(error, 'strerror', None) or error}",
            parameter="boxes",
        ) from None
    return boxes


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a picture (width, height) that a box touches; none where it is outside."""
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
