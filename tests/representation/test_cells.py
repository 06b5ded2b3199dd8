"""No two rows that are close lie in cells that are said to be apart."""

from __future__ import annotations

import numpy as np
import pytest

from timmscope_representation.clustering.voronoi_cells import VoronoiCells


def sorted_into(rows: np.ndarray, count: int, batch: int = 50) -> tuple[VoronoiCells, np.ndarray]:
    rows = rows.astype(np.float32)
    cells = VoronoiCells(rows, count, 0)
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return cells, np.concatenate([cells.sort(part, np.linalg.norm(part, axis=1)) for part in parts])


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_cells_of_close_rows_are_near(spread: float, size: float) -> None:
    rng = np.random.default_rng(0)
    for dim in (1, 2, 40):
        centres = rng.standard_normal((9, dim))
        rows = size * (
            centres[rng.integers(9, size=400)] + spread * rng.standard_normal((400, dim))
        )
        rows = rows.astype(np.float32).astype(np.float64)
        cells, cell = sorted_into(rows, 12)
        apart = np.linalg.norm(rows[:, None] - rows, axis=-1)
        for distance in (0.0, 0.1 * size, float(np.median(apart))):
            near = cells.near(distance)
            assert near[cell[:, None], cell][apart <= distance].all()


def test_clear_clusters_are_apart_up_to_the_gap_between_them() -> None:
    rng = np.random.default_rng(1)
    rows = rng.uniform(0, 1, (200, 3))
    rows[100:, 0] += 10
    cells, cell = sorted_into(rows, 2)
    assert cell.tolist() in ([0] * 100 + [1] * 100, [1] * 100 + [0] * 100)
    line = rows[100:].mean(0) - rows[:100].mean(0)
    along = rows @ line / np.linalg.norm(line)
    gap = along[100:].min() - along[:100].max()
    assert not cells.near(0.98 * gap)[0, 1]
    assert cells.near(1.02 * gap)[0, 1]
    assert cells.near(0.0).diagonal().all()


def test_a_cell_without_rows_is_near_none() -> None:
    cells, cell = sorted_into(np.ones((40, 4)), 2)
    assert len(set(cell.tolist())) == 1
    assert cells.near(5.0).sum() == 1
