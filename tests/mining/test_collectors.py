"""Collectors equal a brute-force computation, however the images are split into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timmscope import load_model
from timmscope.collectors import (
    RELATIVE_ERROR,
    Collector,
    Extrema,
    LayerBatch,
    Pooled,
    Statistics,
    TopK,
)
from timmscope.collectors.rows import cells
from timmscope_registry import ParameterError, UnsupportedModel
from timmscope_registry.hooks import Layer

ODD = [np.nan, np.inf, -np.inf, -0.0, 0.0, 3.4e38, -1e-42]


def rows(seed: int, count: int, units: int, odd: bool = True) -> np.ndarray:
    """Return values with many ties, some of them not finite."""
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 0.5, 1.0, -1.0, rng.normal(), rng.normal()], (count, units))
    if odd:
        where = rng.random((count, units)) < 0.15
        values = np.where(where, rng.choice(ODD, (count, units)), values)
    return values.astype(np.float32)


def feed(collector: Collector, values: np.ndarray, ids: np.ndarray, split: list[int]) -> None:
    for part in np.split(np.arange(len(ids)), split):
        if len(part):
            collector.update(batch(values[part], ids[part]))


def batch(values: np.ndarray, ids: np.ndarray) -> LayerBatch:
    cells = (ids[:, None] * 7 + np.arange(values.shape[1])).astype(np.int32)
    return LayerBatch(layer="x", ids=ids, rows={"max": values, "argmax": cells, "pooled": values})


def brute_force(values: np.ndarray, ids: np.ndarray, unit: int, k: int) -> list[tuple[float, int]]:
    found = [
        (float(value), int(i))
        for value, i in zip(values[:, unit], ids, strict=True)
        if np.isfinite(value)
    ]
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))[:k]


splits = st.lists(st.integers(0, 40), max_size=5).map(sorted)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), splits, splits, st.booleans())
def test_top_k_equals_brute_force_for_any_split_and_order_of_merging(
    seed: int, count: int, k: int, batches: list[int], shards: list[int], backwards: bool
) -> None:
    values, ids = rows(seed, count, 3), np.arange(count) * 3 + 5
    parts = []
    for part in np.split(np.arange(count), shards):
        collector = TopK(k=k)
        feed(collector, values[part], ids[part], batches)
        saved = TopK(k=k)
        saved.load(collector.state())
        parts.append(saved)
    merged = TopK(k=k)
    for collector in reversed(parts) if backwards else parts:
        merged.merge(collector)
    state = merged.state()
    for unit in range(3):
        expected = brute_force(values, ids, unit, k)
        got = list(zip(state["values"][unit], state["ids"][unit], strict=True))[: len(expected)]
        assert got == expected
        assert np.isnan(state["values"][unit][len(expected) :]).all()
        assert (state["ids"][unit][len(expected) :] == -1).all()
        places = state["positions"][unit]
        assert places[: len(expected)].tolist() == [i * 7 + unit for _, i in expected]
        assert (places[len(expected) :] == -1).all()
        assert state["nonfinite"][unit] == (~np.isfinite(values[:, unit])).sum()


def test_top_k_of_equal_values_keeps_the_first_images() -> None:
    collector = TopK(k=4)
    for ids in ([7, 9], [1, 30], [0, 2], [8, 31]):
        collector.update(batch(np.zeros((2, 1), dtype=np.float32), np.array(ids)))
    assert collector.state()["ids"].tolist() == [[0, 1, 2, 7]]


def test_top_k_refuses_wrong_parameters_and_missing_rows() -> None:
    with pytest.raises(ParameterError, match="at least 1"):
        TopK(k=0)
    with pytest.raises(ParameterError, match="reads argmax rows"):
        TopK().update(LayerBatch(layer="x", ids=np.arange(1), rows={"max": np.zeros((1, 1))}))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), splits, splits)
def test_statistics_equal_numpy_in_float64(
    seed: int, count: int, batches: list[int], shards: list[int]
) -> None:
    values, ids = rows(seed, count, 3), np.arange(count)
    values[np.abs(values) > 1e30] = np.inf  # their squares are too large for exact float64
    merged = Statistics()
    for part in np.split(ids, shards):
        collector = Statistics()
        feed(collector, values[part], ids[part], batches)
        saved = Statistics()
        saved.load(collector.state())
        merged.merge(saved)
    for kind in ("pooled", "max"):
        moments = merged.of(kind)
        for unit in range(3):
            column = values[:, unit].astype(np.float64)
            finite = column[np.isfinite(column)]
            assert moments.count[unit] == len(finite)
            assert moments.nonfinite[unit] == count - len(finite)
            assert moments.zeros[unit] == (finite == 0).sum()
            if len(finite):
                np.testing.assert_allclose(moments.mean[unit], finite.mean(), rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(
                    moments.m2[unit], ((finite - finite.mean()) ** 2).sum(), rtol=1e-9, atol=1e-12
                )
                assert moments.min[unit] == finite.min()
                assert moments.max[unit] == finite.max()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), splits, st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 1.0]))
def test_quantiles_stay_within_the_stated_error(seed: int, split: list[int], q: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(41, 4)) * 10.0 ** rng.integers(-6, 6, 4)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    collector = Statistics()
    feed(collector, values, np.arange(41), split)
    got = collector.of("max").sketch.quantile(q)
    exact = np.sort(values.astype(np.float64), axis=0)[int(np.floor(q * 40))]
    assert (np.abs(got - exact) <= RELATIVE_ERROR * np.abs(exact)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), splits, st.randoms())
def test_statistics_do_not_depend_on_order_except_for_last_bits_of_moments(
    seed: int, shards: list[int], random: object
) -> None:
    values, ids = rows(seed, 40, 2), np.arange(40)
    parts = []
    for part in np.split(ids, shards):
        collector = Statistics()
        collector.update(batch(values[part], ids[part]))
        parts.append(collector)
    forward, shuffled = Statistics(), Statistics()
    for collector in parts:
        forward.merge(collector)
    random.shuffle(parts)  # type: ignore[attr-defined]
    for collector in parts:
        shuffled.merge(collector)
    one, other = forward.state(), shuffled.state()
    assert one.keys() == other.keys()
    for key in one:
        if not key.endswith((".mean", ".m2")):
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_quantiles_of_a_unit_without_finite_values_are_nan() -> None:
    collector = Statistics()
    collector.update(batch(np.array([[np.nan, 1.0]], dtype=np.float32), np.arange(1)))
    got = collector.of("max").sketch.quantile(0.5)
    assert np.isnan(got[0])
    assert got[1] == pytest.approx(1, rel=RELATIVE_ERROR)


def test_row_collectors_merge_their_rows_in_order_of_id() -> None:
    one, two = Pooled(), Pooled()
    two.update(LayerBatch(layer="x", ids=np.array([0, 1]), rows={"pooled": np.eye(2)}))
    one.update(LayerBatch(layer="x", ids=np.array([2]), rows={"pooled": np.ones((1, 2)) * 5}))
    one.merge(two)
    state = one.state()
    assert state["ids"].tolist() == [0, 1, 2]
    assert state["pooled"].tolist() == [[1, 0], [0, 1], [5, 5]]
    again = one.fresh()
    again.load(state)
    assert again.state()["pooled"].tolist() == state["pooled"].tolist()


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hiera_tiny_224", "convnext_atto"],
)
def test_cells_are_in_image_order_in_every_layout(name: str) -> None:
    model = load_model(f"random:{name}")
    layers = [layer for layer in model.layers.values() if layer.grid is not None]
    by_kind = {(layer.layout, layer.token_order is None): layer for layer in layers}
    generator = torch.Generator().manual_seed(0)
    for layer in by_kind.values():
        values = torch.randn((2, *layer.shape), generator=generator)
        expected = layer.spatial(values).reshape(2, layer.channels, -1)
        torch.testing.assert_close(cells(layer, values), expected, rtol=0, atol=0)
        rows = Extrema().reduce(layer, values)
        best = expected.argmax(2)
        assert torch.equal(rows["argmax"], best.to(torch.int32))
        assert torch.equal(rows["max"], expected.gather(2, best[:, :, None])[:, :, 0])


@pytest.mark.parametrize("channels", [1, 3, 16, 21, 64])
@pytest.mark.parametrize("kind", ["channels_last", "tokens", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_equal_maxima_and_nan_win_in_every_memory_layout(
    channels: int, kind: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(channels)
    choice = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, np.nan, np.inf, -np.inf])
    odds = torch.tensor([9.0, 9, 9, 9, 9, 0.3, 0.5, 9])
    drawn = torch.multinomial(odds, 6 * channels * 20, replacement=True, generator=generator)
    values = choice[drawn].reshape(6, channels, 4, 5).to(dtype)
    values[0] = -np.inf
    layer = Layer(
        name="x",
        module_type="Conv2d",
        shape=(21, channels) if kind == "tokens" else (channels, 4, 5),
        layout="tokens" if kind == "tokens" else "NCHW",
        channels=channels,
        grid=(4, 5),
        prefix_tokens=int(kind == "tokens"),
        stride=None,
        order=0,
    )
    given = values
    if kind == "channels_last":
        given = values.contiguous(memory_format=torch.channels_last)
    elif kind == "tokens":
        given = torch.cat([values[:, :, 0, :1], values.flatten(2)], dim=2).transpose(1, 2)
        given = given.contiguous()
    rows = {name: row.numpy() for name, row in Extrema().reduce(layer, given).items()}
    flat = values.float().flatten(2).numpy()
    for image in range(6):
        for unit in range(channels):
            cells_ = flat[image, unit]
            if np.isnan(cells_).any():
                assert np.isnan(rows["max"][image, unit])
                assert rows["argmax"][image, unit] == -1
            else:
                assert rows["max"][image, unit] == cells_.max()
                assert rows["argmax"][image, unit] == np.flatnonzero(cells_ == cells_.max())[0]


def test_a_map_whose_size_differs_from_the_catalogue_is_refused() -> None:
    layer = load_model("random:resnet18?img_size=64").layers["layer2"]
    with pytest.raises(UnsupportedModel, match="layer2 has 128 units on a 8x8 grid"):
        cells(layer, torch.zeros(1, 128, 9, 8))
