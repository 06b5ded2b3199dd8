"""A store whose manifest lies, with digests that fit, is refused in one line or read as it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.store.forging import forged, odd_arrays
from tests.store.rewriting import read_arrays, write_arrays

from timmscope import Store, TimmscopeError, checked_json, mine, search, verify
from timmscope.store.journal import NAME as JOURNAL
from timmscope.testing import tiny_model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("forged"), tiny_model()
    shape = (10, *model.input_size[1:], 3)
    np.save(folder / "a.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    settings = {"layers": ["act2"], "shard_size": 4, "batch_size": 2, "top_k": 3, "workers": 0}
    return mine(model, folder / "a.npy", folder / "s.scope", **settings).path  # type: ignore[arg-type]


def read_all(path: Path) -> list[str]:
    """Read a store in every way, and return the messages of the errors."""
    readers: list[Callable[[Store], object]] = [
        repr,
        lambda store: store.images.paths[:],
        lambda store: store.images.labels[:],
        lambda store: store.images.where("width > 3"),
        lambda store: store.images.unreadable(),
        lambda store: [store.layer(name).pooled[:] for name in store.layers],
        lambda store: [store.layer(name).top(2, 3) for name in store.layers],
        lambda store: [store.layer(name).statistics().quantile(0.5) for name in store.layers],
        lambda store: [store.collector(name, "top-k") for name in store.layers],
        lambda store: [search(store, np.ones(12, "f4"), layer=n, k=2) for n in store.layers],
        lambda store: verify(store.path),
    ]
    messages = []
    for read in readers:
        try:
            read(Store.open(path))
        except TimmscopeError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.soak)])
def test_no_forged_manifest_causes_an_untyped_error(store: Path, step: int) -> None:
    path = store / "manifest.json"
    whole = path.read_bytes()
    refused = 0
    try:
        for number, (what, values) in enumerate(forged(checked_json.load(whole))):
            if number % step:
                continue
            path.write_bytes(checked_json.dump(values))
            messages = read_all(store)
            assert all(len(message.splitlines()) == 1 for message in messages), what
            refused += bool(messages)
    finally:
        path.write_bytes(whole)
    assert refused > 1500 // step
    assert read_all(store) == []


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["reduced/merged.h5", "shards/00001.h5"])
def test_no_forged_array_causes_an_untyped_error(store: Path, name: str, step: int) -> None:
    files = [store / name, store / "manifest.json"]
    whole = [file.read_bytes() for file in files]
    arrays = read_arrays(store, name)
    every = [(path, what, odd) for path in arrays for what, odd in odd_arrays(arrays[path])]
    try:
        for path, what, odd in every[::step]:
            write_arrays(store, name, {**arrays, path: odd})
            messages = read_all(store)
            assert all(len(message.splitlines()) == 1 for message in messages), (path, what)
    finally:
        for file, data in zip(files, whole, strict=True):
            file.write_bytes(data)
    assert read_all(store) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": {"location": "", "count": 10**12, "fingerprint": "f"}}, "at most 1048576"),
        ({"shard_size": 0}, "greater than or equal to 1"),
        ({"part": [0, 0]}, "greater than or equal to 1"),
        ({"part": [3, 2]}, "part 3 of 2"),
        ({"batch_size": -1}, "greater than or equal to 1"),
        ({"schema": 3.5}, "schema is 3.5"),
    ],
)
def test_sizes_that_make_no_sense_are_named(
    store: Path, change: dict[str, object], reason: str
) -> None:
    path = store / "manifest.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(checked_json.dump({**checked_json.load(whole), **change}))
        with pytest.raises(TimmscopeError, match=f"the manifest is damaged .*{reason}"):
            Store.open(store)
        path.write_bytes(json.dumps({"schema": 3}).encode().replace(b"3", b"Infinity"))
        with pytest.raises(TimmscopeError, match=r"the manifest is damaged"):
            Store.open(store)
        path.write_bytes(b'{"schema": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        with pytest.raises(TimmscopeError, match=r"the manifest is damaged"):
            Store.open(store)
    finally:
        path.write_bytes(whole)


def test_an_edit_or_a_flipped_bit_of_the_manifest_is_noticed(store: Path) -> None:
    path = store / "manifest.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    try:
        path.write_bytes(whole.replace(b'"batch_size": 2', b'"batch_size": 3'))
        with pytest.raises(TimmscopeError, match="differs from its digest, so it was damaged or"):
            Store.open(store)
        for place in rng.integers(0, len(whole), 200):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                read = Store.open(store).manifest.to_bytes()
            except TimmscopeError:
                continue
            assert read == whole  # a space that became a tab or a newline
    finally:
        path.write_bytes(whole)


def test_lines_of_a_journal_that_lie_do_not_count(store: Path) -> None:
    manifest = Store.open(store).manifest
    record = manifest.shards[1].model_dump(mode="json")
    digest = manifest.pass_digest()
    lines = [
        checked_json.dump({"pass": digest, "shard": 1, **record, "start": 5}),
        checked_json.dump({"pass": digest, "shard": "1", **record}),
        checked_json.dump({"pass": "0" * 64, "shard": 2, **record}),
        checked_json.dump({"pass": digest, "shard": 10**18, **record}),
        checked_json.dump({"pass": digest, "shard": 1, **record}).replace(b"rows", b"rowz"),
        b"\0" * 5000 + b"\n",
        b"{" * 4000,
    ]
    try:
        for line in lines[1:]:
            (store / JOURNAL).write_bytes(line)
            assert Store.open(store).manifest == manifest
        (store / JOURNAL).write_bytes(lines[0])
        with pytest.raises(TimmscopeError, match="shard 1 with images 5 to 7"):
            Store.open(store)
    finally:
        (store / JOURNAL).unlink()
