"""Parts that were mined separately merge to the bytes of one pass, or an error says why not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mining.contents import contents
from tests.processes import Running, run_code

from timmscope import HookedModel, load_model
from timmscope.images import FolderSource
from timmscope.mining import merge, mine, verify
from timmscope.mining.shard_writer import CRASH_VARIABLE
from timmscope.store import Manifest, Store, files
from timmscope_registry import (
    ImageError,
    ParameterError,
    StoreCorrupted,
    StoreError,
    StoreMismatch,
)

SETTINGS: dict[str, Any] = {
    "layers": ["layer1", "global_pool"],
    "maps": ["layer2"],
    "batch_size": 5,
    "shard_size": 6,
    "top_k": 6,
    "workers": 0,
}
SHARDS = 7  # 40 images


def run(model: HookedModel, pictures: Any, out: Path, **options: Any) -> Store:
    return mine(model, pictures, out, **{**SETTINGS, **options})


@pytest.fixture(scope="module")
def whole(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the store of one uninterrupted pass. Do not change it."""
    return run(small_model, pictures, tmp_path_factory.mktemp("whole") / "whole.scope").path


@pytest.fixture(scope="module")
def thirds(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Return the same pass in three parts. Do not change them."""
    folder = tmp_path_factory.mktemp("thirds")
    return [
        run(small_model, pictures, folder / f"p{i}.scope", ranges=(i, 3)).path for i in (1, 2, 3)
    ]


@pytest.fixture
def own_thirds(thirds: list[Path], tmp_path: Path) -> list[Path]:
    """Return copies of the parts that the test may change."""
    return [shutil.copytree(part, tmp_path / part.name) for part in thirds]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_any_number_of_parts_merges_to_the_bytes_of_one_pass(
    small_model: HookedModel, pictures: Path, whole: Path, tmp_path: Path, count: int
) -> None:
    parts = [
        run(small_model, pictures, tmp_path / f"p{i}", ranges=(i, count))
        for i in range(1, count + 1)
    ]
    held = [list(part.manifest.shards) for part in parts]
    assert list(itertools.chain(*held)) == list(range(SHARDS))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    merged = merge(parts, tmp_path / "merged.scope")
    assert merged.complete
    assert contents(merged.path) == contents(whole)
    assert verify(merged.path).ok


def test_the_order_of_the_parts_does_not_matter(
    thirds: list[Path], whole: Path, tmp_path: Path
) -> None:
    for number, order in enumerate(itertools.permutations(thirds)):
        merged = merge(order, tmp_path / str(number))
        assert contents(merged.path) == contents(whole)


def test_parts_mined_by_processes_at_the_same_time_merge_to_one_pass(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    code = """
import sys
from timmscope import load_model, mine
model = load_model("random:test_resnet?seed=0&img_size=32")
mine(model, sys.argv[1], sys.argv[2], ranges=(int(sys.argv[3]), 4), **eval(sys.argv[4]))
"""
    parts = [tmp_path / f"p{i}.scope" for i in range(1, 5)]
    processes = [
        Running(code, pictures, part, i, repr(SETTINGS)) for i, part in enumerate(parts, start=1)
    ]
    assert [process.done().returncode for process in processes] == [0] * 4
    assert contents(merge(parts, tmp_path / "merged").path) == contents(whole)


def test_a_killed_part_resumes_and_is_completed(
    small_model: HookedModel, pictures: Path, thirds: list[Path], tmp_path: Path
) -> None:
    code = f"""
from timmscope import load_model, mine
model = load_model("random:test_resnet?seed=0&img_size=32")
mine(model, {str(pictures)!r}, {str(tmp_path / "p")!r}, ranges=(2, 3), **{SETTINGS!r})
"""
    assert run_code(code, **{CRASH_VARIABLE: "rows:3"}).returncode == -9
    assert list(Manifest.read(tmp_path / "p").shards) == [2]
    resumed = mine(small_model, pictures, tmp_path / "p")  # `ranges` is taken from the store
    assert resumed.manifest.part == (2, 3)
    assert contents(resumed.path) == contents(thirds[1])


def test_errors_of_a_part_name_the_part_and_the_merge_that_is_needed(thirds: list[Path]) -> None:
    part = Store.open(thirds[1])
    assert part.complete
    assert repr(part).startswith("<Store p2.scope: part 2 of 3 of 40 images, 3 layers")
    assert part.manifest.missing == []
    for use in (
        lambda: part.layer("layer1").pooled,
        lambda: part.layer("layer1").top(0),
        lambda: part.layer("layer1").statistics(),
        lambda: list(part.layer("layer1").iter_rows()),
        lambda: part.images.paths,
    ):
        with pytest.raises(StoreError, match=r"part 2 of 3, .* join .* timmscope merge PARTS -o"):
            use()
    ids = [i for i, _ in part.layer("layer1").iter_rows(shards=part.manifest.shards)]
    assert np.concatenate(ids).tolist() == list(range(12, 24))


def test_verify_and_repair_work_on_a_part(
    small_model: HookedModel, thirds: list[Path], own_thirds: list[Path]
) -> None:
    before = contents(thirds[2])
    assert verify(own_thirds[2]).ok
    (own_thirds[2] / "shards/00005.h5").unlink()
    report = verify(own_thirds[2], repair=True, model=small_model)
    assert (report.repaired, report.missing, report.ok) == (("shards/00005.h5",), (), True)
    assert contents(own_thirds[2]) == before


def test_mining_another_part_or_the_whole_into_the_folder_of_a_part_is_refused(
    small_model: HookedModel, pictures: Path, own_thirds: list[Path], whole: Path, tmp_path: Path
) -> None:
    for ranges, this in (((2, 3), "2 of 3"), ((1, 2), "1 of 2")):
        with pytest.raises(StoreMismatch, match=f"part: the store has 1 of 3, this run {this}"):
            run(small_model, pictures, own_thirds[0], ranges=ranges)
    copy = shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(StoreMismatch, match="part: the store has the whole, this run 1 of 2"):
        run(small_model, pictures, copy, ranges=(1, 2))


@pytest.mark.parametrize("ranges", [(0, 3), (4, 3), (1, 0), (-1, -1)])
def test_impossible_ranges_are_refused(
    small_model: HookedModel, pictures: Path, tmp_path: Path, ranges: tuple[int, int]
) -> None:
    with pytest.raises(ParameterError, match=r"expected i/n with i from 1 to n"):
        run(small_model, pictures, tmp_path / "s", ranges=ranges)


def test_more_parts_than_shards_are_refused_with_the_number_that_fits(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r"40 images make 7 shards of 6; make at most 7"):
        run(small_model, pictures, tmp_path / "s", ranges=(1, 8))


def test_missing_and_unfinished_parts_are_named(own_thirds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoreError, match=r"^part 2 of 3 is missing$"):
        merge([own_thirds[0], own_thirds[2]], out)
    with pytest.raises(StoreError, match=r"^parts 1, 3 of 3 are missing$"):
        merge([own_thirds[1]], out)
    Manifest.read(own_thirds[1]).without_shards({3}).write(own_thirds[1])
    with pytest.raises(StoreError, match=r"^p2\.scope is not finished: 1 of 2 shards are missing"):
        merge(own_thirds, out)
    with pytest.raises(StoreError, match=r"p2\.scope is not finished.*; part 3 of 3 is missing"):
        merge(own_thirds[:2], out)
    assert not out.exists()


def test_shards_may_come_from_parts_of_different_divisions(
    small_model: HookedModel, pictures: Path, thirds: list[Path], whole: Path, tmp_path: Path
) -> None:
    half = run(small_model, pictures, tmp_path / "half", ranges=(1, 2)).path  # shards 0 to 2
    assert contents(merge([thirds[2], half, thirds[1]], tmp_path / "a").path) == contents(whole)
    fourth = run(small_model, pictures, tmp_path / "fourth", ranges=(5, 7)).path
    with pytest.raises(StoreError, match=r"1 of 7 shards are in none of the parts.*18 and 23"):
        merge([half, thirds[2], fourth], tmp_path / "b")


def test_parts_of_different_models_settings_or_images_are_refused_with_the_difference(
    small_model: HookedModel, own_pictures: Path, pictures: Path, thirds: list[Path], tmp_path: Path
) -> None:
    other = load_model("random:test_resnet?seed=1&img_size=32")
    wrong = run(other, pictures, tmp_path / "model", ranges=(2, 3))
    with pytest.raises(StoreMismatch, match=r"model: p1\.scope has .*seed=0.*, model .*seed=1"):
        merge([thirds[0], wrong, thirds[2]], tmp_path / "out")
    wrong = run(small_model, pictures, tmp_path / "k", ranges=(2, 3), top_k=7)
    with pytest.raises(StoreMismatch, match=r"top-k parameters: p1\.scope has \{'k': 6\}, k "):
        merge([thirds[0], wrong, thirds[2]], tmp_path / "out")
    FolderSource(own_pictures).file(7).unlink()
    FolderSource(own_pictures).file(7).unlink()
    wrong = run(small_model, own_pictures, tmp_path / "images", ranges=(2, 3))
    with pytest.raises(StoreMismatch, match=r"number of images: p1\.scope has 40, images 38"):
        merge([thirds[0], wrong, thirds[2]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_different_versions_of_a_shard_are_refused(
    own_thirds: list[Path], tmp_path: Path
) -> None:
    twin = shutil.copytree(own_thirds[0], tmp_path / "twin")
    assert merge([*own_thirds, twin], tmp_path / "good").complete
    manifest = Manifest.read(twin)
    record = manifest.shards[1]
    changed = record.rows.model_copy(update={"sha256": "0" * 64})
    manifest.with_shard(1, record.model_copy(update={"rows": changed})).write(twin)
    with pytest.raises(StoreMismatch, match=r"shard 1: p1\.scope and twin have different data"):
        merge([*own_thirds, twin], tmp_path / "out")


def test_parts_of_other_library_versions_are_refused(
    own_thirds: list[Path], tmp_path: Path
) -> None:
    manifest = Manifest.read(own_thirds[1])
    manifest.model_copy(update={"versions": {**manifest.versions, "torch": "1"}}).write(
        own_thirds[1]
    )
    with pytest.raises(StoreMismatch, match=r"torch version: p1\.scope has .*, p2\.scope 1"):
        merge(own_thirds, tmp_path / "out")


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", ["shards/00003.h5", "reduced/00002.h5"])
def test_a_damaged_shard_of_a_part_is_named_and_the_merge_succeeds_after_a_repair(
    small_model: HookedModel,
    own_thirds: list[Path],
    whole: Path,
    tmp_path: Path,
    damage: str,
    name: str,
) -> None:
    path = own_thirds[1] / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    with pytest.raises(StoreCorrupted, match=rf"p2\.scope/{name}: .*verify --repair .*p2\.scope"):
        merge(own_thirds, tmp_path / "out")
    verify(own_thirds[1], repair=True, model=small_model)
    assert contents(merge(own_thirds, tmp_path / "out").path) == contents(whole)


@pytest.mark.parametrize("point", ["joined:0", "joined:4", "joined:6"])
def test_a_killed_merge_resumes(
    thirds: list[Path], whole: Path, tmp_path: Path, point: str
) -> None:
    code = f"from timmscope import merge; merge({[*map(str, thirds)]!r}, {str(tmp_path / 'm')!r})"
    assert run_code(code, **{CRASH_VARIABLE: point}).returncode == -9
    assert not Store.open(tmp_path / "m").complete
    assert contents(merge(thirds, tmp_path / "m").path) == contents(whole)


def test_shards_are_linked_or_else_copied(
    thirds: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = merge(thirds, tmp_path / "linked").path
    assert (linked / "shards/00002.h5").samefile(thirds[1] / "shards/00002.h5")
    assert not list(linked.rglob("*.tmp"))

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    copied = merge(thirds, tmp_path / "copied").path
    assert not (copied / "shards/00002.h5").samefile(thirds[1] / "shards/00002.h5")
    assert contents(copied) == contents(linked) == contents(whole)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_a_merge_to_another_file_system_copies(thirds: list[Path], whole: Path) -> None:
    out = Path("/dev/shm") / f"timmscope-test-{os.getpid()}"
    try:
        assert contents(merge(thirds, out).path) == contents(whole)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_repairing_a_merged_store_does_not_change_the_parts(
    small_model: HookedModel, own_thirds: list[Path], tmp_path: Path
) -> None:
    merged = merge(own_thirds, tmp_path / "m").path
    before = contents(own_thirds[0])
    inode = (own_thirds[0] / "shards/00000.h5").stat().st_ino
    (merged / "shards/00000.h5").unlink()
    assert verify(merged, repair=True, model=small_model).ok
    assert contents(own_thirds[0]) == before
    assert (own_thirds[0] / "shards/00000.h5").stat().st_ino == inode


def test_merging_again_changes_nothing_and_other_folders_are_refused(
    small_model: HookedModel, pictures: Path, thirds: list[Path], tmp_path: Path
) -> None:
    merged = merge(thirds, tmp_path / "m").path
    times = {path: path.stat().st_mtime_ns for path in merged.rglob("*.h5")}
    assert merge(thirds, merged).complete
    assert {path: path.stat().st_mtime_ns for path in merged.rglob("*.h5")} == times
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("x")
    with pytest.raises(StoreError, match=r"not a store, and not empty \(notes\.txt"):
        merge(thirds, tmp_path / "full")
    with pytest.raises(ParameterError, match="is one of the parts"):
        merge(thirds, thirds[1])
    other = run(small_model, pictures, tmp_path / "other", top_k=3).path
    with pytest.raises(StoreMismatch, match=r"other was made from something else .*top-k"):
        merge(thirds, other)


def test_a_merge_takes_the_location_of_the_images_from_its_first_part(
    small_model: HookedModel, pictures: Path, thirds: list[Path], whole: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(pictures, tmp_path / "moved")
    second = run(small_model, moved, tmp_path / "p2", ranges=(2, 3)).path
    merged = merge([second, thirds[2], thirds[0]], tmp_path / "m")
    assert merged.manifest.images.location == f"folder:{pictures}"
    assert contents(merged.path) == contents(whole)


def test_a_part_without_readable_images_is_merged_if_another_part_has_some(
    small_model: HookedModel, own_pictures: Path, tmp_path: Path
) -> None:
    source = FolderSource(own_pictures)
    for i in range(12, 24):  # all of the second third
        source.file(i).write_bytes(b"x")
    whole = run(small_model, source, tmp_path / "whole").path
    parts = [run(small_model, source, tmp_path / f"p{i}", ranges=(i, 3)).path for i in (1, 2, 3)]
    assert contents(merge(parts, tmp_path / "m").path) == contents(whole)
    for i in range(40):
        source.file(i).write_bytes(b"x")
    parts = [run(small_model, source, tmp_path / f"q{i}", ranges=(i, 2)).path for i in (1, 2)]
    with pytest.raises(ImageError, match="none of the 40 images can be read"):
        merge(parts, tmp_path / "n")


def test_a_disk_too_small_for_the_copies_is_an_error_before_the_first_shard(
    thirds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert merge(thirds, tmp_path / "linked").complete  # links take no space
    if Path("/dev/shm").is_dir():
        out = Path("/dev/shm") / f"timmscope-test-{os.getpid()}"
        try:
            with pytest.raises(StoreError, match=r"have to be copied .* 1e\+03 B free|1 KB free"):
                merge(thirds, out)
        finally:
            shutil.rmtree(out, ignore_errors=True)


def test_a_merged_manifest_is_plain_json_with_every_shard(
    thirds: list[Path], tmp_path: Path
) -> None:
    merged = merge(thirds, tmp_path / "m").path
    data = json.loads((merged / "manifest.json").read_text())
    assert data["part"] is None
    assert list(map(int, data["shards"])) == list(range(SHARDS))
    assert data["merged"]["sha256"] == files.sha256(merged / "reduced/merged.h5")
