"""How a technique of any family is called on a tiny model: what the checks have in common."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timmscope.mining import mine
from timmscope.models import HookedModel
from timmscope.progress import Advance, reporting
from timmscope.results import Result
from timmscope.store import Store
from timmscope.techniques import RepresentationTechnique, Technique
from timmscope.techniques.lookup import technique
from timmscope.testing.conformance import Case, NotApplicable
from timmscope.testing.models import Tripwire, tiny_images, tiny_model
from timmscope.testing.process_settings import restored_settings
from timmscope_registry import ParameterError

IMAGES = 3
STORED = 24
OBJECTIVE = "class:3|1|7"


@dataclass
class Subject:
    """A technique with parameters, a tiny model, and what it is run on.

    Attributes:
        technique: the technique.
        model: the model.
        folder: an empty folder for stores.
        changed_settings: settings of the process that the last run changed; they are restored.
    """

    technique: Technique
    model: HookedModel
    folder: Path
    changed_settings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, case: Case, kind: str = "cnn", *, defaults: bool = False) -> Subject:
        """A case's technique on a fresh tiny model.

        Args:
            case: with its parameters.
            kind: of `tiny_model`.
            defaults: leave the parameters at their defaults, unless one of them has none.
        """
        chosen = technique(case.entry.id)
        needed = any(info.is_required() for info in chosen.model_fields.values())
        made = chosen(**({} if defaults and not needed else case.parameters))
        return cls(made, tiny_model(kind), case.folder)

    def run(self, *, seed: int = 0, batch_size: int | None = None, **call: Any) -> Result:
        """Call the technique as its family is called.

        Args:
            seed: of random numbers.
            batch_size: for families that split batches.
            call: what a result's provenance says of the call, to make it again.
        """
        with restored_settings() as self.changed_settings:
            return self._run(seed, batch_size, call)

    def _run(self, seed: int, batch_size: int | None, call: dict[str, Any]) -> Result:
        used, family = self.technique, self.technique.family
        images = self.images
        result: Any
        if family == "attribution":
            goal = call.get("objective", OBJECTIVE)
            result = used(self.model, images, goal, seed=seed, batch_size=batch_size)  # type: ignore[operator]
        elif family == "synthesis":
            result = used(self.model, call.get("objective", "class:3"), seed=seed)  # type: ignore[operator]
        elif family == "attack":
            aims = {name: call[name] for name in ("labels", "targets") if name in call}
            result = used(self.model, images, seed=seed, batch_size=batch_size, **aims)  # type: ignore[operator]
        elif family == "style":
            weights = call.get("weights")
            result = used(self.model, images[:1], images[1:2], weights=weights, seed=seed)  # type: ignore[operator]
        else:
            result = self._analyse(seed)
        assert isinstance(result, Result), f"returned {type(result).__name__}, which is no Result"
        return result

    def _analyse(self, seed: int) -> Result:
        used = self.technique
        assert isinstance(used, RepresentationTechnique)
        source: Any = self.model
        call: dict[str, Any] = {}
        if used.reads != "model":
            last = list(self.store.layers)[-1]
            several = used.reads == "stores"
            source = [self.store, self.store] if several else self.store
            call = {"model": self.model}
            if not several or used.one_layer:
                call["layer"] = last
        try:
            return used(source, seed=seed, **call)
        except ParameterError as error:
            if error.parameter != "images":
                raise
        return used(source, self.images[:1], seed=seed, **call)

    @cached_property
    def images(self) -> Tensor:
        """Three images `(3, 3, 32, 32)` in [0, 1]."""
        return tiny_images(IMAGES)

    @cached_property
    def store(self) -> Store:
        """A store of 24 labelled images: a copy of the one that is mined once for each model."""
        mined = _mined(self.model.id.removeprefix("tiny:"))
        return Store.open(shutil.copytree(mined.path, self.folder / mined.path.name))

    @property
    def is_split(self) -> bool:
        """Whether its family splits batches."""
        return self.technique.family in ("attribution", "attack")

    @property
    def tripwire(self) -> Tripwire:
        """The part of the model that can break."""
        wire = self.model.module.get_submodule("tripwire")
        assert isinstance(wire, Tripwire)
        return wire

    def passes(self) -> int:
        """How often a run takes the model through its middle.

        Raises:
            NotApplicable: it does not.
        """
        self.run()  # the first one may look at the model, which is remembered
        before = self.tripwire.passed
        self.run()
        count = self.tripwire.passed - before
        if not count:
            raise NotApplicable("it runs no model")
        return count


def tiny_pictures(folder: Path) -> Path:
    """Write 24 tiny images as PNG files into three folders, their labels; returns the folder."""
    pictures = folder / "images"
    for number, image in enumerate(tiny_images(STORED)):
        place = pictures / f"class{number % 3}" / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place)
    return pictures


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Kept until the process ends, since copies of a store read its pictures."""


@cache
def _mined(kind: str) -> Store:
    """The store of a kind of tiny model; it is not to be written to."""
    _folders.append(tempfile.TemporaryDirectory(prefix="timmscope-testing-"))
    return tiny_store(tiny_model(kind), Path(_folders[-1].name))


def tiny_store(model: HookedModel, folder: Path) -> Store:
    """Mine the tiny pictures with the last two layers that have a grid."""
    layers = [layer.name for layer in model.layers.values() if layer.grid is not None][-2:]
    store = folder / "tiny.scope"
    return mine(model, tiny_pictures(folder), store, layers=layers, shard_size=10, workers=0)


def arrays(result: Result) -> dict[str, Tensor | np.ndarray]:
    """A result's tensors and NumPy arrays by the names of its fields."""
    return result._arrays()


class Watcher:
    """A reporter that notes every piece of work, and may stop the first step.

    Attributes:
        tasks: description, total and steps done of each piece of work that came to its end.
    """

    def __init__(self, *, stop: bool = False) -> None:
        self.tasks: list[tuple[str, int | None, int]] = []
        self._stop = stop

    @contextlib.contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        """Begin a piece of work."""
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            if self._stop:
                self._stop = False  # once: whoever swallows it goes on
                raise KeyboardInterrupt
            done += steps

        yield advance
        self.tasks.append((description, total, done))


@contextlib.contextmanager
def watched(*, stop: bool = False) -> Iterator[Watcher]:
    """Note all progress inside; with `stop`, interrupt the first step as Ctrl-C would."""
    watcher = Watcher(stop=stop)
    with reporting(watcher):
        yield watcher


def same(one: Result, other: Result, *, tolerance: float = 0.0) -> list[str]:
    """Names of arrays in which two results differ, by more than a share of the largest value."""
    first, second = arrays(one), arrays(other)
    if first.keys() != second.keys():
        return sorted(first.keys() ^ second.keys())
    return [name for name, value in first.items() if not _close(value, second[name], tolerance)]


def _close(first: Tensor | np.ndarray, second: Tensor | np.ndarray, tolerance: float) -> bool:
    one, other = torch.as_tensor(first), torch.as_tensor(second)
    if isinstance(first, np.ndarray) != isinstance(second, np.ndarray):
        return False
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not tolerance or not one.is_floating_point():
        return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    scale = float(one.abs().max()) if one.numel() else 0.0
    return bool(((one - other).abs() <= tolerance * scale).all())
