"""Correlations from one pass over rows agree with NumPy and with hand computation."""

import numpy as np
import pytest

from timmscope.units.correlation import Correlation, strongest_partners


def streamed(rows: np.ndarray, batch: int, first: int = 0, last: int | None = None) -> np.ndarray:
    found = Correlation(rows.shape[1], first, last)
    for start in range(0, len(rows), batch):
        found.update(rows[start : start + batch])
    return found.matrix()


def pairwise(rows: np.ndarray) -> np.ndarray:
    """Compute each pair separately, over the images for which both units are finite."""
    units = rows.shape[1]
    result = np.full((units, units), np.nan)
    for i in range(units):
        for j in range(units):
            both = np.isfinite(rows[:, i]) & np.isfinite(rows[:, j])
            x, y = (rows[both, unit].astype(np.float64) for unit in (i, j))
            if len(x) and x.std() and y.std():
                result[i, j] = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
    return result


def test_two_units_agree_with_hand_computation() -> None:
    # Deviations (-1, 0, 1) and (-2, 1, 1): products 3, squares 2 and 6.
    rows = np.array([[1, 5], [2, 8], [3, 8]], np.float32)
    expected = 3 / np.sqrt(2 * 6)
    assert streamed(rows, 2)[0, 1] == pytest.approx(expected, rel=1e-15)
    assert streamed(rows, 1)[1, 0] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_correlations_agree_with_numpy(batch: int) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(500, 30)) @ rng.normal(size=(30, 20)) + 100).astype(np.float32)
    assert streamed(rows, batch) == pytest.approx(np.corrcoef(rows.T.astype(float)), abs=1e-12)
    part = streamed(rows, batch, 5, 9)
    assert part == pytest.approx(np.corrcoef(rows.T.astype(float))[5:9], abs=1e-12)


def test_a_large_offset_loses_no_digits_even_if_the_first_rows_differ_from_the_rest() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4000, 3)) + 3e5
    rows[:, 1] += rows[:, 0]
    rows[:10] -= 2e5
    rows = rows.astype(np.float32)
    assert streamed(rows, 10) == pytest.approx(np.corrcoef(rows.T.astype(float)), abs=1e-10)


def test_a_value_that_is_not_finite_affects_its_unit_only() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(60, 5)).astype(np.float32)
    clean = streamed(rows, 8)
    rows[3, 1] = np.nan
    rows[50:, 2] = np.inf
    rows[:, 4] = np.nan
    found = streamed(rows, 8)
    assert found == pytest.approx(pairwise(rows), abs=1e-12, nan_ok=True)
    assert found[0, 3] == pytest.approx(clean[0, 3], abs=1e-12)
    assert np.isnan(found[4]).all()


def test_a_constant_has_no_correlation_despite_rounding() -> None:
    rows = np.random.default_rng(3).normal(size=(1000, 4)).astype(np.float32)
    rows[:, 1] = np.float32(0.1)
    rows[:, 2] = np.float32(1e6) / 3
    found = streamed(rows, 9)
    assert np.isnan(found[1:3]).all()
    assert np.isnan(found[:, 1:3]).all()
    rows[77, 1] = np.nextafter(np.float32(0.1), np.float32(1))
    assert np.isfinite(streamed(rows, 9)[1, 0]), "one value a bit higher is no constant"


def test_the_strongest_partner_is_another_unit_of_either_sign() -> None:
    matrix = np.array([[1, 0.5, -0.9], [0.5, 1, 0.5], [-0.9, 0.5, 1]])
    values, partners = strongest_partners(matrix, 0)
    assert values.tolist() == [-0.9, 0.5, -0.9]
    assert partners.tolist() == [2, 0, 0]
    values, partners = strongest_partners(matrix[1:], 1)
    assert partners.tolist() == [0, 0]
    values, partners = strongest_partners(np.full((1, 1), 1.0), 0)
    assert np.isnan(values[0])
    assert partners[0] == -1
