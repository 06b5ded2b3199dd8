"""Whatever allocation fails: one line that says so, exit status 2, and nothing is lost."""

from __future__ import annotations

import copy
import errno
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import UnidentifiedImageError

from timmscope import (
    ImageError,
    PluginError,
    Store,
    StoreCorrupted,
    StoreError,
    TimmscopeError,
    load_result,
    mine,
)
from timmscope.cli.main import explain
from timmscope.testing import tiny_images, tiny_model
from timmscope_registry.out_of_memory import is_out_of_memory

HERE = Path(__file__).parent
SHARES = [
    pytest.param(0, ["index", "read"], id="few"),
    pytest.param(0.02, ["pass", "merge", "add"], marks=pytest.mark.slow, id="some"),
    *(
        pytest.param(1, [kind], marks=pytest.mark.soak, id=kind)
        for kind in ("pass", "merge", "index", "add", "read")
    ),
]


@pytest.fixture(scope="session")
def failing_malloc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc and a C compiler")
    library = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    source = HERE / "failing_malloc.c"
    subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize(("share", "kinds"), SHARES)
def test_work_can_be_done_again_whatever_allocation_failed(
    failing_malloc: Path, tmp_path: Path, share: float, kinds: list[str]
) -> None:
    command = [sys.executable, "-m", "tests.faults.memory_sweep", str(tmp_path), str(share), *kinds]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(failing_malloc)},
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == kinds
    for kind, *counts in lines:
        allocations, tried, reported = map(int, counts)
        assert allocations > 10, kind
        assert reported > tried * 0.6, kind  # HDF5 asks a second time, with success


def raised(work: Callable[[], Any]) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        work()
    return caught.value


def caused(error: Exception, by: BaseException) -> Exception:
    error.__cause__ = by
    return error


USED_UP = {
    "torch": lambda: raised(lambda: torch.empty(1 << 50)),
    "numpy": lambda: raised(lambda: np.empty(1 << 60, np.uint8)),
    "python": lambda: raised(lambda: bytes(1 << 60)),
    "accelerator": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    "c++": lambda: RuntimeError("std::bad_alloc"),
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "hdf5": lambda: KeyError("Unable to synchronously open object (memory allocation failed)"),
    "pillow": lambda: OSError("out of memory when reading image file"),
    "cause": lambda: caused(ImageError("a.png: cannot be decoded"), MemoryError()),
}
OTHER = {
    "named": lambda: FileNotFoundError(2, "No such file", "(memory allocation failed)"),
    "pillow": lambda: UnidentifiedImageError(
        "cannot identify image file <_io.BufferedReader name='out of memory bad_alloc "
        "(memory allocation failed)'>"
    ),
    "ours": lambda: ImageError("out of memory.png: cannot be decoded"),
    "value": lambda: ValueError("DefaultCPUAllocator"),
    "runtime": lambda: RuntimeError("shape '[3]' is invalid for input of size 4"),
    "interrupt": KeyboardInterrupt,
}


@pytest.mark.parametrize("make", USED_UP.values(), ids=USED_UP)
def test_every_librarys_error_is_recognised_and_is_one_line(
    make: Callable[[], BaseException],
) -> None:
    error = make()
    assert is_out_of_memory(error)
    status, line = explain(error)
    assert status == 2
    assert len(line.splitlines()) == 1
    if not isinstance(error, TimmscopeError):
        assert line.startswith("error: out of memory; close other programs, or try a smaller")


@pytest.mark.parametrize("make", OTHER.values(), ids=OTHER)
def test_other_errors_are_not_taken_for_used_up_memory_whatever_files_are_called(
    make: Callable[[], BaseException],
) -> None:
    assert not is_out_of_memory(make())


def test_what_python_raises_for_deep_nesting_is_not_passed_on_as_used_up_memory() -> None:
    def convert() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("nested too deeply") from None

    with pytest.raises(ValueError) as caught:
        convert()
    assert not is_out_of_memory(caught.value)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    pixels = (tiny_images(4).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    np.save(folder / "images.npy", pixels)
    return mine(tiny_model(), folder / "images.npy", folder / "s.scope", layers=["act2"], workers=0)


def test_a_shard_that_hdf5_has_no_memory_for_is_not_called_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("Unable to synchronously open file (memory allocation failed)")

    monkeypatch.setattr(h5py, "File", full)
    with pytest.raises(StoreError, match="not enough memory to read it; free some") as caught:
        store.layer("act2").pooled[:]
    assert not isinstance(caught.value, StoreCorrupted)


@pytest.mark.parametrize("place", ["forward", "trace", "collector"])
def test_a_pass_that_runs_out_of_memory_says_so_and_resumes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from timmscope.collectors.statistics import Statistics

    def full(*_: Any, **__: Any) -> None:
        raise USED_UP["torch"]()

    model = tiny_model()
    images = store.path.parent / "images.npy"
    options: dict[str, Any] = {"layers": ["act2"], "workers": 0, "batch_size": 2, "shard_size": 2}
    if place != "trace":
        model.layers  # noqa: B018
    with monkeypatch.context() as patch:
        if place == "collector":
            patch.setattr(Statistics, "update", full)
        else:
            patch.setattr(type(model.module), "forward", full)
        with pytest.raises(
            StoreError, match=r"not enough memory; .*what is finished is kept"
        ) as no:
            mine(model, images, tmp_path / "s.scope", **options)
    assert not isinstance(no.value, PluginError)
    again = mine(model, images, tmp_path / "s.scope", **options)
    np.testing.assert_array_equal(again.layer("act2").pooled[:], store.layer("act2").pooled[:])


def test_a_model_is_not_left_unfused_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    model = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(copy, "deepcopy", full)
        with pytest.raises(MemoryError):
            model.fused()
    assert model.fused() is not model


def test_a_result_that_there_is_no_memory_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.faults.work import Save

    Save.sheet(1).save(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", full)
        with pytest.raises(TimmscopeError, match="there is not enough memory to read the result"):
            load_result(tmp_path)
    assert load_result(tmp_path).provenance.seed == 1
