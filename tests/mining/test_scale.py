"""What a store of a billion images needs: few shards, few bytes, a fixed order of merging."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.mining.contents import contents
from tests.mining.synthetic import write_synthetic

from timmscope import HookedModel
from timmscope.collectors import Collector, LayerBatch
from timmscope.collectors.base import State
from timmscope.collectors.merge_tree import MergeTree
from timmscope.mining import mine, pipeline, verify
from timmscope.mining.plan import default_shard_size
from timmscope.store import Manifest, Store, shard_strings
from timmscope.store.journal import NAME as JOURNAL
from timmscope.store.journal import add_to_journal
from timmscope_registry import StoreError


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 1024), (16_384 * 1024, 1024), (16_384 * 1024 + 1, 2048), (10**9, 61_440)],
)
def test_a_store_has_at_most_16384_shards(count: int, size: int) -> None:
    assert default_shard_size(count) == size
    assert -(-count // size) <= 16_384


class Order(Collector):
    """Its state is the order in which states were merged, as text."""

    name = "order"

    def __init__(self) -> None:
        self.text = ""

    def update(self, batch: LayerBatch) -> None:
        raise NotImplementedError

    def merge(self, other: Order) -> None:
        self.text = f"({self.text}{other.text})"

    def state(self) -> State:
        return {"text": np.array([self.text.encode()])}

    def load(self, state: State) -> None:
        self.text = bytes(state["text"][0]).decode()


def merged(states: list[State]) -> str:
    tree = MergeTree(Order())
    for state in states:
        tree.add(state)
    whole = tree.merged()
    assert isinstance(whole, Order)
    return whole.text


def test_states_are_merged_as_a_tree_and_aligned_runs_in_parallel_alike() -> None:
    leaves: list[State] = [{"text": np.array([str(i).encode()])} for i in range(7)]
    assert merged(leaves[:1]) == "0"
    assert merged(leaves[:5]) == "(((01)(23))4)"
    assert merged(leaves) == "(((01)(23))((45)6))"
    runs: list[State] = [
        {"text": np.array([merged(run).encode()])} for run in (leaves[:4], leaves[4:])
    ]
    assert merged(runs) == merged(leaves)


def test_names_are_read_by_shard_and_only_some_shards_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_synthetic(tmp_path / "s", 95, width=4, shard_size=10, reductions=False)
    expected = [f"dir000/{i:07d}.jpg" for i in range(95)]
    monkeypatch.setattr(shard_strings, "_KEPT", 30)
    names = store.images.paths
    reads: list[int] = []
    column = store.files.column
    monkeypatch.setattr(
        store.files, "column", lambda number, name: reads.append(number) or column(number, name)
    )
    assert len(names) == 95
    assert list(names) == expected
    assert reads == list(range(10))
    assert len(names._kept) == 3
    assert names[94] == names[-1] == expected[94]
    assert names[85:73:-4] == expected[85:73:-4]
    assert reads == list(range(10))  # the last three shards were kept
    assert names.take([3, 94, 3, 12]) == [expected[i] for i in (3, 94, 3, 12)]
    assert reads[10:] == [0, 1, 9]  # 9 was used longest ago when 0 was read
    with pytest.raises(IndexError):
        names[95]


def test_the_number_of_threads_is_that_of_the_store(
    small_model: HookedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    reduce = pipeline.reduce_batch

    def reduce_some(*arguments: object) -> object:
        seen.add(torch.get_num_threads())
        if len(arguments) and stop:
            raise KeyboardInterrupt
        return reduce(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "reduce_batch", reduce_some)
    settings = {"layers": ["layer1"], "workers": 0, "shard_size": 16}
    stop = True
    with pytest.raises(KeyboardInterrupt):
        mine(small_model, pictures, tmp_path / "s", threads=2, **settings)  # type: ignore[arg-type]
    assert torch.get_num_threads() == 1
    stop = False
    store = mine(small_model, pictures, tmp_path / "s", **settings)  # type: ignore[arg-type]
    assert seen == {2}
    assert store.manifest.threads == 2
    assert torch.get_num_threads() == 1


def test_the_manifest_is_written_as_often_for_many_shards_as_for_few(
    small_model: HookedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Path] = []
    write = Manifest.write
    monkeypatch.setattr(
        Manifest, "write", lambda self, folder: writes.append(folder) or write(self, folder)
    )
    for size in (40, 5):
        mine(
            small_model,
            pictures,
            tmp_path / str(size),
            layers=["layer1"],
            workers=0,
            shard_size=size,
        )
    assert writes.count(tmp_path / "40") == writes.count(tmp_path / "5") <= 3


def test_a_journal_that_a_killed_pass_left_is_removed(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = mine(small_model, pictures, tmp_path / "s", layers=["layer1"], workers=0, shard_size=16)
    expected = contents(store.path)
    manifest = Manifest.read(store.path)
    add_to_journal(store.path, manifest.pass_digest(), 1, manifest.shards[1])
    assert Store.open(store.path).manifest == manifest
    mine(small_model, pictures, store.path)
    assert not (store.path / JOURNAL).exists()
    assert contents(store.path) == expected


def test_a_repair_without_space_leaves_the_store_as_it_is(
    small_model: HookedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mine(small_model, pictures, tmp_path / "s", layers=["layer1"], workers=0, shard_size=16)
    path = store.path / "shards/00001.h5"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    before = contents(store.path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(StoreError, match="has 0 B free"):
        verify(store.path, repair=True, model=small_model, images=pictures)
    assert contents(store.path) == before
