"""Clusters are scikit-learn's on clear data; medoids, purity and indices are those by hand."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.datasets import load_digits
from tests.mining.synthetic import rows_of, write_synthetic

from timmscope import ParameterError, PluginError, Rows, load_result, technique
from timmscope.cli import main
from timmscope_representation.clustering import partition as clustering
from timmscope_representation.clustering.agreement import contingency, label_agreement, purity
from timmscope_representation.clustering.partition import kmeans
from timmscope_representation.row_space import RowSpace

Clusters: Any = technique("clusters")


def blobs(seed: int = 0, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """300 rows around 5 centres, and the number of each one's centre."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), [100, 80, 60, 40, 20])[rng.permutation(300)]
    centres = 4 * np.eye(5, 8)
    return (centres[labels] + spread * rng.normal(size=(300, 8))).astype(np.float32), labels


def same(one: Any, other: Any) -> bool:
    return bool(metrics.adjusted_rand_score(np.asarray(one), np.asarray(other)) == 1)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_kmeans_finds_the_partition_of_scikit_learn(metric: str) -> None:
    rows, labels = blobs()
    found = Clusters(k=5, metric=metric)(rows)
    values = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "cosine" else rows
    theirs = KMeans(5, n_init=10, random_state=0).fit(values.astype(float))
    assert same(found.clusters, theirs.labels_)
    assert same(found.clusters, labels)
    assert [row["images"] for row in found.summary()] == [100, 80, 60, 40, 20, 300]
    centres = theirs.cluster_centers_
    if metric == "cosine":
        centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    ours, centres = (sorted(map(tuple, part)) for part in (found.centroids.numpy(), centres))
    np.testing.assert_allclose(np.array(ours), np.array(centres), atol=1e-3)


def test_clusters_far_from_zero_are_those_near_it() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(600, 64)) + 0.5 * rng.normal(size=(5, 64))[np.arange(600) % 5]
    far = values.round(4) + 30_000.0
    found = Clusters(k=5, metric="l2")(far)
    gaps = np.linalg.norm(far[:, None] - found.centroids.double().numpy(), axis=2)
    np.testing.assert_allclose(gaps[range(600), found.clusters - 1], gaps.min(1), rtol=1e-3)
    np.testing.assert_allclose(found.distances, gaps.min(1), rtol=1e-3)
    assert same(found.clusters, Clusters(k=5, metric="l2")(far - 30_000).clusters)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_clusters_of_small_and_of_close_rows_are_those_of_large_ones(method: str) -> None:
    rows, labels = blobs()
    for values in (1e-10 * rows, 1 + 1e-9 * rows.astype(float)):
        found = Clusters(method=method, k=5, metric="l2")(values)
        assert same(found.clusters, labels)
        centre = values[labels == 0].astype(float).mean(0)  # of the largest
        np.testing.assert_allclose(found.centroids[0], centre, rtol=0, atol=1e-6 * np.ptp(values))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_every_row_goes_to_its_nearest_centroid_and_medoids_are_nearest_to_theirs(
    metric: str,
) -> None:
    rows = np.random.default_rng(1).normal(size=(400, 6))
    found = Clusters(k=9, metric=metric, medoids=4)(rows)
    values = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "cosine" else rows
    gaps = np.linalg.norm(values[:, None] - found.centroids.double().numpy(), axis=2)
    assert (found.clusters.numpy() == gaps.argmin(1) + 1).all()
    nearest = gaps.min(1) ** 2 / 2 if metric == "cosine" else gaps.min(1)
    np.testing.assert_allclose(found.distances, nearest, rtol=1e-4, atol=1e-6)
    for number, medoids in enumerate(found.medoids, 1):
        members = np.flatnonzero(found.clusters.numpy() == number)
        assert medoids == members[np.argsort(nearest[members])][:4].tolist()
        row = found.summary()[number - 1]
        assert row["mean_distance"] == pytest.approx(nearest[members].mean(), rel=1e-4)


def test_there_are_as_many_clusters_as_images_in_one_by_default() -> None:
    rows = np.random.default_rng(0).normal(size=(150, 4))
    told = [Clusters()(rows[:n]).method.split(",")[1] for n in (150, 2)]
    assert told == [" k = 12", " k = 1"]


def test_the_nearest_to_the_mean_is_the_medoid_for_squared_distances() -> None:
    rows, _ = blobs(spread=1.0)
    found = Clusters(k=5, metric="l2", iterations=100)(rows)
    for number, (first, *_) in enumerate(found.medoids, 1):
        members = np.flatnonzero(found.clusters.numpy() == number)
        sums = np.square(rows[members, None] - rows[members]).sum((1, 2))
        assert first == members[sums.argmin()]


def test_hdbscan_is_scikit_learns_and_noise_is_a_group_of_its_own() -> None:
    rows, _ = blobs()
    noise = np.random.default_rng(2).uniform(-9, 9, (15, 8))
    rows = np.vstack([rows, noise]).astype(np.float32)
    found = Clusters(method="hdbscan", metric="l2", min_size=10)(rows)
    theirs = HDBSCAN(min_cluster_size=10, copy=True).fit(rows.astype(float)).labels_
    assert same(found.clusters, theirs)
    assert ((found.clusters.numpy() == 0) == (theirs < 0)).all()
    *clusters, last, everything = found.summary()
    assert (last["cluster"], everything["images"]) == ("noise", 315)
    assert last["images"] == int((theirs < 0).sum())
    assert np.isnan(found.distances.numpy()[theirs < 0]).all()
    for number, centroid in enumerate(found.centroids.numpy(), 1):
        members = found.clusters.numpy() == number
        np.testing.assert_allclose(centroid, rows[members].mean(0), atol=1e-4)
    assert len(clusters) == len(found.centroids) == 5
    none = Clusters(method="hdbscan", metric="l2", min_size=5)(noise)
    assert len(none.centroids) == 0
    assert none.note == "no part is dense enough to be a cluster"
    assert none.summary()[0]["images"] == 15


def test_purity_and_indices_are_those_by_hand() -> None:
    counts = np.array([[4, 1], [1, 2], [0, 2]])
    groups, labels = np.repeat(np.argwhere(counts), counts[counts > 0], 0).T
    groups, labels = np.append(groups, [0, 2]), np.append(labels, [-1, -1])  # without a label
    np.testing.assert_array_equal(contingency(groups, labels, (3, 2)), counts)
    assert purity(counts) == pytest.approx((4 + 2 + 2) / 10)
    mutual, rand = label_agreement(groups, labels)
    log = np.log
    shared = 0.4 * log(1.6) + 0.1 * log(0.4) + 0.1 * log(2 / 3) + 0.2 * log(4 / 3) + 0.2 * log(2)
    entropies = log(2), -(0.5 * log(0.5) + 0.3 * log(0.3) + 0.2 * log(0.2))
    assert mutual == pytest.approx(shared / (sum(entropies) / 2))
    # Pairs in one cell, in one group and in one label: of 45 pairs 8, 14 and 20.
    assert rand == pytest.approx((8 - 14 * 20 / 45) / ((14 + 20) / 2 - 14 * 20 / 45))
    assert label_agreement(np.array([0, 0, 1]), np.array([1, 1, 0])) == (1, 1)
    mutual, rand = label_agreement(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]))
    assert (mutual, rand) == (pytest.approx(0), 0)


def test_without_scikit_learn_kmeans_works_and_says_what_agreement_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_synthetic(tmp_path / "s.scope", 100, width=8, clusters=4, shard_size=50)
    with_it = Clusters(k=4)(store)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    install = r"needs scikit-learn, which is not installed: .*'timmscope\[embed\]'$"
    with pytest.warns(UserWarning, match=rf"^agreement with labels .*{install}"):
        found = Clusters(k=4)(store)
    assert (found.clusters == with_it.clusters).all()
    assert float(found.purity) == float(with_it.purity)
    assert np.isnan([float(found.mutual_information), float(found.adjusted_rand)]).all()
    assert re.search(install, found.note)
    assert not any("Rand index 0" in text.get_text() for text in found.figure().texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Clusters(k=4)(np.eye(8)).note == ""  # an array has no labels
    with pytest.raises(PluginError, match=rf"^method 'hdbscan' {install}"):
        Clusters(method="hdbscan")(store)


def test_a_store_gives_the_clusters_of_its_rows_with_purity_of_their_labels(tmp_path: Path) -> None:
    store = write_synthetic(
        tmp_path / "s.scope", 500, width=16, clusters=5, shard_size=64, unreadable=[3]
    )
    rows = np.delete(rows_of(0, 500, width=16, clusters=5, block=64), 3, 0)
    found = Clusters(k=7)(store)
    assert (found.clusters == Clusters(k=7)(rows).clusters).all()
    labels = np.delete(np.arange(500) % 5, 3)
    best = 0
    for number, row in enumerate(found.summary()[:-1], 1):
        shares = np.bincount(labels[found.clusters.numpy() == number], minlength=5)
        assert row["majority_label"] == f"cluster {shares.argmax()}"
        assert row["purity"] == pytest.approx(shares.max() / shares.sum())
        best += shares.max()
    assert float(found.purity) == found.summary()[-1]["purity"] == pytest.approx(best / 499)
    expected = metrics.adjusted_rand_score(labels, found.clusters)
    assert float(found.adjusted_rand) == pytest.approx(expected)
    one = Clusters(k=2)(store, where="label == 'cluster 1'")
    assert "one label only" in one.note
    assert float(one.purity) == 1


def test_the_same_seed_gives_the_same_clusters_also_when_rows_are_read_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.random.default_rng(3).normal(size=(3000, 8))
    monkeypatch.setattr(clustering, "POINTS_PER_CLUSTER", 40)
    space = RowSpace(Rows(rows), "l2")
    settings = {"iterations": 10, "restarts": 1}
    one = kmeans(space, 6, **settings, seed=4)
    monkeypatch.setattr(clustering, "_HELD", 0)
    two = kmeans(space, 6, **settings, seed=4)
    np.testing.assert_array_equal(one.clusters, two.clusters)
    np.testing.assert_array_equal(one.distances, two.distances)
    assert not np.array_equal(one.clusters, kmeans(space, 6, **settings, seed=5).clusters)


def test_digits_fall_into_clusters_that_agree_with_their_labels() -> None:
    digits = load_digits()
    found = Clusters(k=20)(digits.data)
    table = contingency(found.clusters.numpy() - 1, digits.target, (20, 10))
    assert purity(table) > 0.8
    assert found.pictures_of is None
    assert found.figure().texts


def test_saved_clusters_come_back_with_both_tables(tmp_path: Path) -> None:
    rows, _ = blobs()
    found = Clusters(k=5)(rows)
    folder = found.save(tmp_path / "out")
    again: Any = load_result(folder)
    assert (again.clusters == found.clusters).all()
    assert again.summary() == found.summary()
    lines = (folder / "assignments.csv").read_text().splitlines()
    assert lines[0] == "id,name,label,cluster,distance"
    assert lines[1].startswith(f"0,row 0,,{int(found.clusters[0])},")
    assert len(lines) == 301
    assert len((folder / "clusters.csv").read_text().splitlines()) == 1 + 5 + 1


def test_more_clusters_than_distinct_rows_leave_some_empty_and_say_so() -> None:
    rows = np.repeat(np.eye(3), 10, 0)
    found = Clusters(k=8)(rows)
    assert len(found.centroids) == 3
    assert found.note == "5 of 8 clusters are empty: there are fewer distinct rows"
    every = Clusters(k=30, metric="l2")(np.arange(30.0)[:, None])
    assert sorted(every.clusters.tolist()) == list(range(1, 31))


def test_wrong_calls_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = blobs()
    bad, empty = rows.copy(), rows.copy()
    bad[7] = np.nan
    empty[9] = 0
    calls = [
        ("k-means with k = 301 needs at least 301 images", lambda: Clusters(k=301)(rows)),
        ("= 200 needs at least 400", lambda: Clusters(method="hdbscan", min_size=200)(rows)),
        ("all 9 rows of the array are equal", lambda: Clusters()(np.ones((9, 3)))),
        ("all 9 rows", lambda: Clusters(method="hdbscan", min_size=3)(np.ones((9, 3)))),
        ("1 of 300 rows.*NaN.*row 7", lambda: Clusters()(bad)),
        ("1 of 300 rows.*all zero.*row 9", lambda: Clusters()(empty)),
        ("differ by more than 4.*e-30.*scale them up", lambda: Clusters(metric="l2")(rows * 1e-30)),
        ("leave float32's range", lambda: Clusters(metric="l2")(rows * 1e20)),
        ("'k'.*0", lambda: Clusters(k=0)),
        ("'method'.*means", lambda: Clusters(method="means")),
        ("takes no query images", lambda: Clusters()(rows, [1])),
    ]  # fmt: skip
    for message, call in calls:
        with pytest.raises(ParameterError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(clustering, "_DENSITY_ROWS", 100)
    with pytest.raises(ParameterError, match=r"at most 100 images.*has 300"):
        Clusters(method="hdbscan")(rows)
    store = write_synthetic(tmp_path / "s.scope", 20, width=4, clusters=4, shard_size=10)
    assert main(["run", "clusters", str(store.path), "--k", "21"]) == 2
    assert "needs at least 21 images, features of s.scope has 20" in capsys.readouterr().err
