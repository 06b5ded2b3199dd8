"""Selectivity agrees with hand computation, and areas under the curve with counted pairs."""

import numpy as np
import pytest

from timmscope.units.selectivity import ClassMeans, OneAgainstRest, best_classes


def means_of(rows: np.ndarray, codes: np.ndarray, least: int = 1, batch: int = 3) -> np.ndarray:
    found = ClassMeans(int(codes.max()) + 1, rows.shape[1])
    for start in range(0, len(rows), batch):
        found.update(rows[start : start + batch], codes[start : start + batch])
    return found.means(least)


def test_the_index_of_morcos_agrees_with_hand_computation() -> None:
    rows = np.array([[4, 0], [2, 0], [1, 0], [0, 0], [0, 0]], np.float32)
    codes = np.array([0, 0, 1, 1, 2])
    means = means_of(rows, codes)  # unit 0: 3, 0.5, 0
    assert means[:, 0].tolist() == [3, 0.5, 0]
    best, index = best_classes(means, rows.min(axis=0))
    assert best[0] == 0
    assert index[0] == pytest.approx((3 - 0.25) / (3 + 0.25))
    assert np.isnan(index[1]), "a unit that is zero everywhere selects nothing"


def test_negative_activations_are_measured_from_the_lowest() -> None:
    rows = np.array([[-1], [3], [-2], [-2]], np.float32)
    best, index = best_classes(means_of(rows, np.array([0, 0, 1, 1])), rows.min(axis=0))
    # Above -2 the class means are 3 and 0.
    assert best.tolist() == [0]
    assert index.tolist() == [1.0]


def test_small_classes_unlabelled_images_and_non_finite_values_are_left_out() -> None:
    rows = np.array([[9], [1], [3], [np.inf], [2], [100]], np.float32)
    means = means_of(rows, np.array([0, 1, 1, 1, 2, -1]), least=2)
    assert np.isnan(means[[0, 2]]).all()
    assert means[1, 0] == 2
    best, index = best_classes(means, rows.min(axis=0))
    assert best.tolist() == [-1], "one class alone is not the best of several"
    assert np.isnan(index).all()
    best, index = best_classes(np.empty((0, 2)), np.zeros(2))
    assert best.tolist() == [-1, -1]


def counted(values: np.ndarray, member: np.ndarray) -> float:
    """Compute the share of pairs won, pair by pair."""
    a, b = values[member].astype(float), values[~member].astype(float)
    wins = (a[:, None] > b).sum() + (a[:, None] == b).sum() / 2
    return float(wins / (len(a) * len(b)))


def test_areas_are_the_share_of_pairs_won() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 4, 400)
    rows = rng.normal(size=(400, 6)).astype(np.float32)
    rows[:, 0] += 2 * (codes == 1)
    rows[:, 1] = np.maximum(rows[:, 1], 0)  # ties at zero are true ties
    rows[:, 2] = np.exp(6 * rows[:, 2])  # five orders of magnitude
    rows[:, 3] = -1.0 * (codes == 3)
    rows[:, 4] = 1.0
    steady = 7 + 0.01 * rows[:, 5] + 0.03 * (codes == 2)  # varies little beside its size
    rows = np.column_stack([rows, steady, -steady])
    best = np.array([1, 0, 2, 3, 0, -1, 2, 0])
    found = OneAgainstRest(best, rows.min(axis=0), rows.max(axis=0))
    for start in range(0, 400, 37):
        found.update(rows[start : start + 37], codes[start : start + 37])
    kept = codes >= 0
    expected = [counted(rows[kept, u], codes[kept] == best[u]) for u in (0, 1, 2, 3, 4, 6, 7)]
    areas = found.areas()
    assert areas[[0, 1, 2, 3, 4, 6, 7]] == pytest.approx(expected, abs=0.01)
    assert areas[3] == 0.0
    assert areas[4] == 0.5
    assert areas[6] > 0.9
    assert np.isnan(areas[5])


def test_non_finite_values_are_left_out_and_units_of_zeros_have_an_area() -> None:
    rows = np.array([[0, 1], [0, np.nan], [0, 3], [0, np.inf]], np.float32)
    found = OneAgainstRest(np.array([0, 0]), np.array([0.0, 1.0]), np.array([0.0, 3.0]))
    found.update(rows, np.array([0, 0, 1, 1]))
    assert found.areas().tolist() == [0.5, 0.0]


def test_a_constant_unit_has_no_best_class() -> None:
    rows = np.array([[5, 1], [5, 1], [5, 1], [5, 2]], np.float32)
    best, index = best_classes(means_of(rows, np.array([0, 0, 1, 1])), rows.min(axis=0))
    assert best.tolist() == [-1, 1]
    assert np.isnan(index[0])
    assert index[1] == pytest.approx(0.5 / 2.5)
