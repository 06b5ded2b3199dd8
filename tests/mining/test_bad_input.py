"""A pass handles images that vanish, are damaged, have odd names, or are slow to read."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.mining.contents import contents
from tests.processes import run_command
from torch import Tensor, nn

from timmscope import HookedModel
from timmscope.cli import main
from timmscope.images import FolderSource, ImageSource, ListSource, WebDatasetSource
from timmscope.mining import mine
from timmscope.store import Store
from timmscope_registry import ImageError, StoreError, UnsupportedModel

MODEL = "random:test_resnet?seed=0&img_size=32"
SETTINGS: dict[str, Any] = {
    "layers": ["layer1", "global_pool"],
    "batch_size": 4,
    "shard_size": 8,
    "top_k": 5,
    "workers": 0,
}


def run(model: HookedModel, images: Any, out: Path, **options: Any) -> Store:
    return mine(model, images, out, **{**SETTINGS, **options})


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images: 0.png … 19.png."""
    made = tmp_path / "images"
    made.mkdir()
    for number in range(20):
        picture(number).save(made / f"{number}.png")
    return made


class Vanishing(FolderSource):
    """A folder that disappears just before image `at` is read."""

    at = 10

    def load(self, index: int) -> Image.Image:
        if index == self.at:
            shutil.move(self._root, f"{self._root}.away")
        return super().load(index)


@pytest.mark.parametrize(("at", "workers"), [(10, 0), (2, 0), (8, 2), (19, 0)])
def test_a_folder_that_vanishes_ends_the_pass_which_resumes_when_it_is_back(
    small_model: HookedModel, folder: Path, tmp_path: Path, at: int, workers: int
) -> None:
    whole = run(small_model, folder, tmp_path / "whole")
    source = Vanishing(folder)
    source.at = at
    with pytest.raises(ImageError, match=r"images: can no longer be reached \(No such file") as e:
        run(small_model, source, tmp_path / "s", workers=workers)
    assert "\n" not in str(e.value)
    assert not multiprocessing.active_children()  # even while the error is kept
    manifest = Store.open(tmp_path / "s").manifest
    assert list(manifest.shards) in [[], [0], [0, 1]][: at // 8 + 1]  # those that were written
    assert all(shard.unreadable == 0 for shard in manifest.shards.values())
    shutil.move(f"{folder}.away", folder)
    run(small_model, folder, tmp_path / "s")
    assert contents(tmp_path / "s") == contents(whole.path)


def test_an_emptied_mount_point_and_a_lost_archive_end_the_pass_as_well(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    names = tmp_path / "list.txt"
    names.write_text("\n".join(f"images/{n}.png" for n in range(20)))
    sources = [FolderSource(folder), ListSource(names), WebDatasetSource(archive)]
    archive.unlink()
    for path in folder.iterdir():
        path.unlink()
    for number, source in enumerate(sources):
        with pytest.raises(ImageError, match="can no longer be reached"):
            run(small_model, source, tmp_path / f"s{number}")


def test_a_list_with_files_that_never_existed_is_mined_without_them(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    names = tmp_path / "list.txt"
    missing = [f"elsewhere/{n}.png" for n in range(9)]
    names.write_text("\n".join([*missing, "images/3.png", "images"]))
    store = run(small_model, names, tmp_path / "s")
    assert [i for i, _, _ in store.images.unreadable()] == [*range(9), 10]
    assert store.images.reasons[10].startswith("a folder, where one image was expected")


def test_images_of_any_size_are_mined_and_too_large_ones_are_reported_with_the_limit(
    folder: Path, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, size in {"dot": (1, 1), "wide": (3000, 2), "tall": (5, 900)}.items():
        picture(1, size).save(folder / f"{name}.png")
    Image.new("1", (20_000, 5_000)).save(folder / "panorama.png")
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")
    Image.new("1", (30_000, 20_000)).save(folder / "huge.png")
    out = tmp_path / "s"
    command = ["mine", MODEL, folder, "-o", out, "--layers", "global_pool", "--workers", 0]
    done = run_command(*command, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")  # Pillow's own warnings included
    assert done.stdout.count("above the limit of 178956970 pixels") == 2
    store = Store.open(out)
    assert [path for _, path, _ in store.images.unreadable()] == ["bomb.png", "huge.png"]
    assert store.images.sizes[:].tolist()[-2:] == [[5, 900], [3000, 2]]
    assert np.isfinite(store.layer("global_pool").pooled[store.images.readable]).all()


def test_any_name_is_kept_and_shown_on_one_line(
    small_model: HookedModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["ü 日本.png", "two\nlines.png", "tab\t.png", "escape\x1b[31m.png"]
    odd.append(os.fsdecode(b"latin\xff.png"))
    for name in odd:
        (folder / name).write_bytes(b"")
    (folder / "cl\nass").mkdir()
    picture(3).save(folder / "cl\nass" / "x.png")
    store = run(small_model, folder, tmp_path / "s")
    assert set(odd) < set(store.images.paths)
    assert {path for _, path, _ in store.images.unreadable()} == set(odd)
    assert store.images.labels[store.images.paths.index("cl\nass/x.png")] == "cl\nass"
    assert main(["mine", MODEL, str(folder), "-o", str(tmp_path / "s"), "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert r"two\nlines.png" in printed
    assert "\x1b" not in printed


def test_labels_may_be_missing_for_some_images(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    (folder / "cat").mkdir()
    picture(3).save(folder / "cat" / "x.png")
    store = run(small_model, folder, tmp_path / "s")
    assert list(store.images.labels) == [None] * 20 + ["cat"]
    assert store.images.where("label == 'cat'").tolist() == [False] * 20 + [True]


def test_an_image_named_twice_has_two_ids_and_equal_rows(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    names = [folder / "3.png", folder / "5.png", folder / "3.png", folder / "3.png"]
    layer = run(small_model, names, tmp_path / "s", batch_size=1).layer("layer1")
    rows = layer.pooled[:]
    assert (rows[0] == rows[2]).all()
    assert (rows[0] == rows[3]).all()
    for unit in range(32):  # ties go to the smaller id
        ids = [entry.image_id for entry in layer.top(unit, 4)]
        assert ids in ([0, 2, 3, 1], [1, 0, 2, 3])


def test_a_slow_source_gives_the_same_bytes(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    class Slow(FolderSource):
        def load(self, index: int) -> Image.Image:
            time.sleep(0.05)
            return super().load(index)

    slow = run(small_model, Slow(folder), tmp_path / "slow", workers=2)
    assert contents(slow.path) == contents(run(small_model, folder, tmp_path / "s").path)


class Dying(FolderSource):
    """A source whose image 14 kills the reading process, until the file ``.healed`` exists."""

    def load(self, index: int) -> Image.Image:
        if index == 14 and not Path(f"{self._root}.healed").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)


def test_a_killed_reading_process_is_a_one_line_error_and_the_pass_can_be_resumed(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="a process that reads images died, most likely for lack"):
        run(small_model, Dying(folder), tmp_path / "s", workers=2)
    assert not multiprocessing.active_children()
    Path(f"{folder}.healed").touch()
    again = run(small_model, Dying(folder), tmp_path / "s", workers=2)
    assert contents(again.path) == contents(run(small_model, folder, tmp_path / "whole").path)


class Custom(ImageSource):
    """A plugin's source that may describe its images wrongly."""

    def __init__(self, paths: list[Any], labels: list[Any] | None, load: Any = picture) -> None:
        self._paths, self._labels, self._load = paths, labels, load

    def __len__(self) -> int:
        return 6

    @property
    def paths(self) -> Any:
        return self._paths

    @property
    def labels(self) -> Any:
        return self._labels

    def load(self, index: int) -> Any:
        return self._load(index)

    def fingerprint(self) -> str:
        return "custom"


def test_a_source_that_misdescribes_its_images_is_refused_in_one_line(
    small_model: HookedModel, tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(6)]
    for paths, labels, what in (
        (names[:5], None, "5 paths; expected one for every image"),
        (names, ["cat"], "1 labels; expected one for every image"),
        (names, [None, "cat", 3, 4, 5, 6], "labels of type int; expected text"),
        ([1, 2, 3, 4, 5, 6], None, "paths of type int; expected text"),
    ):
        with pytest.raises(ImageError, match=what):
            run(small_model, Custom(paths, labels), tmp_path / "s")
        assert not (tmp_path / "s").exists()
    nameless = Custom(names, None)
    nameless.fingerprint = lambda: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ImageError, match="has a fingerprint of type NoneType; expected text"):
        run(small_model, nameless, tmp_path / "s")
    arrays = Custom(names, None, lambda index: np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageError, match=r"Custom\.load returned ndarray, expected a PIL image"):
        run(small_model, arrays, tmp_path / "arrays")
    good = run(small_model, Custom(names, [None, "cat", None, "", "dog", None]), tmp_path / "s")
    assert list(good.images.labels) == [None, "cat", None, None, "dog", None]


@pytest.mark.parametrize(
    ("workers", "error"),
    [
        (0, MemoryError()),
        (1, MemoryError()),
        (0, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TB")),
        (0, OSError("out of memory when reading image file")),
    ],
)
def test_an_image_that_needs_too_much_memory_ends_the_pass_in_one_line(
    small_model: HookedModel, tmp_path: Path, workers: int, error: Exception
) -> None:
    def load(index: int) -> Image.Image:
        if index == 3:
            raise error
        return picture(index)

    names = [f"{number}.png" for number in range(6)]
    with pytest.raises(StoreError, match=r"^no memory to read 3\.png; start again with fewer work"):
        run(small_model, Custom(names, None, load), tmp_path / "s", workers=workers)


class Varying(nn.Module):
    """A model whose layer `v` has another shape for bright images than for dark ones."""

    def __init__(self, axis: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.c, self.v, self.f = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, 5)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(x)
        bright = bool(x.mean() > 0.9)
        self.v(y.narrow(self.axis, 0, y.shape[self.axis] - bright))
        found: Tensor = self.f(y.mean((2, 3)))
        return found


@pytest.mark.parametrize(
    ("axis", "what"), [(0, "gave 3 rows for the 4 images from 4 on"), (1, "NCHW"), (2, "grid")]
)
def test_a_layer_whose_shape_varies_is_a_one_line_error_that_names_it(
    folder: Path, tmp_path: Path, axis: int, what: str
) -> None:
    for path in sorted(folder.iterdir())[8:]:
        Image.new("RGB", (32, 32), (255, 255, 255)).save(path)
    torch.manual_seed(0)
    model = HookedModel(Varying(axis), input_size=(3, 32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    assert "v" in model.layers
    with pytest.raises(UnsupportedModel, match=r"layer v\b") as caught:
        run(model, folder, tmp_path / "s", layers=["v"])
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overflows_of_a_half_precision_model_are_counted_by_unit(
    small_model: HookedModel, folder: Path, tmp_path: Path
) -> None:
    def overflow(t: Tensor) -> Tensor:
        t = t.half()
        t[:, 7] = 60_000  # finite, and so is its mean in float32; its sum in float16 is infinite
        t[1, 3] = 1e5  # infinite in float16
        return t

    with small_model.edit({"layer4": overflow}):
        store = run(small_model, folder, tmp_path / "s", layers=["layer4"])
    statistics = store.layer("layer4").statistics("pooled")
    assert statistics.nonfinite[3] == 5  # the second image of five batches
    assert np.delete(statistics.nonfinite, 3).sum() == 0
    assert statistics.mean[7] == 60_000
    assert statistics.count[3] == 15
