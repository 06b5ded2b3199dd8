"""Calls a technique of any base on a tiny model, for the checks of techniques."""

from __future__ import annotations

import contextlib
import secrets
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
from timmscope.techniques import Technique
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
    """A technique under test, with a tiny model and the inputs of its call.

    Attributes:
        technique: the technique.
        model: the model.
        folder: an empty folder for stores.
        changed_settings: settings of the process that the last run changed and that were restored.
    """

    technique: Technique
    model: HookedModel
    folder: Path
    changed_settings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, case: Case, kind: str = "cnn", *, defaults: bool = False) -> Subject:
        """Return a case's technique with a new tiny model.

        Args:
            case: the contribution and its parameters.
            kind: kind of `tiny_model`.
            defaults: use the technique's defaults, unless a field has no default; a training takes
                one epoch.
        """
        chosen = technique(case.entry.id)
        needed = any(info.is_required() for info in chosen.model_fields.values())
        short = {"epochs": 1} if chosen.base == "training" else {}
        made = chosen(**(short if defaults and not needed else case.parameters))
        return cls(made, tiny_model(kind), case.folder)

    def run(self, *, seed: int = 0, batch_size: int | None = None, **call: Any) -> Result:
        """Call the technique with the arguments of its base.

        Args:
            seed: seed of random numbers.
            batch_size: for bases that split batches.
            call: the `call` of a result's provenance, to reproduce the result.
        """
        with restored_settings() as self.changed_settings:
            return self._run(seed, batch_size, call)

    def _run(self, seed: int, batch_size: int | None, call: dict[str, Any]) -> Result:
        result: object = CALLS[self.technique.base](self, seed, batch_size, call)
        assert isinstance(result, Result), f"it returned {type(result).__name__}, not a Result"
        return result

    def with_or_without_images(self, source: Any, **call: Any) -> Any:
        """Call an analysis without images, and with one if it needs some."""
        used: Any = self.technique
        try:
            return used(source, **call)
        except ParameterError as error:
            if error.parameter != "images":
                raise
        return used(source, self.images[:1], **call)

    @cached_property
    def images(self) -> Tensor:
        """Three images `(3, 3, 32, 32)` in [0, 1]."""
        return tiny_images(IMAGES)

    @cached_property
    def store(self) -> Store:
        """A store of 24 labelled images, copied from one that is mined once per model."""
        mined = shared_store(self.model.id.removeprefix("tiny:"))
        return Store.open(shutil.copytree(mined.path, self.folder / mined.path.name))

    @cached_property
    def labelled(self) -> Path:
        """A file of 24 tiny images with labels from 0 to 2."""
        pixels = (tiny_images(STORED) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "labelled.npz"
        np.savez(file, images=pixels, labels=np.arange(STORED) % 3)
        return file

    def new_folder(self) -> Path:
        """Return the name of a folder that does not exist yet."""
        return self.folder / f"run-{secrets.token_hex(4)}"

    @property
    def is_split(self) -> bool:
        """Whether the technique's base splits batches."""
        bases = ("attribution", "attack", "universal-attack", "defence", "certification")
        return self.technique.base in bases

    @property
    def tripwire(self) -> Tripwire:
        """The module of the model that can raise."""
        wire = self.model.module.get_submodule("tripwire")
        assert isinstance(wire, Tripwire)
        return wire

    def passes(self) -> int:
        """Return the number of forward passes of a run.

        Raises:
            NotApplicable: a run makes no forward pass.
        """
        self.run()  # the first run may inspect the model; the result is cached
        before = self.tripwire.passed
        self.run()
        count = self.tripwire.passed - before
        if not count:
            raise NotApplicable("it runs no model")
        return count


def _call_attribution(
    subject: Subject, seed: int, batch_size: int | None, call: dict[str, Any]
) -> Any:
    goal = call.get("objective", OBJECTIVE)
    used: Any = subject.technique
    return used(subject.model, subject.images, goal, seed=seed, batch_size=batch_size)


def _call_synthesis(subject: Subject, seed: int, _: int | None, call: dict[str, Any]) -> Any:
    used: Any = subject.technique
    goal = call.get("objective", "class:3")
    try:
        return used(subject.model, goal, seed=seed)
    except ParameterError as error:
        if error.parameter != "init":
            raise
    return used(subject.model, goal, seed=seed, init=subject.images[:1])


def _call_attack(subject: Subject, seed: int, batch_size: int | None, call: dict[str, Any]) -> Any:
    named = ("labels", "targets", "objective", "value")
    aims = {name: call[name] for name in named if name in call}
    used: Any = subject.technique
    return used(subject.model, subject.images, seed=seed, batch_size=batch_size, **aims)


def _call_universal(
    subject: Subject, seed: int, batch_size: int | None, call: dict[str, Any]
) -> Any:
    asked = {name: call[name] for name in ("target", "objective", "value") if name in call}
    used: Any = subject.technique
    images = tiny_images(STORED)
    return used(subject.model, images, held_out=0.5, seed=seed, batch_size=batch_size, **asked)


def _call_defence(subject: Subject, seed: int, batch_size: int | None, call: dict[str, Any]) -> Any:
    used: Any = subject.technique
    labels = {name: call[name] for name in ("labels",) if name in call}
    return used(subject.model, subject.images, seed=seed, batch_size=batch_size, **labels)


def _call_certification(
    subject: Subject, seed: int, batch_size: int | None, call: dict[str, Any]
) -> Any:
    labels = {name: call[name] for name in ("labels",) if name in call}
    used: Any = subject.technique
    return used(subject.model, subject.images, seed=seed, batch_size=batch_size, **labels)


def _call_style(subject: Subject, seed: int, _: int | None, call: dict[str, Any]) -> Any:
    used: Any = subject.technique
    inputs = {
        "model": subject.model,
        "content": subject.images[:1],
        "styles": subject.images[1:2],
    }
    given = {name: value for name, value in inputs.items() if name in used.takes}
    return used(**given, weights=call.get("weights"), seed=seed)


def _call_store(subject: Subject, seed: int, _: int | None, call: dict[str, Any]) -> Any:
    last = list(subject.store.layers)[-1]
    given = {"model": subject.model, "layer": last, "seed": seed}
    return subject.with_or_without_images(subject.store, **given)


def _call_stores(subject: Subject, seed: int, _: int | None, call: dict[str, Any]) -> Any:
    used: Any = subject.technique
    layer = {"layer": list(subject.store.layers)[-1]} if used.one_layer else {}
    return used([subject.store, subject.store], model=subject.model, seed=seed, **layer)


def _call_model(subject: Subject, seed: int, _: int | None, call: dict[str, Any]) -> Any:
    return subject.with_or_without_images(subject.model, seed=seed)


def _call_training(subject: Subject, seed: int, _: int | None, call: dict[str, Any]) -> Any:
    used: Any = subject.technique
    return used(subject.model, subject.labelled, output=subject.new_folder(), seed=seed)


CALLS = {
    "attribution": _call_attribution,
    "synthesis": _call_synthesis,
    "attack": _call_attack,
    "universal-attack": _call_universal,
    "defence": _call_defence,
    "certification": _call_certification,
    "style": _call_style,
    "store": _call_store,
    "stores": _call_stores,
    "model": _call_model,
    "training": _call_training,
}
"""How a technique of each base is called on the tiny inputs."""


def tiny_pictures(folder: Path) -> Path:
    """Write 24 tiny images as PNG files into three folders, one per label; return the folder."""
    pictures = folder / "images"
    for number, image in enumerate(tiny_images(STORED)):
        place = pictures / f"class{number % 3}" / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place)
    return pictures


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Kept until the process ends, because copies of a store read its pictures."""


@cache
def shared_store(kind: str) -> Store:
    """Return the store of the tiny pictures for a kind of tiny model; do not change it."""
    _folders.append(tempfile.TemporaryDirectory(prefix="timmscope-testing-"))
    return tiny_store(tiny_model(kind), Path(_folders[-1].name))


def tiny_store(model: HookedModel, folder: Path) -> Store:
    """Mine the tiny pictures through the model's last two layers with a grid."""
    layers = [layer.name for layer in model.layers.values() if layer.grid is not None][-2:]
    store = folder / "tiny.scope"
    return mine(model, tiny_pictures(folder), store, layers=layers, shard_size=10, workers=0)


def arrays(result: Result) -> dict[str, Tensor | np.ndarray]:
    """Return a result's tensors and NumPy arrays by the names of its fields."""
    return result._arrays()


class ProgressRecorder:
    """A progress reporter that records every task, and may interrupt a step.

    Attributes:
        tasks: description, total and steps done of each task that has ended.
    """

    def __init__(self, *, stop: int = 0) -> None:
        self.tasks: list[tuple[str, int | None, int]] = []
        self._stop = stop

    @contextlib.contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        """Begin a task."""
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            self._stop -= 1
            if self._stop == 0:  # only once
                raise KeyboardInterrupt
            done += steps

        yield advance
        self.tasks.append((description, total, done))


@contextlib.contextmanager
def recorded_progress(*, stop: int = 0) -> Iterator[ProgressRecorder]:
    """Record all progress inside; interrupt the step of the number `stop` as Ctrl-C does."""
    recorder = ProgressRecorder(stop=stop)
    with reporting(recorder):
        yield recorder


def differing_arrays(one: Result, other: Result, *, tolerance: float = 0.0) -> list[str]:
    """Return the names of arrays that differ by more than `tolerance` times the largest value."""
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
