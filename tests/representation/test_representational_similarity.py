"""CKA and RSA equal their n × n formulas, whatever the order of the images in the stores."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from timmscope import LayerNotFound, ParameterError, Store, load_model, load_result, mine, technique
from timmscope.cli import main
from timmscope_representation.distances.layer_similarity import LayerSimilarity

RepresentationalSimilarity: Any = technique("representational-similarity")


def layers_of(count: int, *dims: int, seed: int = 0) -> list[np.ndarray]:
    """Rows that share some of what they hold."""
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(count, 4))
    return [
        common @ generator.normal(size=(4, dim)) + 2 * generator.normal(size=(count, dim)) + 3
        for dim in dims
    ]


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. (2019), equations 1 and 2, by centring n × n matrices."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, l = (centring @ z @ z.T @ centring for z in (x, y))  # noqa: E741
    return float((k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()))


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (2012), equation 5, with the diagonals of n × n matrices set to zero."""
    n, ones = len(x), np.ones(len(x))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    total = np.trace(k @ l)
    total += (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * (ones @ k @ l @ ones)
    return float(total / (n * (n - 3)))


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    return unbiased_hsic(x, y) / np.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))


# CKA


@pytest.mark.parametrize(("count", "dims"), [(50, (3, 7, 20)), (12, (30, 5, 40)), (4, (6, 2, 9))])
def test_cka_equals_the_formulas_on_n_by_n_matrices(count: int, dims: tuple[int, ...]) -> None:
    rows = layers_of(count, *dims)
    found = RepresentationalSimilarity()(rows)
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            assert float(found.cka_biased[i, j]) == pytest.approx(plain_cka(x, y), abs=1e-10)
            assert float(found.cka[i, j]) == pytest.approx(debiased_cka(x, y), abs=1e-9)
    assert found.cka.diagonal().tolist() == found.cka_biased.diagonal().tolist() == [1, 1, 1]


def test_cka_does_not_change_with_rotation_scale_and_shift() -> None:
    x, y = layers_of(60, 8, 5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    found = RepresentationalSimilarity()([x, 1000 * x @ turn - 7, y, y * 1e-3 + 50])
    assert float(found.cka[0, 1]) == pytest.approx(1, abs=1e-10)
    assert float(found.cka_biased[0, 1]) == pytest.approx(1, abs=1e-10)
    corner = found.cka[:2, 2:].numpy()
    np.testing.assert_allclose(corner, corner[0, 0], rtol=1e-8)


@pytest.mark.parametrize("distance", ["correlation", "euclidean"])
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**1000])
def test_no_scale_of_a_layer_leaves_the_range_of_numbers(distance: str, scale: float) -> None:
    x, y = layers_of(40, 6, 9)
    similarity = RepresentationalSimilarity(distance=distance)
    expected, found = similarity([x, y]), similarity([x, y * scale])
    torch.testing.assert_close(found.cka, expected.cka, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.cka_biased, expected.cka_biased, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.rsa, expected.rsa, rtol=1e-12, atol=1e-12)


def test_debiased_cka_of_unrelated_layers_is_near_zero_where_the_plain_one_is_not() -> None:
    generator = np.random.default_rng(2)
    found = RepresentationalSimilarity()([generator.normal(size=(100, 400)) for _ in range(2)])
    assert abs(float(found.cka[0, 1])) < 0.05
    assert float(found.cka_biased[0, 1]) > 0.7


def test_many_batches_and_passes_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = layers_of(120, 6, 9, 4, 11)
    whole = RepresentationalSimilarity()(rows)
    monkeypatch.setattr("timmscope_representation.distances.paired_rows._BATCH", 7)
    monkeypatch.setattr("timmscope_representation.distances.similarity._PAIR_BYTES", 8 * 60)
    parts = RepresentationalSimilarity()(rows)
    monkeypatch.setattr("timmscope_representation.distances.paired_rows._VALUES", 30)
    singly = RepresentationalSimilarity()(rows)
    torch.testing.assert_close(singly.cka, whole.cka, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.cka, whole.cka, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.cka_biased, whole.cka_biased, rtol=1e-12, atol=1e-12)


def test_float32_rows_far_from_zero_cost_no_digits() -> None:
    x, y = (rows.astype(np.float32) for rows in layers_of(80, 5, 6))
    near = RepresentationalSimilarity()([x, y]).cka
    far = RepresentationalSimilarity()([x.astype(np.float64) + 1e6, y]).cka
    torch.testing.assert_close(far, near, rtol=1e-8, atol=0)


# RSA


@pytest.mark.parametrize("distance", ["correlation", "euclidean"])
def test_rsa_equals_scipys_rank_correlation_of_distances(distance: str) -> None:
    rows = layers_of(30, 5, 12, 8)
    found = RepresentationalSimilarity(distance=distance)(rows)
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            expected = spearmanr(pdist(x, distance), pdist(y, distance)).statistic
            assert float(found.rsa[i, j]) == pytest.approx(expected, abs=1e-12)


def test_equal_images_are_ties_in_rsa() -> None:
    x, y = layers_of(20, 5, 6)
    x[10:] = x[:10]
    y[15:] = y[0]
    found = RepresentationalSimilarity(distance="euclidean")([x, y])
    expected = spearmanr(pdist(x), pdist(y)).statistic
    assert float(found.rsa[0, 1]) == pytest.approx(expected, abs=1e-10)


def test_rsa_looks_at_a_sample_drawn_by_the_seed() -> None:
    rows = layers_of(200, 5, 8)
    few = RepresentationalSimilarity(sample=20)
    first, again, other = few(rows, seed=1), few(rows, seed=1), few(rows, seed=2)
    assert (first.images, first.sampled) == (200, 20)
    assert first.rsa[0, 1] == again.rsa[0, 1] != other.rsa[0, 1]
    assert first.cka[0, 1] == other.cka[0, 1]
    assert few(rows, seed=-1).sampled == 20
    drawn = np.sort(np.random.default_rng(1).choice(200, 20, replace=False))
    expected = spearmanr(*(pdist(x[drawn], "correlation") for x in rows)).statistic
    assert float(first.rsa[0, 1]) == pytest.approx(expected, abs=1e-12)


# Stores


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve random images `a/00.png` …; and two of them in another order, among others."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(3)
    (root / "a").mkdir()
    for number in range(12):
        low = generator.uniform(0, 255, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(low).resize((64, 64)).save(root / "a" / f"{number:02d}.png")
    (root / "a" / "05.png").write_bytes(b"no image")
    (root / "other").mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (number * 50, 0, 0)).save(root / "other" / f"x{number}.png")
    return root


SOME = ("09", "02", "05", "07", "11", "00", "04")


@pytest.fixture(scope="module")
def stores(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """One of all images, one of some in an order of their own, one of others."""
    place = tmp_path_factory.mktemp("stores")
    resnet = load_model("random:resnet18?seed=0&img_size=64")
    convnext = load_model("random:convnext_atto?seed=1&img_size=64")
    listing = place / "some.txt"
    listing.write_text("".join(f"{number}.png\n" for number in SOME))
    for number in SOME:
        (place / f"{number}.png").write_bytes((folders / "a" / f"{number}.png").read_bytes())
    make = [
        ("all", resnet, folders / "a", ["layer1", "layer4"]),
        ("some", convnext, listing, ["stages.0", "stages.3"]),
        ("other", resnet, folders / "other", ["layer1", "layer4"]),
        ("twin", resnet, listing, ["layer1", "layer4"]),
    ]
    return {
        name: mine(model, images, place / f"{name}.scope", layers=layers, shard_size=4, workers=0)
        for name, model, images, layers in make
    }


def test_images_are_matched_by_name_whatever_their_order(stores: dict[str, Store]) -> None:
    shared = [f"{number}.png" for number in sorted(set(SOME) - {"05"})]
    rows = []
    for name, layers in (("all", ("layer1", "layer4")), ("some", ("stages.0", "stages.3"))):
        ids = [list(stores[name].images.paths).index(path) for path in shared]
        rows += [np.asarray(stores[name].layer(layer).pooled[ids], np.float64) for layer in layers]
    found = RepresentationalSimilarity()([stores["all"], stores["some"]])
    assert found.images == 6
    assert found.layers == ["layer1", "layer4", "stages.0", "stages.3"]
    assert found.groups[0] == stores["all"].manifest.model.id
    assert found.groups[3] == stores["some"].manifest.model.id
    for i, j in ((0, 1), (0, 2), (1, 3)):
        assert float(found.cka[i, j]) == pytest.approx(debiased_cka(rows[i], rows[j]), abs=1e-7)
        expected = spearmanr(*(pdist(rows[x], "correlation") for x in (i, j))).statistic
        assert float(found.rsa[i, j]) == pytest.approx(expected, abs=1e-9)
    assert any("6 images are in all stores; up to 5 others" in note for note in found.remarks)


def test_the_same_images_in_another_order_are_seen_alike(stores: dict[str, Store]) -> None:
    found = RepresentationalSimilarity()([stores["all"], stores["twin"]], layer="layer4")
    assert float(found.cka[0, 1]) == pytest.approx(1, abs=1e-6)
    assert float(found.rsa[0, 1]) == pytest.approx(1, abs=1e-3)
    assert found.groups == ["all", "twin"]  # one model: the stores tell them apart
    assert found.names == ["all layer4", "twin layer4"]


def test_layers_of_one_store_are_read_in_order_with_a_condition(stores: dict[str, Store]) -> None:
    store = stores["all"]
    ids = [0, 1, 2, 3, 4, 6]
    x, y = (np.asarray(store.layer(name).pooled[ids], float) for name in ("layer1", "layer4"))
    found = RepresentationalSimilarity()(store, where="id < 7")
    assert (found.images, found.names) == (6, ["layer1", "layer4"])
    assert float(found.cka[0, 1]) == pytest.approx(debiased_cka(x, y), abs=1e-7)
    named = RepresentationalSimilarity()(store, layer=["layer4", "layer1", "layer4"])
    assert named.layers == ["layer4", "layer1"]


def test_other_images_under_the_same_names_are_noticed(
    stores: dict[str, Store], folders: Path, tmp_path: Path
) -> None:
    model = load_model("random:resnet18?seed=0&img_size=64")
    made = {}
    for kind in ("wide", "turned"):
        (tmp_path / kind).mkdir()
        for path in (folders / "other").iterdir():
            image = Image.open(path)
            image = image.resize((80, 64)) if kind == "wide" else image.rotate(180)
            image.putpixel((0, 0), (1, 2, 3))
            image.save(tmp_path / kind / path.name)
        place = tmp_path / f"{kind}.scope"
        made[kind] = mine(model, tmp_path / kind, place, layers=["layer4"], workers=0)
    known = stores["other"].layer("layer4")
    for kind, words in (("wide", "5 images of wide have another size"), ("turned", "Files or")):
        found = RepresentationalSimilarity()([known, made[kind]])
        assert any(words in note for note in found.remarks)
    same = RepresentationalSimilarity()([known, stores["other"]], layer="layer1")
    assert not same.remarks


def test_a_result_survives_saving_with_its_table(stores: dict[str, Store], tmp_path: Path) -> None:
    found = RepresentationalSimilarity()([stores["all"], stores["some"]])
    again = load_result(found.save(tmp_path / "out"))
    assert isinstance(again, LayerSimilarity)
    assert torch.equal(again.cka, found.cka)
    assert again.summary() == found.summary()
    table = list(csv.DictReader(io.StringIO((tmp_path / "out/similarity.csv").read_text())))
    assert len(table) == 6
    assert float(table[0]["cka"]) == float(found.cka[0, 1])
    assert float(table[5]["rsa"]) == float(found.rsa[2, 3])
    assert table[0]["layer"].endswith("layer1")


def test_the_figure_names_every_layer_and_has_a_number_in_each_cell(
    stores: dict[str, Store],
) -> None:
    found = RepresentationalSimilarity()([stores["all"], stores["some"]])
    figure = found.figure()
    cka, rsa, _ = figure.axes
    labels = [text.get_text() for text in cka.get_yticklabels()]
    assert labels == ["A layer1", "A layer4", "B stages.0", "B stages.3"]
    assert [text.get_text() for text in rsa.get_xticklabels()] == labels
    assert [text.get_text() for text in rsa.texts] == [f"{v:.2f}" for v in found.rsa.ravel()]
    key = [text.get_text() for text in figure.texts]
    assert f"A {found.groups[0]}" in key
    assert f"B {found.groups[2]}" in key


def test_many_layers_fit_a_page_with_readable_names() -> None:
    rows = layers_of(10, *([3] * 120))
    figure = RepresentationalSimilarity(distance="euclidean")(rows).figure()
    width, height = figure.get_size_inches()
    assert width < 20
    assert height < 20
    assert 30 < len(figure.axes[0].get_yticklabels()) < 120
    assert not figure.axes[0].texts


# Bad input


def test_wrong_layers_are_one_clear_line(stores: dict[str, Store]) -> None:
    x, y = layers_of(20, 3, 4)
    nan, dead, single = y.copy(), y.copy(), np.zeros((20, 3))
    nan[[1, 7, 9]] = np.nan
    dead[[4, 6]] = 0
    single[3] = 1
    run = RepresentationalSimilarity()
    euclidean = RepresentationalSimilarity(distance="euclidean")
    calls: list[tuple[str, Any]] = [
        ("compares layers with each other, 1 is given", lambda: run(x)),
        ("compares layers with each other, 0 is given", lambda: run([])),
        ("1 is given", lambda: run([stores["all"].layer("layer1")] * 2)),
        ("at least 4 images that all layers share, there are 3", lambda: run([x[:3], y[:3]])),
        ("there are 2", lambda: run([stores["all"], stores["some"]], where="name < '04.png'")),
        ("the array and the array cannot be matched by name: 20 and 19", lambda: run([x, y[:19]])),
        ("cannot be matched by name", lambda: run([stores["all"], x])),
        ("share no image: the names begin with '00.png' and 'x0.png'",
         lambda: run([stores["all"], stores["other"]])),
        ("3 of 20 rows .* NaN or infinite values: row 1, row 7, row 9", lambda: run([x, nan])),
        ("equal in 2 of 20 images .row 4, row 6.*distance to euclidean", lambda: run([x, dead])),
        ("equal in 20 of 20 images .*and 17 more", lambda: run([x, y[:, :1]])),
        *(("row 3 is so far from the other images in the array", lambda factor=factor: euclidean(
            [x, np.where(np.arange(20)[:, None] == 3, factor, 1) * x]))
            for factor in (1e6, 1e9, 1e20)),
        ("all distances of 20 images in the array", lambda: euclidean([x, np.eye(20)])),
        ("all distances .* are equal", lambda: euclidean([x, np.ones((20, 2))])),
        ("the 20 rows of the array are equal, or all but one are",
         lambda: euclidean([x, single])),
        ("'sample'.*3", lambda: RepresentationalSimilarity(sample=3)),
        ("'distance'.*'cosine'", lambda: RepresentationalSimilarity(distance="cosine")),
    ]  # fmt: skip
    for message, call in calls:
        with pytest.raises(ParameterError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(LayerNotFound, match=r"all\.scope has no layer 'stages\.0'"):
        run([stores["some"], stores["all"]], layer="stages.0")


def test_the_command_compares_layers_and_models(
    stores: dict[str, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "representational-similarity"]
    out = ["-o", str(tmp_path / "out")]
    both = [str(stores["all"].path), str(stores["some"].path)]
    assert main([*run, *both, "--distance", "euclidean", "--json", *out]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["files"] == ["figure.png", "similarity.csv"]
    assert len(record["summary"]) == 6
    assert main([*run, both[0], "-l", "layer4,layer1", "--where", "id < 9", *out]) == 0
    assert "layer4   layer1" in capsys.readouterr().out
    for words, message in (
        ([both[0], "-l", "layer4"], "compares layers with each other, 1 is given"),
        ([*both, "-l", "layer4"], "some.scope has no layer 'layer4'"),
        ([both[0], str(stores["other"].path)], "share no image"),
        ([both[0], "--where", "id < 3"], "there are 3"),
    ):
        assert main([*run, *words, *out]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
