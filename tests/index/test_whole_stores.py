"""`verify` checks and repairs the indexes of a store, and `merge` builds those of the whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mining.contents import contents
from tests.mining.synthetic import LAYER, write_synthetic
from tests.processes import run_code, run_command

from timmscope import Store, VectorIndex, checked_json
from timmscope.mining import merge, verify
from timmscope.progress import reporting

FILE = f"index/{LAYER}.faiss"
COUNT, SHARD = 3000, 250


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with an `ivf` index. Do not change it."""
    store = write_synthetic(
        tmp_path_factory.mktemp("store") / "s.scope",
        COUNT,
        width=16,
        shard_size=SHARD,
        unreadable=[7],
    )
    VectorIndex.build(store.layer(LAYER), metric="l2", backend="ivf", recall=0.9, seed=2).save()
    return store.path


@pytest.fixture
def own(mined: Path, tmp_path: Path) -> Path:
    """Return a copy of the store that a test may damage."""
    return shutil.copytree(mined, tmp_path / "own.scope")


def truncate(store: Path) -> None:
    os.truncate(store / FILE, 5000)


def flip(store: Path) -> None:
    data = bytearray((store / FILE).read_bytes())
    data[len(data) // 2] ^= 4
    (store / FILE).write_bytes(data)


def edit_record(store: Path, **changes: Any) -> None:
    path = (store / FILE).with_suffix(".json")
    path.write_bytes(checked_json.dump({**checked_json.load(path.read_bytes()), **changes}))


def other_rows(store: Path) -> None:
    edit_record(store, shards={"0": "0" * 64})


DAMAGE: dict[str, Callable[[Path], None]] = {
    r"has 5000 bytes, \d+ were written": truncate,
    "was altered: its SHA-256": flip,
    "there is no index": lambda store: (store / FILE).unlink(),
    r"was built before 1 of the shards \(first 0\) of .* changed": other_rows,
    "holds rows of module:synthetic, but .* other weights": lambda store: edit_record(
        store, weights_sha256="1" * 64
    ),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_index_is_named_and_built_again_with_its_settings(
    own: Path, mined: Path, reason: str
) -> None:
    assert verify(own).ok
    assert verify(own).checked == COUNT // SHARD * 2 + 2  # two per shard, merged state and index
    DAMAGE[reason](own)
    report = verify(own)
    assert [item.file for item in report.damage] == [FILE]
    assert not report.ok
    assert re.search(reason, report.damage[0].reason)
    repaired = verify(own, repair=True)
    assert (repaired.repaired, repaired.changed, repaired.ok) == ((FILE,), (), True)
    assert (own / FILE).read_bytes() == (mined / FILE).read_bytes()
    assert VectorIndex.load(own).settings == VectorIndex.load(mined).settings
    assert verify(own).ok


def test_an_index_whose_settings_are_lost_is_not_repaired_and_a_warning_says_so(own: Path) -> None:
    (own / FILE).with_suffix(".json").unlink()
    before = (own / FILE).read_bytes()
    with pytest.warns(UserWarning, match="cannot be built again .*settings.*timmscope index build"):
        report = verify(own, repair=True)
    assert (report.repaired, report.ok) == ((), False)
    assert "json is missing" in report.damage[0].reason
    assert (own / FILE).read_bytes() == before


def test_an_index_with_removed_rows_is_not_built_again_with_them(own: Path) -> None:
    index = VectorIndex.load(own)
    index.remove([3, 4])
    index.save()
    flip(own)
    with pytest.warns(UserWarning, match="2 rows were removed from it"):
        assert not verify(own, repair=True).ok


def test_an_index_that_lacks_new_rows_is_not_damaged(tmp_path: Path) -> None:
    store = write_synthetic(tmp_path / "s", 40, width=8, shard_size=10, shards=[0, 1])
    VectorIndex.build(store.layer(LAYER)).save()
    write_synthetic(tmp_path / "s", 40, width=8, shard_size=10)
    report = verify(tmp_path / "s")
    assert report.ok
    with pytest.warns(UserWarning, match="20 rows"):
        VectorIndex.load(tmp_path / "s")


def test_the_command_names_a_damaged_index_and_exits_with_2(own: Path) -> None:
    truncate(own)
    found = run_command("verify", own, "--json")
    assert found.returncode == 2
    assert json.loads(found.stdout)["damage"][0]["file"] == FILE
    assert run_command("verify", own, "--repair").returncode == 0
    assert json.loads(run_command("verify", own, "--json").stdout)["ok"]


# Parts


def parts_of(folder: Path, settings: dict[str, Any] | None) -> list[Path]:
    """Write the store in two parts, each with an index if there are settings."""
    half = COUNT // SHARD // 2
    made = []
    for number, shards in enumerate((range(half), range(half, 2 * half))):
        part = write_synthetic(
            folder / f"p{number}.scope",
            COUNT,
            width=16,
            shard_size=SHARD,
            unreadable=[7],
            shards=list(shards),
        )
        if settings is not None:
            VectorIndex.build(part.layer(LAYER), **settings).save()
        made.append(part.path)
    return made


SETTINGS: dict[str, Any] = {"metric": "l2", "backend": "ivf", "recall": 0.9, "seed": 2}


def test_merged_parts_have_the_index_of_one_run(mined: Path, tmp_path: Path) -> None:
    parts = parts_of(tmp_path, SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = merge(parts, tmp_path / "whole.scope")
    assert contents(whole.path) == contents(mined)
    status = (whole.path / FILE).stat()
    merge(parts[::-1], whole.path)  # nothing is left to do
    assert (whole.path / FILE).stat().st_ino == status.st_ino


def test_the_settings_are_those_of_the_first_index_and_a_warning_names_others(
    mined: Path, tmp_path: Path
) -> None:
    first, second = parts_of(tmp_path, SETTINGS)
    VectorIndex.build(Store.open(second).layer(LAYER), metric="cosine", recall=0.8).save()
    with pytest.warns(UserWarning, match=r"settings of p0.scope; p1.scope has others \(metric="):
        whole = merge([second, first], tmp_path / "a.scope")
    assert (whole.path / FILE).read_bytes() == (mined / FILE).read_bytes()
    shutil.rmtree(first / "index")
    with pytest.warns(UserWarning, match=r"settings of p1.scope; p0.scope has no index"):
        whole = merge([first, second], tmp_path / "b.scope")
    assert VectorIndex.load(whole).settings["metric"] == "cosine"
    (second / FILE).with_suffix(".json").unlink()
    with pytest.warns(UserWarning, match=r"an index of p1.scope is left out: .*json is missing"):
        whole = merge([first, second], tmp_path / "c.scope")
    assert not (whole.path / "index").exists()


def test_parts_without_an_index_merge_to_a_store_without_one(tmp_path: Path) -> None:
    whole = merge(parts_of(tmp_path, None), tmp_path / "whole.scope")
    assert not (whole.path / "index").exists()


def test_a_warning_says_that_rows_removed_from_a_part_are_indexed_again(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, SETTINGS)
    index = VectorIndex.load(parts[0])
    index.remove([1, 2])
    index.save()
    with pytest.warns(UserWarning, match=r"2 rows that were removed from that of p0.scope"):
        whole = merge(parts, tmp_path / "whole.scope")
    assert len(VectorIndex.load(whole)) == COUNT - 1


def test_a_store_is_merged_even_if_its_index_cannot_be_built(tmp_path: Path) -> None:
    half = parts_of(tmp_path, {**SETTINGS, "memory": 40_000})
    with pytest.warns(UserWarning, match=r"whole.scope gets no index of features: .*needs"):
        whole = merge(half, tmp_path / "whole.scope")
    assert whole.complete
    assert np.isfinite(whole.layer(LAYER).pooled[:5]).all()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["indexing", "training", "measuring recall"])
def test_a_merge_that_was_stopped_while_building_an_index_can_be_repeated(
    mined: Path, tmp_path: Path, moment: str
) -> None:
    class Stopping:
        @contextmanager
        def open(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
            if description == moment:
                raise Killed
            yield lambda steps: None

    parts = parts_of(tmp_path, SETTINGS)
    with pytest.raises(Killed), reporting(Stopping()):
        merge(parts, tmp_path / "whole.scope")
    assert not (tmp_path / "whole.scope" / FILE).exists()
    whole = merge(parts, tmp_path / "whole.scope")
    assert contents(whole.path) == contents(mined)


def test_a_merge_that_was_killed_while_saving_an_index_can_be_repeated(
    mined: Path, tmp_path: Path
) -> None:
    parts = parts_of(tmp_path, SETTINGS)
    code = f"""
import os
from timmscope.index.table import RowTable
from timmscope.mining import merge
from timmscope.progress import reporting
RowTable.write = lambda *arguments: os.kill(os.getpid(), 9)  # after the codes are written
merge({[str(part) for part in parts]!r}, {str(tmp_path / "whole.scope")!r})
"""
    assert run_code(code).returncode == -9
    assert [path.suffix for path in (tmp_path / "whole.scope" / "index").iterdir()] == [".tmp"]
    whole = merge(parts, tmp_path / "whole.scope")
    assert contents(whole.path) == contents(mined)
