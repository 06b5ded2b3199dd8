"""Killed merges and full disks lose no finished shard, and a second attempt succeeds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.mining.contents import contents
from tests.processes import run_code

from timmscope import HookedModel
from timmscope.mining import merge, mine, verify
from timmscope.store import Manifest, Store
from timmscope.store.shards import MERGED, rows_file
from timmscope_registry import StoreError

SETTINGS: dict[str, Any] = {
    "layers": ["layer1", "global_pool"],
    "maps": ["layer2"],
    "batch_size": 5,
    "shard_size": 6,
    "top_k": 6,
    "workers": 0,
}


@pytest.fixture(scope="module")
def whole(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the store of one uninterrupted pass. Do not change it."""
    return mine(small_model, pictures, tmp_path_factory.mktemp("w") / "whole", **SETTINGS).path


@pytest.fixture(scope="module")
def halves(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Return the same pass in two parts. Do not change them."""
    folder = tmp_path_factory.mktemp("h")
    return [
        mine(small_model, pictures, folder / f"p{i}", ranges=(i, 2), **SETTINGS).path
        for i in (1, 2)
    ]


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.soak)])
def test_merges_killed_at_random_moments_end_in_the_bytes_of_one_pass(
    halves: list[Path], whole: Path, tmp_path: Path, kills: int
) -> None:
    done = run_code("tests.mining.killing_merges", tmp_path, kills, *halves)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout), "no kill hit a merge between its first shard and its end"
    expected = contents(whole)
    others = list(tmp_path.iterdir())
    assert len(others) > kills // 4
    for other in others:
        assert contents(other) == expected, other.name
        assert not list(other.rglob("*.tmp"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a small disk; the function changes its size to a number of bytes, and returns it."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: int) -> Path:
        option = f"size={-(-size // 4096) * 4096}" + (",remount" if place.is_mount() else "")
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
        subprocess.run(command, check=True, capture_output=True)
        return place

    try:
        resize(1 << 20)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system here")
    yield resize
    with suppress(OSError):
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["mine", "merge"])
def test_a_disk_that_fills_up_is_a_one_line_error_and_the_work_resumes_when_there_is_space(
    small_model: HookedModel,
    pictures: Path,
    halves: list[Path],
    whole: Path,
    disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    share: float,
) -> None:
    def run(out: Path) -> Store:
        if kind == "merge":
            return merge(halves, out)
        return mine(small_model, pictures, out, **SETTINGS)

    expected = contents(whole)
    total = sum(-(-len(data) // 4096) * 4096 for data in expected.values())
    usage = shutil.disk_usage(whole)
    with monkeypatch.context() as patch:  # as if others had filled the disk after the check
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 40))
        out = disk(int(share * total)) / "s"
        with pytest.raises(StoreError, match="the disk is full") as caught:
            run(out)
        assert "\n" not in str(caught.value)
        assert not list(out.rglob("*.tmp"))
        left = {name: data for name, data in contents(out).items() if name.endswith(".h5")}
        assert all(expected[name] == data for name, data in left.items())
        assert bool(left) == (share > 0.2)
        if left:
            assert {item.file for item in verify(out).damage} <= {MERGED}
    disk(4 * total)
    listed = Manifest.read(out).shards if left else {}
    kept = {n: (out / rows_file(n)).stat().st_ino for n in listed}
    assert contents(run(out).path) == expected
    assert {n: (out / rows_file(n)).stat().st_ino for n in kept} == kept
