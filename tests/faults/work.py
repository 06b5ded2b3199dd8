"""The kinds of work that the tests let fail: each changes files, and can be done again."""

from __future__ import annotations

import shutil
import warnings
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tests.faults.disk_faults import faults, uncounted
from tests.mining.contents import contents
from torch import nn

from timmscope import (
    Attribution,
    HookedModel,
    Sheet,
    Store,
    VectorIndex,
    evaluate,
    load_result,
    merge,
    mine,
    verify,
)
from timmscope.demo import dataset, run_demo, sections
from timmscope.demo import run as demo
from timmscope.demo.tour import Exhibit, Tour
from timmscope.results import Provenance, Result
from timmscope.results.saving import open_newest
from timmscope.testing import tiny_images, tiny_model
from timmscope_registry.hooks import OwnGenerators

SMALL = {"batch_size": 2, "shard_size": 4, "top_k": 3}
LARGE = {"batch_size": 30, "shard_size": 60, "top_k": 60}


class Work:
    """Changes files of the folder `place`, whose contents before the work are always the same.

    Args:
        folder: an empty folder.
        large: use arrays of more than 100 KB: 512 units, and 150 images instead of 10.

    Attributes:
        place: where the work is done.
        calls: names of the calls of undisturbed work.
        states: what `read` returns before that work and after it.
        expected: the contents of the folder after it.
    """

    def __init__(self, folder: Path, *, large: bool = False) -> None:
        self.folder = folder
        self.place = folder / "place"
        self.model: HookedModel = wide_model() if large else tiny_model()
        self.layer = "act" if large else "act2"
        self._sizes: dict[str, Any] = LARGE if large else SMALL
        size, count = self.model.input_size[1:], 150 if large else 10
        pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
        self.images = folder / "images.npy"
        np.save(self.images, pixels)
        self.place.mkdir()
        self.prepare()
        shutil.copytree(self.place, folder / "start")
        self.states = [self.read()]
        with faults() as counted:
            self.run()
        self.calls = counted.names
        self.states.append(self.read())
        self.expected = contents(self.place)

    def prepare(self) -> None:
        """Write what is there before the work."""

    def run(self) -> None:
        """Do the work, or what is left of it."""
        raise NotImplementedError

    def read(self) -> Any:
        """Return what a reader finds in the folder, which must be the old or the new state."""

    def reset(self) -> None:
        """Make the folder as it is before the work."""
        shutil.rmtree(self.place)
        shutil.copytree(self.folder / "start", self.place)

    def check(self) -> None:
        """Read, do what is left of the work, and compare the result with undisturbed work."""
        assert self.read() in self.states
        self.run()
        found = contents(self.place)
        for name in list(found):
            if ".saving-" in name:  # of a killed process; a save an hour later removes it
                del found[name]
            elif name.endswith(".json.next"):  # counts as the record until the next save
                found[name.removesuffix(".next")] = found.pop(name)
        assert found == self.expected
        assert self.read() == self.states[-1]

    def sample(self, share: float) -> list[int]:
        """Return numbers of calls, spread over all."""
        count = max(2, round(share * len(self.calls)))
        return sorted({int(n) for n in np.linspace(1, len(self.calls), count)})

    @property
    def store(self) -> Path:
        return self.place / "s.scope"

    def mine(self, out: Path, **options: Any) -> Store:
        sizes = self._sizes
        return mine(
            self.model, self.images, out, layers=[self.layer], workers=0, **sizes, **options
        )


class Pass(Work):
    """A pass over three shards."""

    def run(self) -> None:
        self.mine(self.store)


class Merge(Work):
    """A merge of two parts."""

    def prepare(self) -> None:
        self._parts = [self.mine(self.folder / f"part{i}", ranges=(i, 2)).path for i in (1, 2)]

    def run(self) -> None:
        merge(self._parts, self.store)

    def read(self) -> None:
        if (self.store / "manifest.json").exists():
            Store.open(self.store)


class Repair(Work):
    """A repair of two damaged files."""

    def prepare(self) -> None:
        self.mine(self.store)
        for name in ("shards/00001.h5", "reduced/00002.h5"):
            data = bytearray((self.store / name).read_bytes())
            data[len(data) // 2] ^= 1
            (self.store / name).write_bytes(data)

    def run(self) -> None:
        assert verify(self.store, repair=True, model=self.model, images=self.images).ok

    def read(self) -> None:
        Store.open(self.store)


class Index(Work):
    """The build of an index."""

    def prepare(self) -> None:
        self.mine(self.store)

    def run(self) -> None:
        VectorIndex.build(Store.open(self.store).layer(self.layer)).save()

    def load(self) -> VectorIndex:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that rows are missing
            return VectorIndex.load(self.store, self.layer)

    def read(self) -> Any:
        """Return the facts of the index, its rows and their neighbours; None without an index."""
        if not list(self.store.glob("index/*.faiss")):
            return None
        index = self.load()
        found = index.search(Store.open(self.store).layer(self.layer).pooled[:], 3)
        return index.info(), index.ids.tolist(), found.ids.tolist(), found.scores.tolist()


class Read(Index):
    """Reads of rows, lists and statistics, and a search; nothing changes."""

    def prepare(self) -> None:
        VectorIndex.build(self.mine(self.store).layer(self.layer)).save()

    def run(self) -> None:
        store = Store.open(self.store)
        layer, images = store.layer(self.layer), store.images
        for _ in (layer.maximum[3], layer.top(2, 3), layer.statistics(), list(layer.iter_rows())):
            pass
        assert images.where("width > 3").all()
        self.load().search(layer.pooled[:], 3)


class Add(Index):
    """The rows of a shard that an index lacks, whose own rows are on disk."""

    def prepare(self) -> None:
        store = self.mine(self.store)
        some = Store(store.path, store.manifest.without_shards({1}))
        VectorIndex.build(some.layer(self.layer), backend="ivf").save()

    def run(self) -> None:
        index = self.load()
        if index.missing_rows:
            index.add_missing()
            index.save()


class Remove(Index):
    """Rows that are removed from an index, and their space."""

    def prepare(self) -> None:
        VectorIndex.build(self.mine(self.store).layer(self.layer), backend="ivf").save()

    def run(self) -> None:
        index = self.load()
        if len(index) == 10:
            index.remove([3, 7])
            index.compact()
            index.save()


class Tune(Index):
    """Another recall, which changes the record of an index alone."""

    def prepare(self) -> None:
        VectorIndex.build(self.mine(self.store).layer(self.layer)).save()

    def run(self) -> None:
        index = self.load()
        index.tune(0.5)
        index.save()


class Save(Work):
    """A result over an earlier one."""

    @staticmethod
    def sheet(number: int) -> Sheet:
        facts: dict[str, Any] = {"model": None, "weights_sha256": None, "seed": number}
        made = Provenance.now(technique="demo", family="", parameters={}, **facts)
        images, rows = torch.full((2, 3, 8, 8), number / 2), [{"number": number}] * 2
        return Sheet(provenance=made, images=images, titles=["a", "b"], rows=rows)

    def prepare(self) -> None:
        self.sheet(1).save(self.place)

    def run(self) -> None:
        self.sheet(2).save(self.place)

    def read(self) -> Any:
        return seen(load_result(self.place))


class SaveFirst(Save):
    """A result in a new folder."""

    def prepare(self) -> None:
        pass

    def run(self) -> None:
        self.sheet(2).save(self.place / "new/result")

    def read(self) -> Any:
        folder = self.place / "new/result"
        return seen(load_result(folder)) if holds_result(folder) else None


class Evaluate(Work):
    """An evaluation of two techniques, with its journal and its result."""

    def run(self) -> None:
        evaluate(
            self.model, tiny_images(2), ["cam", "eigen-cam"],
            metrics=["deletion"], out=self.place / "evaluation",
        )  # fmt: skip

    def read(self) -> Any:
        folder = self.place / "evaluation"
        return seen(load_result(folder)) if holds_result(folder) else None


class Demo(Work):
    """A demo over an earlier one of other images."""

    def prepare(self) -> None:
        self._pictures = {}
        for number, name in enumerate("ab"):
            self._pictures[name] = self.folder / f"{name}.png"
            Image.new("RGB", (9, 9), (200 * number, 90, 30)).save(self._pictures[name])
        self._run("a")
        self._reports = [self._report.read_bytes()]

    @property
    def _report(self) -> Path:
        return self.place / "demo/report.html"

    def run(self) -> None:
        self._run("ab")
        self._reports = [self._reports[0], self._report.read_bytes()]

    def read(self) -> None:
        assert self._report.read_bytes() in self._reports
        for folder in (self.place / "demo/results").iterdir():
            assert isinstance(load_result(folder), Result)

    def _run(self, names: str) -> None:
        pictures = {name: self._pictures[name] for name in names}
        data_set = {"photographs": lambda: pictures, "boxes": lambda w, h: [("c", (0, 0, w, h))]}
        tiny = {
            "require_extras": lambda **_: None,
            "load_model": lambda _: self.model,
            "mine": self._mine_uncounted,
            "LAYERS": (self.layer, "logits"),
            "FEATURES": self.layer,
            "SECTIONS": {"predictions": sections.predictions, "explanations": _explanation},
            "render": lambda shown, **_: str([e.figure for part in shown.values() for e in part]),
        }
        with ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(dataset, **data_set))
            stack.enter_context(mock.patch.multiple(demo, **tiny))
            for kind in (Sheet, Attribution):
                stack.enter_context(mock.patch.object(kind, "figure", _plain_figure))
            run_demo(self.place / "demo")

    @staticmethod
    def _mine_uncounted(*args: Any, **options: Any) -> Store:
        with uncounted():  # as in `Pass`
            return mine(*args, **options, workers=0)


def _explanation(tour: Tour) -> list[Exhibit]:
    return [tour.show("Eigen-CAM", "eigen-cam", tour.model, tour.pair)]


def _plain_figure(result: Result) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, str(result.summary()))
    return figure


def wide_model() -> HookedModel:
    """Return a model for 32×32 images with 512 units in its layer ``act``."""
    with OwnGenerators(seed=0):
        parts = OrderedDict(
            conv=nn.Conv2d(3, 512, 4, stride=4), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), fc=nn.Linear(512, 10),
        )  # fmt: skip
        module = nn.Sequential(parts).eval()
    return HookedModel(module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 32, 32), id="wide")


def holds_result(folder: Path) -> bool:
    try:
        open_newest(folder, "result.json", 1 << 20).close()
    except FileNotFoundError:
        return False
    return True


def seen(result: Result) -> Any:
    """Everything that a result holds."""
    arrays = {name: array.tolist() for name, array in result._arrays().items()}
    return arrays, result.summary(), result.provenance


WORKS = {
    "pass": Pass, "merge": Merge, "repair": Repair, "index": Index, "add": Add, "remove": Remove,
    "tune": Tune, "save": Save, "save-first": SaveFirst, "evaluate": Evaluate, "demo": Demo,
}  # fmt: skip
"""Work that changes files."""

READS = {"read": Read}
