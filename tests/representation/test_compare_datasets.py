"""FID, KID and neighbourhood measures equal closed forms and peers; wrong pairs are refused."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image, ImageFilter
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from tests.store.rewriting import rewrite_manifest

from timmscope import (
    HookedModel,
    LayerNotFound,
    ParameterError,
    Store,
    StoreMismatch,
    load_model,
    load_result,
    mine,
    technique,
)
from timmscope.cli import main
from timmscope_representation.distances.dataset_comparison import DatasetComparison
from timmscope_representation.distances.set_distances import frechet_distance, set_distances
from timmscope_representation.moments import Moments

CompareDatasets: Any = technique("compare-datasets")
LAYER = "blocks.5"


def rows(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, dim))


def with_moments(count: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose sample mean and covariance (n - 1) are exactly these."""
    x = rows(count, len(mean), seed)
    x = x - x.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T).T
    return white @ np.linalg.cholesky(covariance).T + mean


# Moments and FID


def test_moments_of_batches_equal_numpys_even_far_from_zero() -> None:
    x = rows(1000, 7, 0) * np.arange(1, 8) + 1e5
    found = Moments.of(7, np.split(x, [1, 1, 400, 999]))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)
    assert not found.constant
    assert Moments.of(7, [np.repeat(x[:1], n, 0) for n in (3, 4)]).constant


def test_fid_of_gaussians_equals_the_closed_form() -> None:
    """Commuting covariances: the squared gap of means plus that of the standard deviations."""
    deviations = np.array([[1.0, 2, 0.5, 3], [2.0, 2, 1.5, 0.1]])
    rotation = np.linalg.qr(rows(4, 4, 1))[0]
    means = np.array([[0, 1, 2, 3], [1, 1, 0, 3.5]])
    sets = [
        with_moments(500, mean, rotation @ np.diag(deviation**2) @ rotation.T, seed)
        for seed, (mean, deviation) in enumerate(zip(means, deviations, strict=True))
    ]
    expected = 1 + 0 + 4 + 0.25 + (np.diff(deviations, axis=0) ** 2).sum()
    found = CompareDatasets()(sets)
    assert found.fid == pytest.approx(expected, rel=1e-9)


def test_fid_equals_a_square_root_of_the_product_of_covariances() -> None:
    x, y = rows(400, 60, 2) @ rows(60, 60, 3), rows(300, 60, 4, 0.3) @ rows(60, 60, 5)
    c1, c2 = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected += np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    found = CompareDatasets()([x, y])
    assert found.fid == pytest.approx(expected, rel=1e-8)
    assert CompareDatasets()([y, x]).fid == pytest.approx(expected, rel=1e-8)


def test_fid_of_fewer_rows_than_units_is_exact_too_and_comes_with_a_warning() -> None:
    """Covariances of rank n - 1: the trace of the root is the nuclear norm of X Yᵀ."""
    x, y = rows(20, 50, 6), rows(30, 50, 7, 0.5)
    xc, yc = x - x.mean(0), y - y.mean(0)
    root = np.linalg.norm(xc @ yc.T, "nuc") / np.sqrt(19 * 29)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * root
    with pytest.warns(UserWarning, match="20 images of array 1 and 30 images of array 2 do not"):
        found = CompareDatasets()([x, y])
    assert found.fid == pytest.approx(expected, rel=1e-9)
    assert any("use KID" in note for note in found.remarks)
    same = Moments.of(50, [x])
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-10)


# KID


def test_kid_equals_the_sums_over_all_pairs() -> None:
    x, y = rows(40, 6, 8), rows(25, 6, 9, 0.4)
    kernel = {
        name: polynomial_kernel(a, b, degree=3, gamma=1 / 6, coef0=1)
        for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))
    }

    def mmd(keep_x: np.ndarray, keep_y: np.ndarray) -> float:
        pairs_x = list(itertools.permutations(keep_x, 2))
        pairs_y = list(itertools.permutations(keep_y, 2))
        first = np.mean([kernel["xx"][pair] for pair in pairs_x])
        second = np.mean([kernel["yy"][pair] for pair in pairs_y])
        return float(first + second - 2 * kernel["xy"][np.ix_(keep_x, keep_y)].mean())

    all_x, all_y = np.arange(40), np.arange(25)
    left_x = [mmd(np.delete(all_x, i), all_y) for i in all_x]
    left_y = [mmd(all_x, np.delete(all_y, i)) for i in all_y]
    error = np.sqrt(39 * np.var(left_x) + 24 * np.var(left_y))
    found = CompareDatasets()([x, y])
    assert found.kid == pytest.approx(mmd(all_x, all_y), rel=1e-10)
    assert found.kid_error == pytest.approx(error, rel=1e-8)


def test_kid_of_equal_distributions_is_zero_on_average_and_its_error_is_its_spread() -> None:
    draws = [set_distances(rows(30, 4, 2 * i), rows(40, 4, 2 * i + 1), 1) for i in range(300)]
    kids = np.array([draw.kid for draw in draws])
    assert abs(kids.mean()) < 3 * kids.std() / np.sqrt(len(kids))
    far = [set_distances(rows(30, 4, 2 * i), rows(40, 4, 2 * i + 1, 1), 1) for i in range(300)]
    spread = np.std([draw.kid for draw in far])
    assert np.mean([draw.kid_error for draw in far]) == pytest.approx(spread, rel=0.15)


# Neighbourhoods


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbourhood_measures_equal_brute_force(k: int) -> None:
    x, y = rows(60, 3, 10), rows(45, 3, 11, 0.6)
    radius_x = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]
    radius_y = NearestNeighbors(n_neighbors=k).fit(y).kneighbors()[0][:, -1]
    gaps = euclidean_distances(x, y)
    inside = gaps <= radius_x[:, None]
    found = CompareDatasets(k=k, examples=5)([x, y])
    assert found.precision == inside.any(0).mean()
    assert found.recall == (gaps <= radius_y).any(1).mean()
    assert found.density == pytest.approx(inside.sum() / (k * 45), rel=1e-12)
    assert found.coverage == inside.any(1).mean()
    for side, own in enumerate((gaps, gaps.T)):
        order = np.argsort(-own.min(1), kind="stable")[:5]
        assert found.far_ids[side] == order.tolist()
        np.testing.assert_allclose(found.far_distances[side], own.min(1)[order], rtol=1e-9)
        assert found.nearest_names[side] == [f"row {i}" for i in own[order].argmin(1)]


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_rows_far_from_zero_cost_no_neighbour(far: float) -> None:
    x, y = rows(60, 5, 31), rows(40, 5, 32, 0.3)
    near, moved = CompareDatasets()([x, y]), CompareDatasets()([x + far, y + far])
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(moved, name) == getattr(near, name) < 1, name
    assert moved.fid == pytest.approx(near.fid, rel=1e-6)
    assert moved.far_names == near.far_names
    assert moved.nearest_names == near.nearest_names
    kernel = functools.partial(polynomial_kernel, degree=3, gamma=1 / 5, coef0=1)
    product = float(kernel(x + far, y + far).mean())
    within = [kernel(z + far) for z in (x, y)]
    own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    assert moved.kid == pytest.approx(sum(own) - 2 * product, abs=1e-12 * product)


def test_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(50, 4, 12).astype(np.float32), rows(70, 4, 13, 0.2).astype(np.float32)
    whole = set_distances(x, y, 3)
    monkeypatch.setattr("timmscope_representation.distances.set_distances._BLOCK_BYTES", 8 * 70 * 7)
    counted: list[int] = []
    parts = set_distances(x, y, 3, counted.append)
    assert sum(counted) == 2 * 50 + 70
    assert len(counted) > 15
    for name in ("kid", "kid_error", "precision", "recall", "density", "coverage"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    for side in (0, 1):
        np.testing.assert_array_equal(parts.nearest[side], whole.nearest[side])
        np.testing.assert_allclose(parts.distances[side], whole.distances[side], rtol=1e-12)


def test_a_set_compared_with_itself_lacks_nothing() -> None:
    x = rows(50, 3, 14) * 100
    found = CompareDatasets()([x, x.copy()])
    assert found.fid == pytest.approx(0, abs=1e-8)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(1.2)  # k neighbours and the row itself
    assert found.far_ids == [[], []]
    assert any("50 images of array 2 equal one of array 1" in note for note in found.remarks)
    assert "lacks nothing" in texts(found)


def test_sets_far_apart_share_nothing() -> None:
    found = CompareDatasets()([rows(40, 3, 15), rows(40, 3, 16, 100.0)])
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)
    assert found.fid == pytest.approx(3 * 100**2, rel=0.02)
    assert found.kid > 1e9


def test_a_sample_is_drawn_by_the_seed_and_named() -> None:
    x, y = rows(300, 3, 17), rows(200, 3, 18, 0.3)
    first, again, other = (CompareDatasets(sample=100)([x, y], seed=seed) for seed in (1, 1, 2))
    assert (first.images, first.sampled) == ([300, 200], [100, 100])
    assert first.kid == again.kid != other.kid
    assert first.fid == other.fid == CompareDatasets()([x, y]).fid
    assert any("100 of 300 images of array 1" in note for note in first.remarks)


def test_sets_made_image_by_image_from_each_other_are_sampled_independently() -> None:
    """A hundred of 1000 and their own copies have a KID far below zero; a tenth are drawn so."""
    x = rows(1000, 40, 22)
    found = [CompareDatasets(sample=100)([x, x + 1e-3], seed=seed) for seed in range(-1, 20)]
    paired = set_distances(x[:100], x[:100] + 1e-3, 5).kid
    assert paired < -0.1
    assert abs(np.mean([each.kid for each in found]) - paired / 10) < 0.01


def test_points_lie_in_the_plane_of_the_largest_common_variance() -> None:
    x = rows(40, 5, 19) * [1, 1, 9, 1, 4]
    y = rows(30, 5, 20, 0.5) * [1, 1, 9, 1, 4]
    both = np.concatenate([x, y])
    both -= both.mean(0)
    left, sizes, _ = np.linalg.svd(both, full_matrices=False)
    found = CompareDatasets()([x, y])
    expected = left[:, :2] * sizes[:2]
    np.testing.assert_allclose(found.points.abs().numpy(), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(found.explained, (sizes**2 / (sizes**2).sum())[:2], rtol=1e-9)
    narrow = CompareDatasets()([x[:, :1], y[:, :1]])
    assert narrow.points.shape == (70, 2)
    assert narrow.figure() is not None


# Stores


@pytest.fixture(scope="module")
def folders(photo_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of photographs: `real`, the same blurred, and `few` without the cat."""
    root = tmp_path_factory.mktemp("sets")
    generator = np.random.default_rng(0)
    for name in ("real", "blurred", "few"):
        (root / name).mkdir()
    for subject in ("chelsea", "coffee", "rocket"):
        picture = Image.open(photo_paths[subject]).convert("RGB")
        for number in range(6):
            left, upper = (int(generator.integers(0, size - 150)) for size in picture.size)
            crop = picture.crop((left, upper, left + 150, upper + 150))
            crop.save(root / "real" / f"{subject}-{number}.png")
            crop.filter(ImageFilter.GaussianBlur(3)).save(
                root / "blurred" / f"{subject}-{number}.png"
            )
            if subject != "chelsea":
                crop.save(root / "few" / f"{subject}-{number}.png")
    return root


@pytest.fixture(scope="module")
def stores(lite0: HookedModel, folders: Path) -> dict[str, Store]:
    return {
        name: mine(lite0, folders / name, folders / f"{name}.scope", layers=[LAYER], workers=0)
        for name in ("real", "blurred", "few")
    }


def compare(*sources: Any, **settings: Any) -> DatasetComparison:
    call = {name: settings.pop(name) for name in ("layer", "where", "location") if name in settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = CompareDatasets(**settings)(list(sources), **call)
    assert isinstance(found, DatasetComparison)
    return found


def texts(found: DatasetComparison) -> str:
    return "\n".join(text.get_text() for text in found.figure().texts)


def test_stores_are_compared_by_their_rows_and_show_what_either_lacks(
    stores: dict[str, Store], folders: Path, lite0: HookedModel
) -> None:
    found = compare(stores["real"], stores["few"], k=3, examples=4)
    arrays = compare(*(np.asarray(stores[n].layer(LAYER).pooled) for n in ("real", "few")), k=3)
    for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
        assert getattr(found, name) == getattr(arrays, name)
    assert (found.titles, found.images) == (["real", "few"], [18, 12])
    assert found.features == "blocks.5 of pip:efficientnet-lite0, 192 units"
    assert all(name.startswith("chelsea") for name in found.far_names[0])
    assert found.far_ids[1] == []
    assert found.recall < 1 == found.precision
    assert found.pictures_of is not None
    shown = found.pictures_of[0, 0, 0]
    seen = lite0.images(folders / "real" / found.far_names[0][0])
    expected = torch.nn.functional.adaptive_avg_pool2d(seen, shown.shape[-1])[0]
    torch.testing.assert_close(shown, expected)
    assert found.provenance.call["reference"]["store"] == str(stores["real"].path)


def test_blurred_copies_are_told_from_the_originals(stores: dict[str, Store]) -> None:
    found = compare(stores["real"], stores["blurred"])
    itself = compare(stores["real"], stores["real"].layer(LAYER))
    assert found.kid > 2 * found.kid_error > 0 > itself.kid
    assert found.fid > itself.fid + 1
    assert found.recall < 0.5 < itself.recall
    assert found.far_names[1]
    assert "What real lacks: images of blurred farthest from it" in texts(found)


def test_a_result_survives_saving_with_its_tables(stores: dict[str, Store], tmp_path: Path) -> None:
    found = compare(stores["real"], stores["blurred"], examples=3)
    again = load_result(found.save(tmp_path / "out"))
    assert isinstance(again, DatasetComparison)
    assert again.summary() == found.summary()
    assert torch.equal(again.pictures_of, found.pictures_of)  # type: ignore[arg-type]
    table = list(csv.DictReader(io.StringIO((tmp_path / "out/measures.csv").read_text())))
    assert [row["measure"] for row in table][:2] == ["FID", "KID"]
    assert float(table[0]["value"]) == found.fid
    far = list(csv.DictReader(io.StringIO((tmp_path / "out/farthest.csv").read_text())))
    assert [row["image"] for row in far] == [*found.far_names[0], *found.far_names[1]]
    assert float(far[3]["distance"]) == found.far_distances[1][0]


def test_a_condition_holds_for_both_and_images_may_have_moved(
    stores: dict[str, Store], folders: Path, tmp_path: Path
) -> None:
    found = compare(stores["real"], stores["blurred"], where="'coffee' in name", k=2)
    assert found.images == [6, 6]
    store = Store.open(shutil.copytree(stores["real"].path, tmp_path / "copy.scope"))
    rewrite_manifest(
        store.path, lambda manifest: manifest["images"].update(location="folder:/gone")
    )
    store = Store.open(tmp_path / "copy.scope")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gone = CompareDatasets()([store, stores["blurred"]])
    assert any("no images are shown: /gone" in str(warning.message) for warning in seen)
    assert gone.pictures_of is None
    assert gone.far_names[0][0] in texts(gone)
    back = compare(store, stores["blurred"], location=[folders / "real", folders / "blurred"])
    expected = compare(stores["real"], stores["blurred"])
    assert torch.equal(back.pictures_of, expected.pictures_of)  # type: ignore[arg-type]


def test_the_same_store_twice_is_told_apart(stores: dict[str, Store], folders: Path) -> None:
    found = compare(stores["real"], str(stores["real"].path))
    assert found.fid == pytest.approx(0, abs=1e-8)
    assert found.titles == [f"{folders.name}/real 1", f"{folders.name}/real 2"]


def test_stores_made_differently_are_refused_with_what_differs(
    stores: dict[str, Store], lite0: HookedModel, folders: Path, tmp_path: Path
) -> None:
    def other(model: HookedModel, layer: str = LAYER, **settings: Any) -> Store:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}.scope"
        return mine(model, folders / "few", place, layers=[layer], workers=0, **settings)

    random = load_model("random:efficientnet_lite0?seed=0")
    with pytest.raises(StoreMismatch, match=r"cannot be compared.*weights \w{12} → \w{12}") as e:
        compare(stores["real"], other(random))
    assert e.value.differences[0].startswith("model pip:efficientnet-lite0 → random:")
    half = (0.5, 0.5, 0.5)
    small = HookedModel(lite0.module, mean=half, std=half, input_size=(3, 64, 64))
    with pytest.raises(StoreMismatch, match=r"input_size \[3, 224, 224\] → \[3, 64, 64\]"):
        compare(stores["real"], other(small))
    with pytest.raises(StoreMismatch, match="precision float32 → bfloat16"):
        compare(stores["real"], other(small, precision="bf16"))
    with pytest.raises(StoreMismatch, match=r"layer blocks\.5 → blocks\.6"):
        compare(stores["real"].layer(LAYER), other(lite0, "blocks.6").layer("blocks.6"))
    with pytest.raises(LayerNotFound, match=r"has no layer 'blocks\.5'"):
        compare(stores["real"], other(lite0, "blocks.6"), layer=LAYER)


def test_a_batch_size_or_folding_of_its_own_makes_no_other_features(
    stores: dict[str, Store], lite0: HookedModel, folders: Path, tmp_path: Path
) -> None:
    again = mine(
        lite0, folders / "real", tmp_path / "a.scope", layers=[LAYER, "conv_stem"],
        workers=0, batch_size=3,
    )  # fmt: skip
    found = compare(stores["real"], again, layer=LAYER)
    assert found.fid == pytest.approx(0, abs=1e-3)
    assert found.coverage == 1


def test_wrong_sets_are_one_clear_line() -> None:
    x = rows(20, 3, 21)
    nan = x.copy()
    nan[[2, 5], 1] = np.nan
    calls: list[tuple[str, Any]] = [
        ("two stores, a reference and another; 1 is given", lambda: CompareDatasets()(x)),
        ("a reference and another; 3 are given", lambda: CompareDatasets()([x, x, x])),
        ("a reference and another; 0 are given", lambda: CompareDatasets()([])),
        ("rows of 3 and of 2 values", lambda: CompareDatasets()([x, x[:, :2]])),
        ("k = 5 needs at least 6 images, the array has 5", lambda: CompareDatasets()([x, x[:5]])),
        ("k = 1 needs at least 3 images", lambda: CompareDatasets(k=1)([x, x[:2]])),
        ("all 20 rows of the array are equal", lambda: CompareDatasets()([x, np.ones((20, 3))])),
        ("powers overflow float64", lambda: CompareDatasets()([x, x * 1e200])),
        ("powers overflow float64", lambda: CompareDatasets()([x, x * 1e60])),
        ("2 of 20 rows .* NaN or infinite .* row 2, row 5", lambda: CompareDatasets()([nan, x])),
        ("rows of at most 8192 values", lambda: CompareDatasets()([np.ones((9, 8193))] * 2)),
        ("'k'.*0", lambda: CompareDatasets(k=0)),
        (
            "sample is 20; it must be larger than k, which is 50",
            lambda: CompareDatasets(k=50, sample=20)([x, x]),
        ),
    ]
    for message, call in calls:
        with pytest.raises(ParameterError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_command_compares_writes_and_refuses(
    stores: dict[str, Store], folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, few = str(stores["real"].path), str(stores["few"].path)
    run = ["run", "compare-datasets"]
    out = ["-o", str(tmp_path / "out")]
    assert main([*run, real, few, "--k", "3", "--json", *out]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["files"] == ["figure.png", "measures.csv", "farthest.csv"]
    assert (tmp_path / "out/figure.png").stat().st_size > 50_000
    for words, message in (
        ([real], "two stores, a reference and another; 1 is given"),
        ([real, few, real], "3 are given"),
        ([], "no store given"),
        ([real, few, "--layer", "block.5"], "did you mean"),
        ([real, few, "--layer", "a", "--layer", "b"], "one layer, but 2 are given"),
        ([real, few, "--images", str(folders / "real")], "1 location of images for 2 stores"),
        ([real, few, "--k", "12"], "k = 12 needs at least 13 images"),
    ):
        assert main([*run, *words, *out]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
