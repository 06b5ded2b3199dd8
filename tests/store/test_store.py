"""A store returns exactly the values that were written, or raises a clear error."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timmscope.collectors import RELATIVE_ERROR
from timmscope.store import Store
from timmscope_registry import LayerNotFound, StoreError

COUNT = 50
BAD = [3, 48]
LAYERS = {"blocks.1/x": 5, "head": 7}

indices = st.one_of(
    st.integers(-COUNT, COUNT - 1),
    st.slices(COUNT),
    st.lists(st.integers(-COUNT, COUNT - 1), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).map(np.array),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(index=indices, column=st.one_of(st.none(), st.integers(0, 4), st.slices(5)))
def test_rows_are_indexed_as_numpy_arrays_are(known: Any, index: Any, column: Any) -> None:
    for kind in ("pooled", "max", "argmax", "maps"):
        expected = known.rows["blocks.1/x", kind]
        array = known.open().layer("blocks.1/x").rows(kind)
        key = index if column is None else (index, column)
        np.testing.assert_array_equal(array[key], expected[key])


def test_rows_have_shape_type_and_length(known: Any) -> None:
    layer = known.open().layer("blocks.1/x")
    assert layer.maps.shape == (COUNT, 5, 3, 4)
    assert layer.pooled.dtype == np.float32
    assert layer.argmax.dtype == np.int32
    assert len(layer.maximum) == len(layer) == COUNT
    np.testing.assert_array_equal(np.asarray(layer.pooled), known.rows["blocks.1/x", "pooled"])
    for wrong in (COUNT, -COUNT - 1, [0, COUNT]):
        with pytest.raises(IndexError):
            layer.pooled[wrong]


def test_rows_of_unreadable_images_are_nan_or_minus_one(known: Any) -> None:
    layer = known.open().layer("head")
    assert np.isnan(layer.pooled[BAD]).all()
    assert np.isnan(layer.maximum[BAD]).all()
    assert (layer.argmax[BAD] == -1).all()


@pytest.mark.parametrize("batch", [1, 7, 16, 1000])
def test_iter_rows_yields_all_readable_rows_in_order(known: Any, batch: int) -> None:
    layer = known.open().layer("head")
    parts = list(layer.iter_rows("max", batch))
    ids = np.concatenate([part[0] for part in parts])
    assert ids.tolist() == [i for i in range(COUNT) if i not in BAD]
    expected = known.rows["head", "max"][ids]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), expected)
    assert max(len(part[0]) for part in parts) <= min(batch, 16)
    everything = list(layer.iter_rows("max", batch, readable_only=False))
    assert np.concatenate([part[0] for part in everything]).tolist() == list(range(COUNT))


def test_the_image_table_keeps_names_labels_sizes_and_reasons(known: Any) -> None:
    images = known.open().images
    assert images.paths[0] == "né\nw/日本.png"
    assert images.paths[49] == "dir/49.png"
    assert images.labels[:4] == ["class 0", None, None, "class 1"]
    assert images.sizes[7].tolist() == [7, 14]
    assert np.flatnonzero(~images.readable).tolist() == BAD
    assert images.unreadable() == [
        (3, "dir/3.png", "3.png: the file is empty (0 bytes)"),
        (48, "dir/48.png", "48.png: cannot be decoded (x)"),
    ]
    assert images.reasons[5] == ""


def brute_force(known: Any, layer: str, unit: int, k: int) -> list[tuple[int, float, int]]:
    values, cells = known.rows[layer, "max"][:, unit], known.rows[layer, "argmax"][:, unit]
    found = [(i, float(v), int(c)) for i, (v, c) in enumerate(zip(values, cells, strict=True))]
    found = [entry for entry in found if np.isfinite(entry[1])]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:k]


@pytest.mark.parametrize("k", [1, 10, 11, 100])
def test_top_equals_brute_force_within_and_beyond_the_kept_list(known: Any, k: int) -> None:
    for name, units in LAYERS.items():
        layer = known.open().layer(name)
        for unit in range(units):
            expected = brute_force(known, name, unit, k)
            width = 4 if name == "blocks.1/x" else 1
            got = [(e.image_id, e.value, e.position) for e in layer.top(unit, k)]
            assert got == [(i, v, divmod(c, width)) for i, v, c in expected]


@pytest.mark.parametrize("kind", ["max", "pooled"])
def test_statistics_equal_numpy(known: Any, kind: str) -> None:
    for name, units in LAYERS.items():
        statistics = known.open().layer(name).statistics(kind)
        for unit in range(units):
            column = known.rows[name, kind][:, unit].astype(np.float64)
            read = np.delete(column, BAD)
            values = read[np.isfinite(read)]
            assert statistics.count[unit] == len(values)
            assert statistics.nonfinite[unit] == len(read) - len(values)
            np.testing.assert_allclose(statistics.mean[unit], values.mean(), rtol=1e-6)
            np.testing.assert_allclose(statistics.variance[unit], values.var(), rtol=1e-6)
            np.testing.assert_allclose(statistics.std[unit], values.std(), rtol=1e-6)
            assert statistics.minimum[unit] == values.min()
            assert statistics.maximum[unit] == values.max()
            assert statistics.zeros[unit] == pytest.approx((values == 0).mean())
            for q in (0, 0.5, 0.9, 1):
                exact = np.quantile(values, q, method="lower")
                got = statistics.quantile(q)[unit]
                assert abs(got - exact) <= RELATIVE_ERROR * abs(exact) + 1e-12


def test_unknown_layers_kinds_and_units_are_one_clear_line(known: Any) -> None:
    store = known.open()
    with pytest.raises(LayerNotFound, match=r"no layer 'heat'; did you mean 'head'\?; it holds"):
        store.layer("heat")
    with pytest.raises(StoreError, match="keeps no 'maps' of head, only pooled, max, argmax"):
        _ = store.layer("head").maps
    with pytest.raises(StoreError, match="units 0 to 6, there is no unit 7"):
        store.layer("head").top(7)
    with pytest.raises(StoreError, match="not of 'median'"):
        store.layer("head").statistics("median")
    with pytest.raises(StoreError, match="no collector 'x'; it holds pooled, extrema"):
        store.collector("head", "x")


def test_an_unfinished_store_opens_and_its_errors_name_what_is_missing(
    write: Callable[..., Any],
) -> None:
    store = write("half.scope", shards=2).open()
    assert not store.complete
    for use in (
        lambda: store.layer("head").pooled,
        lambda: store.layer("head").top(0),
        lambda: store.images.paths,
    ):
        with pytest.raises(StoreError, match="not finished: 2 of 4 shards are missing"):
            use()


def test_two_stores_of_the_same_rows_are_identical_byte_for_byte(write: Callable[..., Any]) -> None:
    one, two = write("one").path, write("two").path
    names = sorted(str(p.relative_to(one)) for p in one.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(two)) for p in two.rglob("*") if p.is_file())
    assert len(names) == 10
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_store_can_be_pickled_to_another_process(known: Any) -> None:
    layer = pickle.loads(pickle.dumps(known.open().layer("head")))
    np.testing.assert_array_equal(layer.pooled[5:9], known.rows["head", "pooled"][5:9])


def test_the_repr_of_a_store_names_images_layers_and_model(known: Any) -> None:
    store = known.open()
    assert repr(store) == "<Store known.scope: 50 images, 2 layers of random:x>"
    assert list(store.layers) == list(LAYERS)
    assert len(store) == COUNT
    assert repr(store.layer("head")) == "<StoreLayer head of known.scope: 50 x 7>"
    assert isinstance(store, Store)
