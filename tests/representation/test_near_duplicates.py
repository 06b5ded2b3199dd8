"""Groups of near-duplicates are those of brute force, whatever the rows are like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.mining.synthetic import LAYER, rows_of, write_synthetic

from timmscope import HookedModel, ParameterError, Rows, load_result, mine, technique
from timmscope.cli import main
from timmscope_representation.clustering import (
    pca_bounds as pca_bounds,
)
from timmscope_representation.clustering import (
    radius_groups as close_rows,
)
from timmscope_representation.clustering.disjoint_sets import DisjointSets
from timmscope_representation.clustering.radius_groups import radius_groups
from timmscope_representation.row_space import RowSpace

NearDuplicates: Any = technique("near-duplicates")


def brute_force(rows: np.ndarray, metric: Any, distance: float) -> np.ndarray:
    """First member of each row's group, by all distances in float64 and plain union-find."""
    space = RowSpace(Rows(rows), metric)
    values = space.prepared(rows).astype(np.float64)
    parent = list(range(len(rows)))

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    for at in range(len(rows)):
        gaps = np.square(values - values[at]).sum(1)
        near = gaps / 2 if metric == "cosine" else np.sqrt(gaps)
        for other in np.flatnonzero(near <= distance).tolist():
            one, two = sorted((root(at), root(other)))
            parent[two] = one
    return np.array([root(at) for at in range(len(rows))])


def normal(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.standard_normal((n, d))


def whole(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.integers(-3, 4, (n, d)) + 0.0 + 7 * (np.arange(d) == 0)


def copies(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return normal(rng, n, d)[rng.integers(0, n // 4, n)] + 1e-3 * normal(rng, n, d)


def of_all_sizes(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return normal(rng, n, d) * 10.0 ** rng.integers(-6, 6, (n, 1))


def equal(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return np.repeat(normal(rng, 1, d), n, 0) + 1000


def decaying(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return normal(rng, n, d) / np.arange(1, d + 1)


@pytest.mark.parametrize("make", [normal, whole, copies, of_all_sizes, equal, decaying])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_groups_are_those_of_all_pairs_in_float64(
    make: Any, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca_bounds, "BOX", 32)
    monkeypatch.setattr(pca_bounds, "_IN_CELL", 12)
    monkeypatch.setattr(close_rows, "_PRODUCTS", 32 * 40)
    for seed, (n, d) in enumerate([(240, 24), (97, 3), (151, 1)]):
        rows = make(np.random.default_rng(seed), n, d)
        rows[~rows.any(1)] = 1
        for kind in (np.float32, np.float64):
            given = rows.astype(kind)
            for distance in (0.0, 1e-6, 0.05, 1.0, 3.0):
                found = radius_groups(RowSpace(Rows(given), metric), distance, seed)
                np.testing.assert_array_equal(found, brute_force(given, metric, distance))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_groups_of_long_rows_are_those_of_all_pairs(
    metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca_bounds, "_WIDE", 20)
    monkeypatch.setattr(pca_bounds, "_WIDTHS", (4, 8, 16))
    for seed, make in enumerate([normal, copies, equal, of_all_sizes]):
        rows = make(np.random.default_rng(seed), 200, 50)
        for distance in (0.0, 0.05, 1.0):
            found = radius_groups(RowSpace(Rows(rows), metric), distance, seed)
            np.testing.assert_array_equal(found, brute_force(rows, metric, distance))


def test_a_pair_exactly_at_the_distance_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca_bounds, "BOX", 8)
    rng = np.random.default_rng(0)
    rows = 1000.0 * rng.integers(-9, 10, (40, 6)).astype(np.float64)
    rows[20:] = rows[:20] + np.array([3, 4, 0, 0, 0, 0])  # 5 from each other, 1000 from the rest
    exact = radius_groups(RowSpace(Rows(rows), "l2"), 5.0, 0)
    assert exact.tolist() == [*range(20), *range(20)]
    below = radius_groups(RowSpace(Rows(rows), "l2"), np.nextafter(5.0, 0), 0)
    assert below.tolist() == list(range(40))


def test_pairs_are_measured_in_portions_and_never_twice_within_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pca_bounds, "BOX", 64)
    monkeypatch.setattr(close_rows, "_AT_ONCE", 128)
    monkeypatch.setattr(close_rows, "_FETCHED", 128)
    measured = []
    distances = RowSpace.distances

    def counted(self: RowSpace, first: Any, second: Any) -> Any:
        measured.append(len(first))
        return distances(self, first, second)

    monkeypatch.setattr(RowSpace, "distances", counted)
    rows = np.repeat(np.random.default_rng(0).normal(size=(2, 16)), 500, 0)
    found = radius_groups(RowSpace(Rows(rows), "cosine"), 0.01, 0)
    assert found.tolist() == [0] * 500 + [500] * 500
    assert sum(measured) < 10_000  # of 250,000 close pairs


def test_groups_do_not_depend_on_the_seed() -> None:
    rows = copies(np.random.default_rng(0), 400, 12)
    space = RowSpace(Rows(rows), "l2")
    np.testing.assert_array_equal(radius_groups(space, 0.01, 0), radius_groups(space, 0.01, 5))


def test_disjoint_sets_join_chains_and_stars_to_their_smallest_member() -> None:
    sets = DisjointSets(9)
    sets.join(np.array([8, 7, 6, 1, 1, 1]), np.array([7, 6, 5, 4, 2, 3]))
    assert sets.roots().tolist() == [0, 1, 1, 1, 1, 5, 5, 5, 5]
    sets.join(np.array([4]), np.array([8]))
    assert sets.roots(np.array([5, 0])).tolist() == [1, 0]


def test_members_stand_by_their_distance_to_the_first(tmp_path: Path) -> None:
    rows = np.array([[0.0, 0], [10, 0], [1, 0], [3, 0], [10, 0.5], [2, 0], [50, 50]])
    found = NearDuplicates(metric="l2", distance=1)(rows)
    assert found.ids.tolist() == [0, 2, 5, 3, 1, 4]
    assert found.groups.tolist() == [1, 1, 1, 1, 2, 2]
    assert found.distances.tolist() == [0, 1, 2, 3, 0, 0.5]
    assert found.summary()[0] == {
        "group": 1, "images": 4, "keep": "row 0", "farthest": "row 3", "distance": 3.0
    }  # fmt: skip
    folder = found.save(tmp_path / "out")
    table = (folder / "near-duplicates.csv").read_text().splitlines()
    assert table[0] == "group,keep,id,name,label,distance,width,height"
    assert table[1:3] == ["1,yes,0,row 0,,0.0,,", "1,no,2,row 2,,1.0,,"]
    assert load_result(folder).groups.tolist() == found.groups.tolist()


def test_a_store_gives_the_groups_of_its_rows_and_keeps_the_largest_image(tmp_path: Path) -> None:
    store = write_synthetic(
        tmp_path / "s.scope", 600, width=16, clusters=30, shard_size=100, unreadable=[3, 250]
    )
    rows = rows_of(0, 600, width=16, clusters=30, block=100)
    readable = np.delete(np.arange(600), [3, 250])
    found = NearDuplicates(distance=0.05)(store)
    first = brute_force(rows[readable], "cosine", 0.05)
    sizes = np.bincount(first)
    assert sorted(found.ids.tolist()) == sorted(readable[sizes[first] > 1].tolist())
    assert torch_counts(found.groups) == sorted(sizes[sizes > 1].tolist(), reverse=True)
    width, height = store.images.sizes.T
    for group in range(1, int(found.groups.max()) + 1):
        members = found.ids[found.groups == group].tolist()
        assert width[members[0]] * height[members[0]] == max(width[m] * height[m] for m in members)
    chosen = NearDuplicates(distance=0.05)(store, where="id < 300")
    assert set(chosen.ids.tolist()) <= set(range(300))


def torch_counts(groups: Any) -> list[int]:
    return np.bincount(groups.numpy())[1:].tolist()


def test_copies_of_a_photograph_are_a_group_with_their_pictures(
    lite0: HookedModel, photo_paths: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("chelsea", "coffee"):
        picture = Image.open(photo_paths[name]).convert("RGB")
        picture.save(folder / f"{name}.png")
        picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(
            folder / f"{name}-small.jpg", quality=95
        )
    store = mine(lite0, folder, tmp_path / "s.scope", layers=["global_pool"], workers=0)
    found = NearDuplicates()(store)
    assert [row["keep"] for row in found.summary()] == ["chelsea.png", "coffee.png"]
    assert torch_counts(found.groups) == [2, 2]
    assert found.pictures_of.shape[:2] == (4, 3)
    texts = [text.get_text() for text in found.figure().texts]
    assert any(text.startswith("4 of 4 images in 2 groups") or "4 of 4" in text for text in texts)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.warns(UserWarning, match="no images are shown"):
        bare = NearDuplicates()(store)
    assert bare.pictures_of is None
    assert bare.figure().texts


def test_no_near_duplicates_are_said_in_one_line(tmp_path: Path) -> None:
    found = NearDuplicates(distance=0.0)(np.eye(3))
    (row,) = found.summary()
    assert row["near_duplicates"].startswith("no two of 3 images are within 0 of each other")
    assert (found.save(tmp_path / "out") / "figure.png").stat().st_size > 1000
    assert len(load_result(tmp_path / "out").ids) == 0


def test_wrong_calls_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.ones((5, 2))
    rows[:, 0] = np.arange(5)
    bad = rows.copy()
    bad[2] = np.nan
    empty = rows.copy()
    empty[[1, 3]] = 0
    uneven = 1e-30 * np.random.default_rng(0).normal(size=(5000, 2))
    unseen = np.setdiff1d(np.arange(5000), Rows(uneven).sample(4096, 0))
    uneven[unseen[0]] = 1e10
    calls = [
        ("'distance'.*-1", lambda: NearDuplicates(distance=-1)),
        ("'distance'.*nan", lambda: NearDuplicates(distance=float("nan"))),
        ("l2 has no default distance", lambda: NearDuplicates(metric="l2")),
        ("1 of 5 rows.*NaN.*row 2", lambda: NearDuplicates()(bad)),
        ("2 of 5 rows.*all zero.*row 1, row 3.*l2", lambda: NearDuplicates()(empty)),
        ("at least 2 images", lambda: NearDuplicates()(rows[:1])),
        ("takes no query images", lambda: NearDuplicates()(rows, [1])),
        ("values up to 1e\\+20", lambda: NearDuplicates(metric="l2", distance=1)(rows * 2.5e19)),
        ("differ too much in size", lambda: NearDuplicates(metric="l2", distance=1)(uneven)),
    ]  # fmt: skip
    for message, call in calls:
        with pytest.raises(ParameterError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    store = write_synthetic(tmp_path / "s.scope", 20, width=4, clusters=4, shard_size=10)
    assert main(["run", "near-duplicates", str(store.path), "--metric", "l2"]) == 2
    assert "l2 has no default distance" in capsys.readouterr().err
    assert main(["run", "near-duplicates", str(store.path), "--layer", "x"]) == 2
    assert LAYER in capsys.readouterr().err
