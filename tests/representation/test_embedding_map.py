"""Maps of images: right places, seeds, colours, new images, files; and refusals in one line."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tests.store.rewriting import rewrite_manifest, rewrite_rows

from timmscope import (
    HookedModel,
    ParameterError,
    PluginError,
    Rows,
    Store,
    StoreMismatch,
    load_model,
    load_result,
    mine,
    technique,
)
from timmscope.cli.main import main
from timmscope.drawing import group_by_class, number_range, range_texts
from timmscope.drawing.map_colours import MOST
from timmscope_representation.embedding.embedding import Embedding
from timmscope_representation.embedding.figure_pictures import PANEL_IN, PICTURE_IN, spread_out
from timmscope_representation.embedding.pictures import BUDGET, BYTES_PER_PIXEL, tile_px

EmbeddingMap: Any = technique("embedding-map")
MODEL = "random:resnet18?seed=0&img_size=64"
LAYER = "global_pool"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty plain images with some noise, ten in a folder for each of three colours."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(10):
            noise = generator.integers(-25, 25, size=(64, 64, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def store(model: HookedModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("stores") / "colours.scope"
    return mine(model, folder, path, layers=[LAYER, "logits"], workers=0)


def copied(store: Store, path: Path, logits: dict[int, float]) -> Store:
    """A copy whose logits of some images hold another value."""
    shutil.copytree(store.path, path)

    def change(arrays: dict[str, np.ndarray]) -> None:
        for image, value in logits.items():
            arrays["layers/logits/pooled"][image, 3] = value

    rewrite_rows(path, 0, change)
    return Store.open(path)


@pytest.fixture(scope="module")
def digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits().data[:300].astype(np.float32)


def kept(share: Any, count: int = 300) -> float:
    """Share of each row's five nearest that stay among its five nearest on the map."""
    rows, points = share

    def nearest(values: Any) -> Any:
        distances = np.square(values[:, None] - values[None]).sum(2)
        np.fill_diagonal(distances, np.inf)
        return distances.argsort(1)[:, :5]

    pairs = zip(nearest(rows), nearest(points), strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / 5 for a, b in pairs]))


def test_a_pca_map_has_the_coordinates_of_scikit_learns_pca(store: Store) -> None:
    from sklearn.decomposition import PCA

    found = EmbeddingMap(dimensions=3, thumbnails=False)(store, layer=LAYER)
    theirs = PCA(3, svd_solver="full")
    expected = theirs.fit_transform(np.asarray(store.layer(LAYER).pooled))
    np.testing.assert_allclose(found.points, expected, atol=1e-4)
    np.testing.assert_allclose(found.explained, theirs.explained_variance_ratio_, rtol=1e-5)
    assert found.ids.tolist() == list(range(30))
    assert found.names == list(store.images.paths)


UMAP = pytest.param("umap", marks=pytest.mark.slow)  # it is compiled first


@pytest.mark.parametrize("method", ["tsne", UMAP])
@pytest.mark.parametrize("dimensions", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_seeds_decide_and_neighbours_stay_neighbours(
    digits: Any, method: str, dimensions: int
) -> None:
    lay = EmbeddingMap(method=method, dimensions=dimensions, neighbours=10)
    first, again, other = (lay(digits, seed=seed).points for seed in (3, 3, 4))
    assert first.shape == (300, dimensions)
    assert torch.equal(first, again)
    if method == "umap":  # t-SNE begins at principal components, not at random
        assert not torch.equal(first, other)
    by_pca = EmbeddingMap(dimensions=dimensions)(digits).points.numpy()
    assert kept((digits, first.numpy())) > kept((digits, by_pca)) + 0.15


def test_a_small_t_sne_equals_open_tsnes_on_the_same_components(digits: Any) -> None:
    from openTSNE import TSNE
    from openTSNE.initialization import rescale
    from sklearn.decomposition import PCA

    reduced = PCA(50, svd_solver="full").fit_transform(digits.astype(float)).astype(np.float32)
    theirs = TSNE(
        perplexity=10,
        initialization=rescale(reduced[:, :2].astype(float)),
        random_state=5,
        negative_gradient_method="bh",
        n_jobs=1,
    ).fit(reduced)
    ours = EmbeddingMap(method="tsne", neighbours=10)(digits, seed=5).points.numpy()
    # Chaotic in the last bits, so compared by what it is for: who is near whom.
    assert abs(kept((digits, ours)) - kept((digits, np.asarray(theirs)))) < 0.02


@pytest.mark.parametrize("method", ["pca", "tsne", UMAP])
def test_rows_put_in_afterwards_come_out_among_their_like(digits: Any, method: str) -> None:
    known, new = digits[:280], digits[280:]
    near = None if method == "pca" else 10
    found = EmbeddingMap(method=method, neighbours=near).fit(known, seed=1)
    places = found.transform(new)
    assert places.shape == (20, 2)
    np.testing.assert_array_equal(found.transform(new), places)
    if method == "pca":
        np.testing.assert_allclose(found.transform(known[:5]), found.points[:5], atol=1e-4)
        return
    from sklearn.datasets import load_digits

    labels = load_digits().target[:300]
    nearest = np.square(places[:, None] - found.points[None]).sum(2).argmin(1)
    assert np.mean(labels[nearest] == labels[280:]) >= 0.8  # of ten classes
    with pytest.raises(ParameterError, match="rows of length 3 for a map of rows of length 64"):
        found.transform(np.ones((2, 3)))
    with pytest.raises(ParameterError, match="NaN"):
        found.transform(np.full((1, 64), np.nan))


def test_a_query_image_lands_on_its_own_row_and_moves_no_other(
    store: Store, model: HookedModel, folder: Path
) -> None:
    query = folder / "green" / "green-4.png"
    without = EmbeddingMap()(store, layer=LAYER)
    found = EmbeddingMap()(store, query, layer=LAYER, model=model)
    assert torch.equal(without.points, found.points)
    row = list(store.images.paths).index("green/green-4.png")
    np.testing.assert_allclose(found.query_points[0], found.points[row], atol=2e-3)
    assert found.query_names == [str(query)]
    assert found.provenance.call["queries"] == [str(query)]
    texts = [text.get_text() for axes in found.figure().axes for text in axes.texts]
    assert "green-4" in texts


def test_points_are_coloured_by_what_the_store_knows_and_what_is_asked_for(
    store: Store, model: HookedModel
) -> None:
    found = EmbeddingMap(unit=7, clusters=3, thumbnails=False)(store, layer=LAYER)
    assert [each["title"] for each in found.colourings] == [
        "unit 7",
        "label",
        "prediction",
        "cluster",
    ]
    rows = np.asarray(store.layer(LAYER).pooled)
    np.testing.assert_array_equal(found.values[0], rows[:, 7].astype(float))
    assert found.colourings[1]["classes"] == ["blue", "green", "red"]
    assert found.values[1].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    best = np.asarray(store.layer("logits").pooled).argmax(1).tolist()
    assert model.classes is not None
    names = [found.colourings[2]["classes"][int(code)] for code in found.values[2]]
    assert names == [model.classes.short(index) for index in best]
    # Colours are far apart, so that clusters are the folders; the largest comes first.
    clusters = found.values[3].reshape(3, 10)
    assert [len(row.unique()) for row in clusters] == [1, 1, 1]
    assert sorted(clusters[:, 0].tolist()) == [0, 1, 2]


def test_images_whose_logits_are_no_numbers_have_no_prediction_and_are_told(
    store: Store, tmp_path: Path
) -> None:
    whole = EmbeddingMap(colour="prediction", thumbnails=False)(store, layer=LAYER)
    bad = copied(store, tmp_path / "bad.scope", {4: np.nan, 20: np.inf})
    with pytest.warns(UserWarning, match=r"logits of 2 of 30 .*blue-4.png, red/red-0.png$"):
        found = EmbeddingMap(colour="prediction", thumbnails=False)(bad, layer=LAYER)
    told, expected = ([row["prediction"] for row in each.table()] for each in (found, whole))
    assert told[4] is told[20] is None
    assert told[:4] + told[5:20] + told[21:] == expected[:4] + expected[5:20] + expected[21:]
    texts = [text.get_text() for text in found.figure().texts]
    assert "no class  2" in texts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EmbeddingMap(thumbnails=False)(bad, layer=LAYER, where="id not in (4, 20)")


@pytest.fixture(scope="module")
def described(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store with a year, missing for each third image, and a camera, missing for the reds."""
    file = tmp_path_factory.mktemp("metadata") / "shots.csv"
    lines = ["path,year,camera,x,empty"]
    for number, path in enumerate(store.images.paths):
        year = "" if number % 3 == 2 else f"{2015 + number % 3}"
        camera = "" if "red" in path else ("left", "right")[number % 2]
        lines.append(f"{path},{year},{camera},{number},")
    file.write_text("\n".join(lines), encoding="utf-8")
    return store.with_metadata(file)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_column_of_numbers_has_a_scale_and_missing_ones_are_grey(
    described: Store, model: HookedModel, tmp_path: Path, dimensions: int
) -> None:
    found = EmbeddingMap(column="year", dimensions=dimensions)(described, layer=LAYER, model=model)
    assert [each["title"] for each in found.colourings] == ["year", "label", "prediction"]
    expected = [2015.0, 2016.0, np.nan] * 10
    np.testing.assert_array_equal(found.values[0], expected)
    assert [row["year"] for row in found.table()[:3]] == [2015.0, 2016.0, None]
    figure = found.figure()
    figure.draw_without_rendering()
    colours = np.concatenate(
        [
            np.broadcast_to(marks.get_facecolors(), (len(marks.get_offsets()), 4))
            for marks in figure.axes[0].collections
        ]
    )
    low, high, grey = (0.267, 0.005, 0.329), (0.993, 0.906, 0.144), (0.639, 0.663, 0.698)
    for colour in (low, high, grey):  # ends of viridis
        assert (np.abs(colours[:, :3] - colour) < 0.002).all(1).sum() == 10
    texts = {text.get_text() for text in figure.texts}
    assert {"year", "2015.0", "2015.5", "2016.0", "no value  10"} <= texts
    again = load_result(found.save(tmp_path / "out"))
    assert isinstance(again, Embedding)
    np.testing.assert_array_equal(again.values[0], expected)
    page = (tmp_path / "out" / "map.html").read_text(encoding="utf-8")
    record = json.loads(page.split('id="data">')[1].split("</script>")[0])["colourings"][0]
    assert (record["low"], record["high"]) == (2015, 2016)
    assert record["ends"] == ["2015.0", "2015.5", "2016.0"]
    assert [(group["name"], group["count"]) for group in record["groups"]] == [("no value", 10)]


def test_a_column_of_text_is_coloured_as_labels_are(described: Store, model: HookedModel) -> None:
    plain = {"thumbnails": False}
    found = EmbeddingMap(column="camera", **plain)(described, layer=LAYER, model=model)
    assert found.colourings[0] == {"title": "camera", "classes": ["left", "right"]}
    assert found.values[0].tolist() == [0, 1] * 10 + [-1] * 10
    some = EmbeddingMap(column="camera", **plain)(described, layer=LAYER, where="camera == 'right'")
    assert some.values[0].tolist() == [0] * 10
    second = EmbeddingMap(column="width", colour="label", **plain)(
        described, layer=LAYER, model=model
    )
    assert [each["title"] for each in second.colourings] == ["label", "prediction", "width"]
    assert second.values[2].tolist() == [64] * 30
    row = EmbeddingMap(column="x", **plain)(described, layer=LAYER, model=model).table()[7]
    assert row["column x"] == 7
    assert row["x"] == pytest.approx(float(found.points[7, 0]))


def test_a_column_that_cannot_colour_is_one_line_that_names_those_that_can(
    described: Store, digits: Any
) -> None:
    for column, message in (
        ("yaer", r"no column 'yaer' .*did you mean 'year'.*there are id, path, .*, camera, x, em"),
        ("readable", "no column 'readable' of text or numbers; there are id"),
        ("empty", "no image of global_pool of .* has a value in the column empty: choose"),
    ):
        with pytest.raises(ParameterError, match=message):
            EmbeddingMap(column=column)(described, layer=LAYER)
    with pytest.raises(ParameterError, match="an array has no columns of images: pass a store"):
        EmbeddingMap(column="width")(digits)
    with pytest.raises(ParameterError, match="colour 'column' needs a name: set column"):
        EmbeddingMap(colour="column")(described, layer=LAYER)


def test_the_ends_of_a_scale_have_as_many_digits_as_tell_them_apart() -> None:
    assert range_texts(0, 1) == ("0", "0.5", "1")
    assert range_texts(1_700_000_000, 1_700_000_010) == ("1700000000", "1700000005", "1700000010")
    assert range_texts(0.25, 0.2501) == ("0.25000", "0.25005", "0.25010")
    assert range_texts(2015, 2015) == ("2015", "2015", "2015")
    assert number_range([3, np.nan, np.inf, -2]) == (-2, 3)


def test_names_in_space_do_not_cover_each_other(store: Store) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 5)) * 0.01
    labels = np.repeat(["north", "south", "west"], 10)
    found = EmbeddingMap(dimensions=3)(rows)
    codes = torch.from_numpy(np.repeat([0.0, 1, 2], 10))[None]
    classes = [{"title": "label", "classes": sorted(set(labels.tolist()))}]
    figure = dataclasses.replace(found, colourings=classes, values=codes).figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for axes in figure.axes
        for text in axes.texts
        if text.get_text() in labels
    ]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_colour_says_what_is_shown_first_and_where_images_may_be_left_out(store: Store) -> None:
    chosen = EmbeddingMap(colour="cluster", clusters=2, unit=1)(
        store, layer=LAYER, where="label != 'red'"
    )
    assert chosen.colourings[0]["title"] == "cluster"
    assert len(chosen) == 20
    assert chosen.names == [name for name in store.images.paths if "red" not in name]
    assert EmbeddingMap(colour="none")(store, layer=LAYER).colourings == []
    assert EmbeddingMap()(store, layer=LAYER).colourings[0]["title"] == "label"


def test_clusters_equal_scikit_learns_on_clear_data() -> None:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    generator = np.random.default_rng(2)
    sizes = (90, 60, 40, 10)
    parts = [generator.normal(size=(n, 6)) + 12 * np.eye(6)[k] for k, n in enumerate(sizes)]
    rows = np.concatenate(parts)
    found = EmbeddingMap(clusters=4)(rows.astype(np.float32)).values[0]
    theirs = KMeans(4, n_init=5, random_state=0).fit_predict(rows)
    assert adjusted_rand_score(theirs, found.numpy()) == 1
    assert np.bincount(found.numpy().astype(int)).tolist() == [90, 60, 40, 10]


def test_rare_classes_share_a_look_and_no_two_classes_do() -> None:
    classes = [f"c{k}" for k in range(30)]
    codes = np.repeat(np.arange(30), np.arange(1, 31))
    groups = group_by_class(classes, np.append(codes, [-1, -1]))
    assert [group.name for group in groups[:MOST]] == classes[-MOST:]
    assert [group.name for group in groups[MOST:]] == ["19 other classes", "no class"]
    assert sum(len(group.members) for group in groups) == len(codes) + 2
    looks = {(group.colour, group.shape) for group in groups[:MOST]}
    assert len(looks) == len({colour for colour, _ in looks}) == MOST


def test_pictures_on_the_map_do_not_overlap_and_leave_no_gap_for_another() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(3000, 2)).astype(np.float32)
    queries = np.zeros((1, 2), np.float32)
    shown = spread_out(points, queries)
    low, high = points.min(0), points.max(0)
    span = (high - low).max() * 1.06
    side = span / PANEL_IN * PICTURE_IN
    inside = (span - side * 1.05) / 2
    middle = (low + high) / 2
    places = np.clip(points, middle - inside, middle + inside)
    apart = np.abs(places[shown][:, None] - places[shown][None]).max(2)
    np.fill_diagonal(apart, np.inf)
    assert apart.min() >= side
    assert np.abs(places[shown]).max(1).min() >= side
    left = np.delete(np.arange(3000), shown)
    taken = np.concatenate([places[shown], queries])
    clear = np.abs(places[left][:, None] - taken[None]).max(2).min(1) >= side * 1.051
    assert not clear.any()


def test_small_pictures_stay_within_their_budget() -> None:
    assert [tile_px(count) for count in (20, 304, 10_000, 100_000)] == [160, 160, 64, 24]
    for count in (1, 1000, 5000, 50_000, 200_000):
        assert count * tile_px(count) ** 2 * BYTES_PER_PIXEL <= BUDGET


def test_every_image_lies_at_its_place_on_the_sheets(store: Store) -> None:
    found = EmbeddingMap()(store, layer=LAYER)
    (sheet,) = (np.asarray(Image.open(io.BytesIO(each))) for each in found.sheet_files())
    for number, name in enumerate(found.names):
        row, column = divmod(number, found.sheet_columns)
        side = found.tile_px
        tile = sheet[row * side :, column * side :][:side, :side].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(tile, COLOURS[name.split("/")[0]], atol=12)
    assert found.shown_images is not None
    assert found.shown is not None
    for position, picture in zip(found.shown.tolist(), found.shown_images, strict=True):
        colour = COLOURS[found.names[position].split("/")[0]]
        np.testing.assert_allclose(picture.mean((1, 2)) * 255, colour, atol=12)


def test_a_map_is_saved_with_its_page_and_table_and_loads_the_same(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    found = EmbeddingMap(unit=3)(store, folder / "red" / "red-0.png", layer=LAYER)
    again = load_result(found.save(tmp_path / "out"))
    assert isinstance(again, Embedding)
    assert torch.equal(again.points, found.points)
    assert again.sheet_files() == found.sheet_files()
    assert again.documents() == found.documents()
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["files"] == ["figure.png", "map.html", "points.csv"]
    table = (tmp_path / "out" / "points.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert list(rows[0]) == ["id", "name", "x", "y", "unit 3", "label", "prediction"]
    assert len(rows) == 31
    assert float(rows[12]["x"]) == pytest.approx(float(found.points[12, 0]))
    assert rows[12]["label"] == "green"
    assert (rows[30]["id"], rows[30]["name"][-9:]) == ("", "red-0.png")


def test_an_array_has_a_map_without_pictures(digits: Any) -> None:
    found = EmbeddingMap(dimensions=3)(digits)
    assert found.sheets is None
    assert found.names[7] == "row 7"
    assert found.colourings == []
    assert len(found.figure().axes) == 2  # the space, and the names before it
    assert found.summary()[0]["images"] == 300


def test_small_points_of_every_shape_are_seen() -> None:
    kinds = np.arange(5000) % 8  # each a strip of its own
    places = np.random.default_rng(0).random((5000, 2)) * [0.5, 8] + kinds[:, None] * [1, 0]
    found = dataclasses.replace(
        EmbeddingMap()(places.astype(np.float32)),
        points=torch.from_numpy(places),
        colourings=[{"title": "kind", "classes": list("abcdefgh")}],
        values=torch.from_numpy(kinds[None].astype(float)),
    )
    figure = found.figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
    colour = pixels.max(2) - pixels.min(2)  # none in names, nor in axes
    for kind in range(8):
        corners = figure.axes[0].transData.transform([(kind - 0.1, 0), (kind + 0.6, 8)])
        (left, bottom), (right, top) = corners.round().astype(int).tolist()
        assert (colour[bottom:top, left:right] > 40).sum() > 300, kind


def test_names_that_are_no_utf8_are_kept(model: HookedModel, folder: Path, tmp_path: Path) -> None:
    import os
    import shutil

    odd = tmp_path / "odd"
    shutil.copytree(folder / "red", odd)
    (odd / "red-0.png").rename(odd / os.fsdecode(b"caf\xe9.png"))
    mined = mine(model, odd, tmp_path / "odd.scope", layers=[LAYER], workers=0)
    found = EmbeddingMap()(mined, layer=LAYER)
    again = load_result(found.save(tmp_path / "out"))
    assert isinstance(again, Embedding)
    assert again.names == found.names
    assert "caf\udce9.png" in again.names


def test_what_cannot_be_laid_out_is_one_clear_line(
    store: Store, model: HookedModel, folder: Path, digits: Any, tmp_path: Path
) -> None:
    query = folder / "red" / "red-0.png"
    other = load_model("random:resnet18?seed=1&img_size=64")
    without = mine(model, folder / "red", tmp_path / "plain.scope", layers=[LAYER], workers=0)
    broken = digits[:40].copy()
    broken[[3, 9]] = np.nan
    calls: list[tuple[type[Exception], str, Any]] = [
        (ParameterError, "at least 3 images, the array has 2", lambda: EmbeddingMap()(digits[:2])),
        (
            ParameterError,
            "perplexity 30 needs at least 91 images.*has 30: set neighbours to 9 or less",
            lambda: EmbeddingMap(method="tsne")(store, layer=LAYER),
        ),
        (
            ParameterError,
            "UMAP with 15 neighbours needs at least 16 images.*has 10: set neighbours to 9",
            lambda: EmbeddingMap(method="umap")(digits[:10]),
        ),
        (
            ParameterError,
            "UMAP with 2 neighbours needs at least 5 images.*has 4: choose the method pca",
            lambda: EmbeddingMap(method="umap", neighbours=2)(digits[:4]),
        ),
        (
            ParameterError,
            "UMAP with 2 neighbours needs at least 5 images, the array has 2$",
            lambda: EmbeddingMap(method="umap", neighbours=2)(digits[:2]),
        ),
        (ParameterError, "all 50 rows.*equal", lambda: EmbeddingMap()(np.ones((50, 4)))),
        (
            ParameterError,
            "too large for a map",
            lambda: EmbeddingMap()(digits.astype(np.float64) * 1e60),
        ),
        (
            ParameterError,
            "all 200 rows.*equal",
            lambda: EmbeddingMap(method="umap")(np.ones((200, 4))),
        ),
        (ParameterError, "2 of 40 rows.*row 3, row 9", lambda: EmbeddingMap()(broken)),
        (
            ParameterError,
            "units 0 to 511, there is no unit 512",
            lambda: EmbeddingMap(unit=512)(store, layer=LAYER),
        ),
        (ParameterError, "colour 'unit'.*set unit", lambda: EmbeddingMap(colour="unit")(digits)),
        (
            ParameterError,
            "colour 'cluster'.*set clusters",
            lambda: EmbeddingMap(colour="cluster")(digits),
        ),
        (ParameterError, "40 clusters needs", lambda: EmbeddingMap(clusters=40)(digits[:30])),
        (ParameterError, "no image of.*has a label", lambda: EmbeddingMap(colour="label")(digits)),
        (
            ParameterError,
            "holds no logits.*mine it again",
            lambda: EmbeddingMap(colour="prediction")(without, layer=LAYER),
        ),
        (
            ParameterError,
            "PCA uses no neighbours",
            lambda: EmbeddingMap(neighbours=5)(digits),
        ),
        (ParameterError, "array is not enough", lambda: EmbeddingMap()(digits, query)),
        (
            StoreMismatch,
            "other weights",
            lambda: EmbeddingMap()(store, query, layer=LAYER, model=other),
        ),
        (ParameterError, "'method'", lambda: EmbeddingMap(method="isomap")),
    ]
    for kind, message, call in calls:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["tsne", "umap"])
@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80])
def test_neighbours_know_no_scale(digits: Any, method: str, scale: float) -> None:
    rows = np.asarray(digits[:60], np.float32)
    found, scaled = (
        EmbeddingMap(method=method, neighbours=8).fit(each)
        for each in (rows, rows * np.float32(scale))
    )
    np.testing.assert_array_equal(scaled.points, found.points)
    places = scaled.transform(rows[:5] * np.float32(scale))
    np.testing.assert_array_equal(places, found.transform(rows[:5]))


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_a_seed_may_be_negative(digits: Any, method: str) -> None:
    one, two, other = (
        EmbeddingMap(method=method, neighbours=5)(digits[:60], seed=seed).points
        for seed in (-3, -3, 5)
    )
    assert torch.equal(one, two)
    assert method == "tsne" or not torch.equal(one, other)


def test_umap_leaves_torchs_number_of_threads_alone(digits: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        projection = EmbeddingMap(method="umap", neighbours=5).fit(digits[:60])
        assert torch.get_num_threads() == 1
        projection.transform(digits[60:62])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_map_of_images_that_have_gone_shows_none(store: Store, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy.scope"
    shutil.copytree(store.path, copy)
    rewrite_manifest(copy, lambda manifest: manifest["images"].update(location="folder:/gone"))
    with pytest.warns(UserWarning, match="no images are shown: /gone"):
        found = EmbeddingMap()(Store.open(copy), layer=LAYER)
    assert found.shown is None
    assert found.sheets is None
    there = EmbeddingMap()(store, layer=LAYER)
    assert torch.equal(found.points, there.points)
    assert (found.save(tmp_path / "out") / "map.html").exists()


def test_images_of_which_some_have_gone_are_told(store: Store, tmp_path: Path) -> None:
    import shutil

    folder = store.manifest.images.location.removeprefix("folder:")
    shutil.copytree(folder, tmp_path / "moved")
    lost = store.images.paths[3]
    (tmp_path / "moved" / lost).unlink()
    told = f"1 images of {LAYER} of .* can no longer be read .*: {lost}$"
    with pytest.warns(UserWarning, match=told):
        EmbeddingMap()(store, layer=LAYER, location=tmp_path / "moved")


@pytest.mark.parametrize(("method", "package"), [("tsne", "openTSNE"), ("umap", "umap-learn")])
def test_a_missing_library_is_named_with_the_way_to_get_it(
    digits: Any, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match=rf"{package}.*pip install 'timmscope\[embed\]'"):
        EmbeddingMap(method=method)(digits)
    assert len(EmbeddingMap()(digits)) == 300


def test_the_command_writes_a_map_with_a_new_image_in_it(
    store: Store, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    query = folder / "blue" / "blue-1.png"
    line = ["run", "embedding-map", str(store.path), str(query), "--layer", LAYER, "-o", str(out)]
    assert main([*line, "--colour", "prediction", "--dimensions", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["summary"][0]["queries"] == 1
    assert record["summary"][0]["coloured by"].startswith("prediction")
    assert (out / "map.html").stat().st_size > 10_000
    assert main(["run", "embedding-map", str(store.path), "-l", LAYER, "--method", "tsne"]) == 2
    assert "set neighbours to 9 or less" in capsys.readouterr().err


def test_rows_of_a_condition_are_projected_like_those_alone(store: Store) -> None:
    layer = store.layer(LAYER)
    chosen = Rows(layer, "label == 'green'")
    np.testing.assert_allclose(
        EmbeddingMap().fit(chosen).points,
        EmbeddingMap().fit(np.asarray(layer.pooled)[10:20]).points,
        atol=1e-4,
    )


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_no_number_pushes_an_axis_off_the_page(digits: Any, size: float) -> None:
    figure = EmbeddingMap()(np.asarray(digits[:50]) * size).figure()
    figure.draw_without_rendering()
    assert figure.axes[0].yaxis.label.get_window_extent().x0 > 0


def test_a_name_stands_above_a_group_that_it_would_hide() -> None:
    from timmscope_representation.embedding.figure import _named_at

    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    close, apart = _named_at(0.05 * ring, 1.0), _named_at(3 * ring, 1.0)
    assert close[1] > 0.05
    assert min(np.linalg.norm(3 * ring - apart, axis=1)) == pytest.approx(0)
