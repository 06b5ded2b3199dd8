"""Principal components equal NumPy's singular vectors, from one pass, whatever the rows are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from timmscope import ParameterError, Rows
from timmscope_representation.embedding.principal_components import MAX_WIDTH, PrincipalComponents


def reference(rows: Any, count: int) -> tuple[Any, Any]:
    """Components and variances by NumPy's SVD of the centred matrix, signs fixed alike."""
    centred = np.asarray(rows, np.float64) - np.mean(rows, 0, dtype=np.float64)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    vectors = vectors[:count]
    largest = vectors[range(count), np.abs(vectors).argmax(1)]
    return vectors * np.sign(largest)[:, None], singular**2 / (len(rows) - 1)


def random_rows(kind: str) -> Any:
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((12_000, 40)).astype(np.float32)
    falling = np.exp(-np.arange(40) / 12).astype(np.float32)
    return {
        "without any structure": rows,
        "after a ReLU": np.maximum(rows * falling + 0.1, 0),
        "far from zero": rows * falling + 3000,
        "one huge unit": rows * np.where(np.arange(40) == 7, 1e4, 1).astype(np.float32),
        "steep": (rows * np.geomspace(1e3, 1, 40).astype(np.float32))
        @ np.linalg.qr(generator.normal(size=(40, 40)))[0].astype(np.float32),
        "too large for float32 squares": rows * falling * np.float32(1e25),
        "sorted": rows[np.argsort(rows[:, 0])] * falling,
        "float64": rows.astype(np.float64) * falling,
        "float16": (rows * falling).astype(np.float16),
        "whole numbers": np.rint(rows * falling * 100).astype(np.int32),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "without any structure",
        "after a ReLU",
        "far from zero",
        "one huge unit",
        "steep",
        "too large for float32 squares",
        "sorted",
        "float64",
        "float16",
        "whole numbers",
    ],
)
def test_components_equal_numpys_svd_of_the_centred_matrix(kind: str) -> None:
    rows = random_rows(kind)
    found = PrincipalComponents.fit(Rows(rows), 8)
    vectors, variance = reference(rows, 8)
    np.testing.assert_allclose(found.components, vectors, atol=1e-5)
    np.testing.assert_allclose(found.variance, variance[:8], rtol=1e-5)
    np.testing.assert_allclose(found.explained, variance[:8] / variance.sum(), rtol=1e-5)
    np.testing.assert_allclose(found.mean, rows.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-6)


def test_components_and_coordinates_equal_scikit_learns() -> None:
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    rows = load_digits().data
    theirs = PCA(5, svd_solver="full").fit(rows)
    ours = PrincipalComponents.fit(Rows(rows), 5)
    np.testing.assert_allclose(ours.components, theirs.components_, atol=1e-9)
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_)
    np.testing.assert_allclose(ours.transform(rows[:9]), theirs.transform(rows[:9]), atol=1e-9)


def test_rows_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    batches = Rows.batches

    def counted(self: Rows, *arguments: Any, **settings: Any) -> Any:
        for ids, rows in batches(self, *arguments, **settings):
            reads.extend(ids.tolist())
            yield ids, rows

    monkeypatch.setattr(Rows, "batches", counted)
    PrincipalComponents.fit(Rows(random_rows("float16")), 2)
    assert reads == list(range(12_000))


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    import tracemalloc

    def peak(count: int) -> int:
        rows = Rows(np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32))
        tracemalloc.start()
        PrincipalComponents.fit(rows, 2)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(100_000) < peak(10_000) + 1e5  # the rows themselves take 25 MB


def test_rows_without_components_are_refused() -> None:
    generator = np.random.default_rng(0)
    refusals: list[tuple[str, Any, int]] = [
        ("needs at least 3 images, the array has 2", generator.normal(size=(2, 5)), 2),
        ("rows of length 1 have no 2", generator.normal(size=(9, 1)), 2),
        ("all 9000 rows of the array are equal", np.full((9000, 3), 0.1, np.float32), 2),
        ("all 50 rows of the array are equal", np.full((50, 3), 7), 1),
        ("1 of 9 rows of the array hold NaN", np.vstack([np.eye(8), [np.nan] * 8]), 2),
        (f"at most {MAX_WIDTH} values", np.zeros((3, MAX_WIDTH + 1), np.float16), 2),
        ("too large to be squared", generator.normal(size=(9, 3)) * 1e200, 2),
    ]
    for message, rows, count in refusals:
        with pytest.raises(ParameterError, match=message) as caught:
            PrincipalComponents.fit(Rows(rows), count)
        assert "\n" not in str(caught.value)


def test_nearly_equal_rows_still_have_components() -> None:
    rows = np.full((500, 3), 1000.0)
    rows[:, 1] += np.linspace(0, 0.5, 500)
    found = PrincipalComponents.fit(Rows(rows.astype(np.float32)), 2)
    np.testing.assert_allclose(np.abs(found.components[0]), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found.explained, [1, 0], atol=1e-6)
