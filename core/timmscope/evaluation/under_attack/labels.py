"""Finds the classes that images are judged against: given, those of the images, or predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

import timmscope.checked_json as checked_json
from timmscope.models import HookedModel
from timmscope.safe_files import UnsafeFile, require_regular, why
from timmscope.techniques.image_set import ImageSet
from timmscope.techniques.training.data import class_names, classes_of
from timmscope_registry import ParameterError

PREDICTIONS = "predictions"
"""Asks for the model's own predictions, also of images that have labels."""
Labels = str | Path | Mapping[str, int | str] | Sequence[int | str] | Tensor


@dataclass(frozen=True)
class Truth:
    """What images are judged against.

    Attributes:
        classes: class of each image; None for the model's own predictions.
        origin: where they come from, in words.
    """

    classes: list[int] | None
    origin: str

    @classmethod
    def of(cls, model: HookedModel, images: ImageSet, given: Labels | None) -> Truth:
        """Find the classes.

        Args:
            model: the model that has the classes.
            images: the images.
            given: a CSV file with the columns path and label, a mapping from names to labels, one
                label per image, `predictions`, or None for the labels of the images, or the
                predictions if they have none.

        Raises:
            ParameterError: an image has no label, or a label is no class of the model.
        """
        if isinstance(given, str) and given == PREDICTIONS:
            return cls(None, "the model's own predictions")
        if given is None:
            known = images.labels
            if known is None or all(label is None for label in known):
                return cls(None, "the model's own predictions, as the images have no labels")
            texts = [None if label is None else str(label) for label in known]
            return cls(_classes(model, images, texts), "the labels of the images")
        origin = "the labels that were given"
        if isinstance(given, str | Path):
            origin = f"the labels in {Path(given).name}"
            given = _read(Path(given))
        if isinstance(given, Mapping):
            short = PurePosixPath
            found = [given.get(name, given.get(short(name).name)) for name in images.names]
        else:
            found = given.tolist() if isinstance(given, Tensor) else list(given)
            if len(found) != len(images):
                raise ParameterError(
                    f"{len(found)} labels for {len(images)} images: give one for each",
                    parameter="labels",
                )
        texts = [None if label is None else str(label) for label in found]
        return cls(_classes(model, images, texts), origin)

    def digest(self) -> str | None:
        """Return a digest of the classes; None for predictions."""
        return None if self.classes is None else checked_json.digest_of({"of": self.classes})


def _classes(model: HookedModel, images: ImageSet, texts: list[str | None]) -> list[int]:
    labels = [text for text in texts if text is not None]
    if len(labels) < len(texts):
        missing = texts.count(None)
        raise ParameterError(
            f"{missing} of {len(texts)} images have no label (first "
            f"{images.names[texts.index(None)]}): label all of them, or judge all against the "
            f"model's own predictions with labels={PREDICTIONS!r}",
            parameter="labels",
        )
    try:
        found: list[int] = classes_of(model, class_names(model, labels), labels).tolist()
    except ParameterError as error:
        raise ParameterError(
            f"{error}; give a CSV file with the columns path and label, or labels={PREDICTIONS!r} "
            "to judge against the model's own predictions",
            parameter="labels",
        ) from error
    return found


def _read(file: Path) -> dict[str, int | str]:
    """Return the labels of a CSV file by path."""
    try:
        require_regular(file)
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            missing = [name for name in ("path", "label") if name not in (rows.fieldnames or ())]
            if missing:
                raise ParameterError(
                    f"{file} has no column {', '.join(missing)}: expected path and label",
                    parameter="labels",
                )
            return {row["path"]: row["label"] for row in rows if row["label"]}
    except (OSError, UnicodeDecodeError, UnsafeFile, csv.Error) as error:
        raise ParameterError(
            f"no labels can be read from {file}: {why(error)}; expected a CSV file with the "
            f"columns path and label, or {PREDICTIONS!r}",
            parameter="labels",
        ) from None
