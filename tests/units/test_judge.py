"""Each flag is set for rows made for it, and the report shows it in every form."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.units.conftest import Keep

from timmscope.collectors.sketch import Sketch
from timmscope.results import load_result
from timmscope.units import UnitReport, UnitThresholds, judge_units
from timmscope.units import judge as judging
from timmscope_registry import ParameterError

N = 400
LABELS = [f"class {i % 4}" if i % 10 else None for i in range(N)]
RNG = np.random.default_rng(0)


def rectified_rows() -> tuple[np.ndarray, np.ndarray]:
    """Means and maxima of ten units, as after a ReLU6."""
    maxima = np.maximum(RNG.normal(size=(N, 10)), 0)
    maxima[:, 0] = 0  # dead
    maxima[:, 1] = 0
    maxima[[5, 50, 300], 1] = 3  # sparse
    maxima[:, 2] = np.where(np.arange(N) % 3, 6, 2)  # at its ceiling
    maxima[:, 3] = 2 + 0.01 * RNG.normal(size=N)  # always the same
    maxima[:, 5] = 0.5 * maxima[:, 4] + 0.001 * RNG.random(N)  # redundant, varies less
    maxima[:, 6] = 3 * np.array([label == "class 2" for label in LABELS]) + RNG.random(N)
    maxima[7, 7] = np.nan
    pooled = maxima / 2
    pooled[:, 2] = maxima[:, 2] * RNG.random(N)
    return pooled, maxima


def test_each_flag_is_set_where_its_definition_holds(keep: Keep) -> None:
    report = judge_units(keep(*rectified_rows(), LABELS, shard_size=90))
    assert report.rectified
    assert np.flatnonzero(report.dead).tolist() == [0]
    assert np.flatnonzero(report.sparse).tolist() == [1]
    assert np.flatnonzero(report.saturated).tolist() == [2, 3]
    assert np.flatnonzero(report.redundant).tolist() == [4, 5]
    assert report.partner[[4, 5]].tolist() == [5, 4]
    assert np.flatnonzero(report.selective).tolist() == [6]
    assert report.best_class[6] == "class 2"
    assert np.flatnonzero(report.nonfinite).tolist() == [7]
    assert np.flatnonzero(report.prunable).tolist() == [0, 2, 3, 5]
    assert (report.images, report.labelled) == (N, N - N // 10)
    assert report.fires[1] == 3 / N
    assert report.sentence == (
        "x: 10 units over 400 images: 1 dead, 2 saturated, 1 sparse, 2 redundant, "
        "1 selective for a class; 1 were NaN or infinite on some images; 4 could be pruned"
    )


def test_the_callers_thresholds_are_used(keep: Keep) -> None:
    layer = keep(*rectified_rows(), LABELS, shard_size=90)
    strict = UnitThresholds(sparse=0.001, redundant=1.0, selective=1.1, saturated=0, ceiling=1.1)
    assert judge_units(layer, thresholds=strict).counts == {
        "dead": 1, "saturated": 0, "sparse": 0, "redundant": 0, "selective": 0, "prunable": 1,
        "nonfinite": 1,
    }  # fmt: skip


def test_in_a_layer_that_is_not_rectified_only_constant_units_are_dead(keep: Keep) -> None:
    rows = RNG.normal(size=(N, 4))
    rows[:, 0] = -7  # one value
    rows[:, 1] = -5 + RNG.random(N)  # never above zero, and alive
    report = judge_units(keep(rows))
    assert not report.rectified
    assert np.flatnonzero(report.dead).tolist() == [0]
    assert not report.sparse.any()
    assert "sparse" not in report.sentence
    assert report.selectivity.tolist() == pytest.approx([np.nan] * 4, nan_ok=True)
    assert set(report.best_class) == {None}
    assert "selective" not in report.sentence


def test_a_layer_with_a_floor_just_below_zero_counts_as_rectified(keep: Keep) -> None:
    rows = np.abs(RNG.normal(size=(N, 3))) - 0.1
    rows[:, 0] = -0.1 * RNG.random(N)  # varies, and never fires
    report = judge_units(keep(rows))
    assert report.rectified
    assert report.dead.tolist() == [True, False, False]


@pytest.mark.parametrize("where", ["id < 100 and id != 5", [*range(5), *range(6, 100)]])
def test_chosen_images_give_the_same_report_as_a_store_of_them(keep: Keep, where: Any) -> None:
    pooled, maxima = rectified_rows()
    chosen = [i for i in range(100) if i != 5]
    some = judge_units(keep(pooled, maxima, LABELS), where=where)
    alone = judge_units(keep(pooled[chosen], maxima[chosen], [LABELS[i] for i in chosen]))
    for row, expected in zip(some.table(), alone.table(), strict=True):
        for name, value in expected.items():
            plain = value is None or not isinstance(value, float)
            assert row[name] == (value if plain else pytest.approx(value, rel=1e-9)), name


def test_statistics_agree_with_numpy(keep: Keep) -> None:
    pooled, maxima = rectified_rows()
    rows = judge_units(keep(pooled, maxima, unreadable=[9])).table()
    good = np.delete(np.arange(N), 9)
    finite = maxima[good].astype(np.float32)[:, 4].astype(float)
    row = rows[4]
    assert row["max_mean"] == pytest.approx(finite.mean(), rel=1e-9)
    assert row["max_std"] == pytest.approx(finite.std(), rel=1e-9)
    assert row["max_max"] == finite.max()
    assert row["max_zeros"] == pytest.approx((finite == 0).mean())
    assert row["fires"] == pytest.approx((finite > 0).mean())
    exact = np.sort(finite)[int(0.75 * (len(finite) - 1))]
    assert row["max_q75"] == pytest.approx(exact, rel=1 / 64)
    assert row["count"] == N - 1
    assert rows[7]["nonfinite"] == 1
    means = pooled[good].astype(np.float32).astype(float)
    assert row["correlation"] == pytest.approx(np.corrcoef(means[:, 4], means[:, 5])[0, 1])


def test_wide_layers_are_read_in_blocks_with_the_same_result(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = keep(*rectified_rows(), LABELS, shard_size=90)
    whole = judge_units(layer)
    monkeypatch.setattr(judging, "CORRELATION_BYTES", 3 * 10 * 8)
    parts = judge_units(layer)
    assert parts.correlation == pytest.approx(whole.correlation, abs=1e-14, nan_ok=True)
    assert parts.partner.tolist() == whole.partner.tolist()
    assert parts.images == whole.images


def test_of_equal_units_all_but_the_first_are_prunable(keep: Keep) -> None:
    column = RNG.random((50, 1))
    report = judge_units(keep(np.repeat(column, 3, axis=1)))
    assert report.redundant.all()
    assert report.prunable.tolist() == [False, True, True]


def test_choosing_no_image_is_an_error(keep: Keep) -> None:
    layer = keep(np.ones((5, 2)), unreadable=[2])
    for where in ("id > 99", "id == 2", []):
        with pytest.raises(ParameterError, match="no image that could be read is chosen"):
            judge_units(layer, where)
    with pytest.raises(ParameterError, match="ids from 0 to 4"):
        judge_units(layer, [7])


def test_one_image_and_one_unit_are_enough(keep: Keep) -> None:
    report = judge_units(keep([[0.5]], labels=["a"]))
    assert report.partner.tolist() == [-1]
    assert report.table()[0]["correlation"] is None
    assert report.striking(5) in ([], [0])


def test_units_can_be_ranked_by_any_column_of_numbers(keep: Keep) -> None:
    report = judge_units(keep(*rectified_rows(), LABELS, shard_size=90))
    assert report.ranked("fires", ascending=True)[:2] == [0, 1]
    assert set(report.ranked("correlation")[:2]) == {4, 5}
    assert report.ranked("correlation")[-1] == 0, "no number comes last"
    assert report.ranked("auroc")[0] == 6
    with pytest.raises(ParameterError, match="no column 'aurok' of numbers; did you mean 'auroc'"):
        report.ranked("aurok")


def test_striking_units_include_every_flag(keep: Keep) -> None:
    report = judge_units(keep(*rectified_rows(), LABELS, shard_size=90))
    assert report.striking(7)[:4] == [0, 3, 2, 1], "dead, saturated, sparse"
    assert set(report.striking(7)) >= {4, 6}
    assert len(report.striking(3)) == 3
    assert len(set(report.striking(99))) == len(report.striking(99))


def test_the_table_has_plain_values_and_the_csv_equals_it(keep: Keep, tmp_path: Path) -> None:
    report = judge_units(keep(*rectified_rows(), LABELS, shard_size=90))
    rows = report.table()
    json.dumps(rows, allow_nan=False)
    with report.to_csv(tmp_path / "new" / "units.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["unit"] for row in read] == [str(unit) for unit in range(10)]
    assert read[4]["flags"] == "redundant"
    assert float(read[4]["correlation"]) == rows[4]["correlation"]
    assert read[0]["correlation"] == ""


def test_a_saved_report_loads_as_numpy_arrays(keep: Keep, tmp_path: Path) -> None:
    report = judge_units(
        keep(*rectified_rows(), LABELS, shard_size=90), "id < 300", UnitThresholds(sparse=0.02)
    )
    again = load_result(report.save(tmp_path / "saved"))
    assert isinstance(again, UnitReport)
    for field in dataclasses.fields(report):
        value, loaded = getattr(report, field.name), getattr(again, field.name)
        assert type(loaded) is type(value), field.name
        np.testing.assert_equal(loaded, value)
    assert again.table() == report.table()
    assert str(again) == report.sentence
    made = report.provenance
    assert (made.technique, made.call["layer"]) == ("timmscope:unit-report", "x")
    assert (made.call["where"], made.call["images"]) == ("id < 300", 300)
    assert made.parameters == {
        "context": None, "sparse": 0.02, "saturated": 0.1, "ceiling": 0.97, "redundant": 0.95,
        "selective": 0.95, "class_size": 10,
    }  # fmt: skip


def test_the_share_above_zero_is_exact(keep: Keep) -> None:
    values = np.array([[-1, 0, 1e-3, 5, 0], [0, 0, 0, 0, 0], [2, 3, np.inf, np.nan, -0.0]])
    sketch = Sketch(3)
    sketch.update(values.astype(np.float32))
    assert sketch.positive().tolist() == [2, 0, 2]
    assert Sketch(2).positive().tolist() == [0, 0]
