"""Scores are those of scikit-learn or of slow versions; planted strangers come first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from tests.mining.synthetic import rows_of, write_synthetic

from timmscope import HookedModel, ParameterError, Rows, load_result, mine, technique
from timmscope.cli import main
from timmscope_representation.distances import outlyingness
from timmscope_representation.distances.outlyingness import mahalanobis, robust

Anomalies: Any = technique("anomalies")
SCORES = ("knn", "mahalanobis", "robust")


def ordinary(seed: int = 0, n: int = 400, d: int = 12) -> np.ndarray:
    """Correlated normal rows far from zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 30


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 5])
def test_neighbour_distances_are_those_of_scikit_learn(metric: str, k: int) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 9)) + (5 if metric == "l2" else 0)
    theirs = NearestNeighbors(metric="euclidean" if metric == "l2" else "cosine").fit(rows)
    expected = theirs.kneighbors(n_neighbors=k)[0][:, -1]  # leaves each row itself out
    found = Anomalies(k=k, metric=metric)(rows)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6)


def test_neighbours_are_found_across_blocks_and_copies_are_at_distance_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.random.default_rng(1).normal(size=(200, 4))
    rows[50:60] = rows[50]
    whole = Anomalies(k=3, metric="l2")(rows).scores.numpy()
    monkeypatch.setattr(outlyingness, "_HELD", 4 * 33)
    np.testing.assert_allclose(Anomalies(k=3, metric="l2")(rows).scores, whole, atol=1e-5)
    assert (whole[50:60] < 1e-3).all()
    expected = NearestNeighbors().fit(rows).kneighbors(n_neighbors=3)[0][:, -1]
    np.testing.assert_allclose(whole, expected, atol=1e-3)


@pytest.mark.parametrize("where", ["one row is far away", "all rows are"])
def test_neighbours_keep_their_digits_far_from_zero(where: str) -> None:
    rows = np.random.default_rng(2).normal(size=(600, 64))
    rows[7] *= 1e6 if where == "one row is far away" else 1
    rows += 0 if where == "one row is far away" else 1e5
    theirs = NearestNeighbors(algorithm="ball_tree").fit(rows)
    expected = theirs.kneighbors(n_neighbors=3)[0][:, -1]
    found = Anomalies(k=3, metric="l2")(rows)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(400, 12), (30, 80), (20, 1)])
def test_mahalanobis_is_scikit_learns_with_ledoit_and_wolfs_shrinkage(
    shape: tuple[int, int],
) -> None:
    rows = ordinary(2, *shape)
    theirs = LedoitWolf().fit(rows)
    scores, shrinkage = mahalanobis(Rows(rows))
    assert shrinkage == pytest.approx(theirs.shrinkage_, rel=1e-8, abs=1e-12)
    np.testing.assert_allclose(scores, np.sqrt(theirs.mahalanobis(rows)), rtol=1e-6)


def test_the_robust_distance_is_that_of_its_definition() -> None:
    """A slow version, written apart: medians, directions, components, MADs, both limits."""
    rows = ordinary(3, 150, 8) * np.array([9, 7, 5, 1, 1, 1, 1, 1])
    centred = rows - np.array([np.median(column) for column in rows.T])
    unit = np.array([row / np.sqrt((row**2).sum()) for row in centred])
    values, vectors = np.linalg.eig(np.cov(unit, rowvar=False, bias=True) + np.outer(
        unit.mean(0), unit.mean(0)))  # fmt: skip
    order = np.argsort(-values)
    count = next(q for q in range(1, 9) if values[order[:q]].sum() >= 0.8 * values.sum())
    axes = vectors[:, order[:count]]
    inside, outside = np.zeros(150), (centred**2).sum(1)
    for axis in axes.T:
        along = centred @ axis
        mad = 1.4826 * np.median(np.abs(along - np.median(along)))
        inside += ((along - np.median(along)) / mad) ** 2
        outside -= along**2
    index = np.zeros(150)
    for squares in (inside, outside):
        roots = squares ** (1 / 3)  # of distances to the power of 2/3
        mad = 1.4826 * np.median(np.abs(roots - np.median(roots)))
        index += 0.5 * squares / (np.median(roots) + 1.96 * mad) ** 3
    scores, components = robust(Rows(rows), 0)
    assert components == count < 8
    np.testing.assert_allclose(scores, np.sqrt(index), rtol=1e-8)


@pytest.mark.parametrize("score", SCORES)
def test_planted_strangers_come_first(score: str) -> None:
    rows = ordinary()
    rng = np.random.default_rng(9)
    strange = [3, 77, 200]
    rows[strange] = rows.mean(0) + 12 * rows.std() * rng.normal(size=(3, 12))
    found = Anomalies(score=score, metric="l2", top=3)(rows)
    assert {row["id"] for row in found.summary()} == set(strange)
    assert found.ranking()[:3] == [row["id"] for row in found.summary()]


def test_robust_scores_stand_a_third_of_strangers_where_the_covariance_does_not() -> None:
    rows = ordinary(5, 300, 6)
    rows[:100] = rows[100:].mean(0) + np.array([60, 0, 0, 0, 0, 0]) + 0.1 * rows[:100]
    for score, all_found in (("robust", True), ("mahalanobis", False)):
        best = Anomalies(score=score, top=100)(rows).ranking()[:100]
        assert (set(best) == set(range(100))) is all_found


def test_units_that_are_mostly_zero_still_have_a_scale() -> None:
    rows = np.zeros((200, 5))
    rng = np.random.default_rng(0)
    rows[:90] = rng.exponential(size=(90, 5)) * (rng.random((90, 5)) < 0.5)
    rows[17] = 40
    found = Anomalies(score="robust", top=1)(rows)
    assert np.isfinite(found.scores.numpy()).all()
    assert found.ranking()[0] == 17


def test_medians_of_a_sample_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ordinary(7, 3000, 6)
    whole, _ = robust(Rows(rows), 0)
    monkeypatch.setattr(outlyingness, "_SAMPLE", 6 * 1000)
    part, _ = robust(Rows(rows), 0)
    again, _ = robust(Rows(rows), 0)
    np.testing.assert_array_equal(part, again)
    assert not np.array_equal(whole, part)
    np.testing.assert_allclose(part, whole, rtol=0.2)


@pytest.mark.parametrize("score", SCORES)
def test_a_store_gives_the_scores_of_its_rows(score: str, tmp_path: Path) -> None:
    store = write_synthetic(
        tmp_path / "s.scope", 300, width=16, clusters=3, shard_size=64, unreadable=[3]
    )
    rows = np.delete(rows_of(0, 300, width=16, clusters=3, block=64), 3, 0)
    found = Anomalies(score=score, top=5)(store)
    np.testing.assert_allclose(
        found.scores, Anomalies(score=score)(rows).scores, rtol=1e-4, atol=1e-6
    )
    assert 3 not in found.ids
    folder = found.save(tmp_path / "out")
    again: Any = load_result(folder)
    assert again.summary() == found.summary()
    lines = (folder / "scores.csv").read_text().splitlines()
    assert len(lines) == 300
    first = found.summary()[0]
    assert lines[:2] == [
        "rank,id,name,label,score",
        f"1,{first['id']},{first['name']},{first['label']},{first['score']}",
    ]
    chosen = Anomalies(score=score)(store, where="label == 'cluster 1'")
    assert len(chosen.ids) == 100


def test_small_and_close_rows_are_told_apart_as_large_ones_are() -> None:
    rows = np.random.default_rng(5).normal(size=(80, 6))
    for values in (1 + 1e-9 * rows, 1e-9 * rows):  # float64, which holds both
        for fields in ({"score": "knn", "metric": "l2"}, {"score": "mahalanobis"}):
            found, expected = Anomalies(**fields)(values), Anomalies(**fields)(rows)
            scale = 1e9 if fields["score"] == "knn" else 1
            np.testing.assert_allclose(found.scores * scale, expected.scores, rtol=1e-4)


def test_rows_of_which_most_are_equal_are_ordinary_and_the_others_strange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.ones((200, 6))
    rows[5], rows[7] = 4, [1, 1, 2, 1, 1, 1]
    found = Anomalies(score="robust")(rows)
    assert np.flatnonzero(found.scores).tolist() == [5, 7]
    assert "more than half of the rows are equal" in found.note
    monkeypatch.setattr(outlyingness, "_SAMPLE", 6 * 20)
    few = np.vstack([rows[:6], np.ones((4000, 6))])
    with pytest.raises(ParameterError, match="with all 20 of the sample"):
        Anomalies(score="robust")(few)


def test_the_strangest_are_shown_below_the_spread_of_all(
    lite0: HookedModel, photo_paths: dict[str, Path], tmp_path: Path
) -> None:
    photos = list(photo_paths.values())
    store = mine(lite0, photos, tmp_path / "s.scope", layers=["global_pool"], workers=0)
    found = Anomalies(k=1)(store, location=photos)
    assert found.pictures_of.shape[:2] == (4, 3)
    figure = found.figure()
    assert len(figure.axes) == 2
    assert any("4 most anomalous of 4 images" in text.get_text() for text in figure.texts)
    bare = Anomalies(k=1, top=30)(np.random.default_rng(0).normal(size=(40, 3)))
    assert len(bare.figure().axes) == 1
    assert sum("row " in text.get_text() for text in bare.figure().texts) == 30
    assert f"1. row {int(bare.scores.argmax())}" in [t.get_text() for t in bare.figure().texts]


def test_scores_that_are_equal_but_for_rounding_are_drawn() -> None:
    rows = np.repeat(ordinary(n=2), 25, 0)
    found = Anomalies(score="mahalanobis")(rows)
    assert np.ptp(found.scores.numpy()) < 1e-6
    assert found.figure().axes


@pytest.mark.parametrize(("n", "ticks"), [(6, ["1", "2", "5"]), (3000, ["1", "10", "100"])])
def test_images_are_counted_in_whole_numbers(n: int, ticks: list[str]) -> None:
    axes = Anomalies(k=2)(np.random.default_rng(0).normal(size=(n, 3))).figure().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ticks
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))


def test_wrong_calls_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ordinary()
    bad, empty = rows.copy(), rows.copy()
    bad[7], bad[8, 2] = np.nan, np.inf
    empty[9] = 0
    late = np.random.default_rng(0).normal(size=(5000, 3))
    late[4990] = 1e200
    calls = [
        ("k = 400 needs at least 401 images", lambda: Anomalies(k=400)(rows)),
        ("score = robust needs at least 3", lambda: Anomalies(score="robust")(rows[:2])),
        *((r"all 9 rows of the array are equal", lambda s=s: Anomalies(score=s)(np.ones((9, 3))))
          for s in SCORES),
        *((r"2 of 400 rows.*NaN.*row 7, row 8", lambda s=s: Anomalies(score=s)(bad))
          for s in SCORES),
        ("1 of 400 rows.*all zero.*row 9", lambda: Anomalies()(empty)),
        ("values up to", lambda: Anomalies(score="mahalanobis")(rows * 1e20)),
        *(("values up to 1e.200", lambda s=s: Anomalies(score=s)(late)) for s in SCORES[1:]),
        ("no values of the array differ by more than 3",
         lambda: Anomalies(metric="l2")(3e-30 * np.eye(9))),
        *((r"rows of at most 8192 values, those of .* have 8193", lambda s=s: Anomalies(score=s)(
            np.eye(3, 8193))) for s in SCORES[1:]),
        (r"shape .400, 0., expected", lambda: Anomalies()(rows[:, :0])),
        ("'score'.*iforest", lambda: Anomalies(score="iforest")),
        ("takes no query images", lambda: Anomalies()(rows, [1])),
    ]  # fmt: skip
    for message, call in calls:
        with pytest.raises(ParameterError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    store = write_synthetic(tmp_path / "s.scope", 20, width=4, clusters=4, shard_size=10)
    assert main(["run", "anomalies", str(store.path), "--k", "20"]) == 2
    assert "needs at least 21 images, features of s.scope has 20" in capsys.readouterr().err
