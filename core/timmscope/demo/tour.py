"""What all sections of the report share: the model, the store and the images behind it."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from timmscope.demo import choose
from timmscope.demo.inline import data_uri
from timmscope.demo.view import Bars, Card, Picture
from timmscope.images import FolderSource
from timmscope.models import HookedModel
from timmscope.store import Store
from timmscope_registry import ObjectiveError

MODEL = "pip:efficientnet-lite0"
MIDDLE, LATE = "blocks.2.1.bn1", "blocks.4.1.bn1"
"""Layers whose units are shown: a third and two thirds through the network."""
FEATURES = "bn2"
"""The last layer with a grid, pooled: what the classifier reads and neighbours are compared by."""
LAYERS = (MIDDLE, LATE, FEATURES, choose.LOGITS)
FIRST = ("chelsea", "coffee", "motorcycle_left", "camera", "rocket", "china")
"""Photographs of things that ImageNet has a class for; most others are textures."""
EXAMPLES = 6


@dataclass(frozen=True)
class Tour:
    """Model, store and images.

    Attributes:
        model: the model.
        store: of the images, with `LAYERS`.
        source: the images.
        folder: where they lie.
        out: folder of the report.
        own: whether the images are the user's, not the demo's photographs and their crops.
    """

    model: HookedModel
    store: Store
    source: FolderSource
    folder: Path
    out: Path
    own: bool

    @cached_property
    def candidates(self) -> NDArray[np.bool_]:
        """Which images may stand for the data set: readable ones, and no crops."""
        whole = [
            self.own or (label is not None and PurePath(path).stem == label)
            for path, label in zip(self.store.images.paths, self._labels, strict=True)
        ]
        readable: NDArray[np.bool_] = self.store.images.readable
        return np.asarray(whole, dtype=np.bool_) & readable

    @cached_property
    def examples(self) -> list[choose.Guess]:
        """Images with confident and distinct predictions, the most telling first."""
        first = () if self.own else FIRST
        return choose.guesses(self.store, self.candidates, EXAMPLES, first=first)

    @cached_property
    def pair(self) -> list[choose.Guess]:
        """The two images that are explained and attacked; one where there is only one."""
        return self.examples[:2]

    @property
    def _labels(self) -> list[str | None]:
        return list(self.store.images.labels)

    def file(self, image_id: int) -> Path:
        """Where an image lies."""
        return self.source.file(image_id)

    def shown_path(self, path: Path) -> str:
        """A path as one would type it: relative where it lies below the working directory."""
        absolute = path.resolve()
        here = Path.cwd()
        near = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
        return os.fspath(near)

    def typed(self, *paths: Path) -> str:
        """Paths for a shell line."""
        return " ".join(shlex.quote(self.shown_path(path)) for path in paths)

    def quoted(self, path: Path) -> str:
        """A path for a Python line."""
        return json.dumps(self.shown_path(path), ensure_ascii=False)

    def name(self, image_id: int) -> str:
        """What to call an image in a caption."""
        return PurePath(self.store.images.paths[image_id]).stem

    def pixels(self, image_id: int) -> Tensor:
        """An image as the model sees it, `(3, H, W)` in [0, 1]."""
        return self.model.preprocess(self.source.load(image_id))

    def picture(self, image_id: int, caption: str | None = None, detail: str = "") -> Picture:
        """An image as the model sees it, with its name."""
        name = self.name(image_id)
        return Picture(
            data_uri(self.pixels(image_id)), name if caption is None else caption, detail, name
        )

    def bars(self, top: list[tuple[int, float]]) -> Bars:
        """Class names with probabilities."""
        return Bars([(self.model.class_name(index), share) for index, share in top])

    def card(self, guess: choose.Guess) -> Card:
        """An image with its most probable classes."""
        return Card(self.picture(guess.image_id), self.bars(guess.top))

    def class_text(self, index: int) -> str:
        """How to type a class: its name, or its number where the name stands for several."""
        name = self.model.class_name(index)
        try:
            found = self.model.classes.find(name) if self.model.classes is not None else None
        except ObjectiveError:
            found = None
        return name if found == index else str(index)
