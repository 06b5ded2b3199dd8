"""What all sections of the report share: model, store and images, and how results are shown."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from timmscope.demo import choose
from timmscope.demo.dataset import write_whole
from timmscope.images import FolderSource
from timmscope.models import HookedModel
from timmscope.results import Provenance, Result, Sheet, load_result
from timmscope.results.result import environment_versions
from timmscope.store import Store
from timmscope.techniques import technique
from timmscope_registry import ObjectiveError, TimmscopeError

MODEL = "pip:efficientnet-lite0"
MIDDLE, LATE = "blocks.2.1.bn1", "blocks.4.1.bn1"
"""Layers whose units are shown: a third and two thirds through the network."""
FEATURES = "bn2"
"""The last layer with a grid, pooled: what the classifier reads and neighbours are compared by."""
LAYERS = (MIDDLE, LATE, FEATURES, choose.LOGITS)
FIRST = ("chelsea", "coffee", "motorcycle_left", "camera", "rocket", "china")
"""Photographs of things that ImageNet has a class for; most others are textures."""
EXAMPLES = 6
_RECIPE = "made-by.txt"
"""File beside a result with the command and the inputs that made it."""
_SCALE = 0.8
"""CSS pixels for each pixel of a figure: its captions are then as large as the page's."""
_FLAGS = {"objective": "target", "targets": "target", "styles": "style"}
"""What a command line calls the arguments of a call."""


@dataclass(frozen=True)
class Exhibit:
    """A result as the report shows it.

    Attributes:
        title: what the figure shows, for readers who cannot see it.
        result: the result.
        folder: where it is saved, relative to the report.
        figure: its figure as a `data:` address, a sixth as large as the PNG file.
        width_px: of the figure on a page that is wide enough, in CSS pixels.
        python, shell: lines that make it again, where there are any.
        note: small print.
    """

    title: str
    result: Result
    folder: str
    figure: str
    width_px: int
    python: str = ""
    shell: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tour:
    """Model, store and images.

    Attributes:
        model: the model.
        store: of the images, with `LAYERS`.
        source: the images.
        out: folder of the report.
        own: whether the images are the user's, not the demo's photographs and their crops.
    """

    model: HookedModel
    store: Store
    source: FolderSource
    out: Path
    own: bool

    @cached_property
    def candidates(self) -> list[int]:
        """Ids of the images that may stand for the data set: readable ones, and no crops."""
        paths, labels = self.store.images.paths, self.store.images.labels
        ids: list[int] = np.flatnonzero(self.store.images.readable).tolist()
        return [i for i in ids if self.own or PurePath(paths[i]).stem == labels[i]]

    @cached_property
    def examples(self) -> list[choose.Guess]:
        """Images with confident and distinct predictions, the most telling first."""
        first = () if self.own else FIRST
        return choose.guesses(self.store, self.candidates, EXAMPLES, first=first)

    @property
    def pair(self) -> list[Path]:
        """The two images that are explained and attacked; one where there is only one."""
        return [self.source.file(guess.image_id) for guess in self.examples[:2]]

    @property
    def labels(self) -> list[int]:
        """The distinct classes of these two."""
        return list(dict.fromkeys(guess.classes[0] for guess in self.examples[:2]))

    def name(self, image_id: int) -> str:
        """What to call an image."""
        return PurePath(self.store.images.paths[image_id]).stem

    def class_text(self, index: int) -> str:
        """How to type a class: its name, or its number where the name stands for several."""
        name, names = self.model.class_name(index), self.model.classes
        try:
            return name if names is not None and names.find(name) == index else str(index)
        except ObjectiveError:
            return str(index)

    def show(
        self,
        title: str,
        name: str,
        subject: HookedModel | Store,
        files: Sequence[Path] = (),
        fields: Mapping[str, object] | None = None,
        call: Mapping[str, object] | None = None,
        note: str = "",
    ) -> Exhibit:
        """Run a technique, save its result and show it: the lines printed are what was run.

        Args:
            title, note: of the exhibit.
            name: of the technique.
            subject: the model or the store.
            files: image files that it is given.
            fields: parameters of the technique.
            call: further arguments; None stands for the default.
        """
        fields, call = fields or {}, call or {}
        of_store = isinstance(subject, Store)
        images = [list(files)] if files else []
        given = ["store" if of_store else "model"]
        given += [in_python(files[0] if len(files) == 1 else files)] if files else []
        python = f"technique({in_python(name)})({_keywords(fields)})("
        python += ", ".join([*given, *filter(None, [_keywords(call)])]) + ")"
        words: list[object] = ["run", name, self.store.path if of_store else MODEL, *files]
        for key, value in {**call, **fields}.items():
            for each in value if isinstance(value, list) else [value]:
                words += [] if each is None else [f"--{_FLAGS.get(key, key)}", each]
        folder = f"{name}-{call['layer']}" if name == "top-patches" else name
        shell = in_shell(*words)
        recipe = f"{shell}\n{self._inputs}\n".encode("utf-8", "surrogateescape")
        result = self._kept(folder, recipe)
        if result is None:
            kind: type[Any] = technique(name)
            loaded = {"model": self.model} if of_store else {}  # so that it is not loaded again
            result = kind(**fields)(subject, *images, **call, **loaded)
            written = self.out / "results" / folder / _RECIPE
            write_whole(written, b"")  # it is not that of the new result
            result.save(written.parent)
            write_whole(written, recipe)
        return self._shown(result, title, folder, python=python, shell=shell, note=note)

    def exhibit(self, result: Result, title: str, folder: str, **lines: str) -> Exhibit:
        """Save a result below `results`, and show it."""
        result.save(self.out / "results" / folder)
        return self._shown(result, title, folder, **lines)

    @cached_property
    def _inputs(self) -> str:
        """What decides a result beside the command: weights, images, and versions."""
        record = self.store.manifest
        versions = {**environment_versions(), **record.versions}
        return f"{record.model.weights_sha256} {record.images.fingerprint} {versions}"

    def _kept(self, folder: str, recipe: bytes) -> Result | None:
        """Return the result of an earlier demo that the same command made; None without one."""
        place = self.out / "results" / folder
        with suppress(OSError, ValueError, TimmscopeError):
            same = (place / _RECIPE).read_bytes() == recipe
            if same and (place / "figure.png").is_file():
                return load_result(place)
        return None

    def _shown(self, result: Result, title: str, folder: str, **lines: str) -> Exhibit:
        figure = io.BytesIO()
        with Image.open(self.out / "results" / folder / "figure.png") as picture:
            picture.convert("RGB").save(figure, "WebP", quality=88)
            width = round(picture.width * _SCALE)
        address = f"data:image/webp;base64,{base64.b64encode(figure.getvalue()).decode('ascii')}"
        return Exhibit(title, result, f"results/{folder}", address, width, **lines)

    def sheet(
        self, image_ids: list[int], titles: list[str], rows: list[dict[str, Any]], columns: int
    ) -> Sheet:
        """Images as the model sees them, each with a text, as a result of the demo's own."""
        load = self.model.preprocessing.load
        pictures = [load(self.source, image_id)[0] for image_id in image_ids]
        facts = {"model": self.model.id, "weights_sha256": self.model.weights_sha256}
        made = Provenance.now(technique="demo", family="", parameters={}, seed=0, **facts)
        images = torch.stack(pictures)
        return Sheet(provenance=made, images=images, titles=titles, rows=rows, columns=columns)


def in_python(value: object) -> str:
    """A value as one writes it in Python."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_python, value))}]"
    text = _typed(value)
    if isinstance(value, str | Path) and '"' not in text:
        return json.dumps(text, ensure_ascii=False)
    return repr(text if isinstance(value, Path) else value)


def in_shell(*words: object) -> str:
    """A command of timmscope as one types it."""
    return shlex.join(["timmscope", *map(_typed, words)])


def _typed(value: object) -> str:
    """A value as text; a path is relative where it lies below the working directory."""
    if not isinstance(value, Path):
        return str(value)
    path, here = value.resolve(), Path.cwd()
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)


def _keywords(values: Mapping[str, object]) -> str:
    return ", ".join(f"{k}={in_python(value)}" for k, value in values.items() if value is not None)
