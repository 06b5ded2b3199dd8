"""The demo from end to end on a few images, with fewer steps."""

import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import HookedModel, Store, load_model, load_result, mine, strongest, technique
from timmscope.cli import main
from timmscope.demo import run as running
from timmscope.demo import run_demo, sections
from timmscope.demo.dataset import photographs
from timmscope.demo.tour import FEATURES, LAYERS, MODEL, Tour
from timmscope.images import FolderSource
from timmscope_registry import ImageError, StoreError, TimmscopeError

RESULTS = {
    "predictions", "top-patches-blocks.2.1.bn1", "top-patches-blocks.4.1.bn1",
    "nearest-neighbours", "saliency", "grad-cam", "activation-maximization", "best-photographs",
    "pgd", "neural-style",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "SYNTHESIS_STEPS", 2)
        patch.setattr(sections, "STYLE_STEPS", 2)
        patch.setattr(sections, "ATTACK_STEPS", 3)
        yield


@pytest.fixture(scope="module", autouse=True)
def pages():
    """Every page the demo writes, as its values."""
    seen = []
    render = running.render
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "render", lambda **values: seen.append(values) or render(**values))
        yield seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three photographs, and a file that is none."""
    images = tmp_path_factory.mktemp("demo") / "mine"
    images.mkdir()
    for name in ("coffee", "chelsea", "rocket"):
        shutil.copy(photographs()[name], images)
    (images / "broken <b>.png").write_bytes(b"\x89PNG not really")
    return images


def test_a_store_that_is_not_the_demos_is_left_alone(folder, tmp_path):
    (tmp_path / "demo.scope").mkdir()
    (tmp_path / "demo.scope/manifest.json").write_text("somebody's work")
    with pytest.raises(StoreError, match="was not made by a demo"):
        run_demo(tmp_path, folder)
    assert (tmp_path / "demo.scope/manifest.json").read_text() == "somebody's work"


@pytest.fixture(scope="module")
def out(folder, pages):
    """Where the demo of these images is, and its first page is `pages[0]`."""
    return run_demo(folder.parent / "out", folder).parent


@pytest.fixture(scope="module")
def photos(folder, lite0):
    """Class scores `(3, 1000)` of the three photographs by their own name."""
    names = ("chelsea.png", "coffee.png", "rocket.jpg")
    with torch.no_grad():
        scores = lite0(lite0.images([folder / name for name in names]))
    return dict(zip(("chelsea", "coffee", "rocket"), scores, strict=True))


def arrays(result):
    """Every array of a result, by name."""
    values = vars(result).items()
    return {name: np.asarray(v) for name, v in values if isinstance(v, torch.Tensor | np.ndarray)}


def assert_alike(found, expected):
    """Arrays agree: what the model computes may differ in the last digit from run to run."""
    found, expected = arrays(found), arrays(expected)
    assert found.keys() == expected.keys()
    assert found
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        close = np.isclose(value, expected[name], rtol=1e-3, atol=1e-4, equal_nan=True)
        assert (~close).sum() <= 0.01 * close.size, name


def stamps(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if not path.name.endswith("lock")}


def test_own_images_are_explored_with_every_family(out, pages):
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "broken &lt;b&gt;.png" in text
    assert "espresso" in text
    assert "This needs at least 91 images that can be read." in text
    assert {path.name for path in (out / "results").iterdir()} == RESULTS
    families = {load_result(out / "results" / name).provenance.family for name in RESULTS}
    assert families - {""} == {"representation", "attribution", "synthesis", "attack", "style"}
    assert pages[0]["facts"]["images"] == "3, 1 unreadable"
    assert [step.title for step in pages[0]["steps"]][4:] == list(running.SECTIONS)


def test_predictions_are_the_softmax_of_the_model(out, photos, lite0):
    result = load_result(out / "results" / "predictions")
    assert {row["image"] for row in result.rows} == set(photos)
    for row, title in zip(result.rows, result.titles, strict=True):
        shares = photos[row["image"]].softmax(0)
        assert row["class"] == lite0.class_name(int(shares.argmax()))
        assert row["probability"] == pytest.approx(float(shares.max()), rel=1e-4)
        best = shares.topk(5)
        for line, index, share in zip(
            title.split("\n")[1:], best.indices, best.values, strict=True
        ):
            assert line.partition("% ")[2] == lite0.class_name(int(index))
            assert float(line.partition("%")[0]) == pytest.approx(float(share) * 100, abs=0.06)


def test_made_images_stand_beside_the_photographs_of_the_highest_logit(out, photos, lite0):
    made = load_result(out / "results" / "activation-maximization")
    rows = load_result(out / "results" / "best-photographs").rows
    with torch.no_grad():
        logits = lite0(made.images)
    for place, row in enumerate(rows):
        label = lite0.classes.find(row["class"])
        assert row["class"] == made.labels[place]
        assert row["best photograph"] == max(photos, key=lambda name: float(photos[name][label]))
        highest = max(float(scores[label]) for scores in photos.values())
        assert row["its logit"] == pytest.approx(highest, rel=1e-3)
        reached = logits[place].double()
        assert row["logit of the made image"] == pytest.approx(float(reached[label]), rel=1e-3)
        share = float(reached.softmax(0)[label])
        assert row["its probability"] == pytest.approx(share, rel=1e-2)


def test_the_attack_aims_at_the_other_image_within_its_bound(out, pages):
    attacked = load_result(out / "results" / "pgd")
    assert attacked.targets.tolist() == attacked.labels.tolist()[::-1]
    assert float(attacked.linf.max()) <= sections.EPSILON + 1e-6
    assert pages[0]["levels"] == 2 == round(0.008 * 255)


def test_the_style_is_that_of_the_least_similar_example(out, pages):
    store = Store.open(out / "demo.scope")
    content, manner = re.fullmatch(
        r"(\w+) in the style of (\w+)", pages[0]["shown"]["style"][0].title
    ).groups()
    rows = {
        path.partition(".")[0]: torch.tensor(row)
        for path, row in zip(store.images.paths, store.layer(FEATURES).pooled[:], strict=True)
        if not path.startswith("broken")
    }
    assert content == pages[0]["shown"]["predictions"][0].result.rows[0]["image"]
    cosines = {
        name: float(torch.cosine_similarity(rows[content], row, dim=0))
        for name, row in rows.items()
    }
    assert manner == min(cosines, key=cosines.__getitem__)


def test_a_second_run_takes_the_store_up_and_makes_the_same_results(out, folder, pages):
    before = stamps(out / "demo.scope")
    results = {name: load_result(out / "results" / name) for name in RESULTS}
    run_demo(out, folder)
    after = stamps(out / "demo.scope")
    assert {path: after[path] for path in before} == before
    for name in RESULTS:
        assert_alike(load_result(out / "results" / name), results[name])
    first, second = pages[0]["shown"], pages[-1]["shown"]
    for name in ("predictions", "neighbours"):
        assert [e.figure for e in first[name]] == [e.figure for e in second[name]], name


@pytest.mark.parametrize("name", sorted(RESULTS - {"predictions", "best-photographs"}))
def test_printed_lines_make_the_same_result(name, out, pages, tmp_path, capsys):
    exhibits = [e for part in pages[0]["shown"].values() for e in part]
    exhibit = next(e for e in exhibits if e.folder == f"results/{name}")
    known = {"technique": technique, "model": load_model(MODEL)}
    known["store"] = Store.open(out / "demo.scope")
    expected = load_result(out / "results" / name)
    assert_alike(eval(exhibit.python, known), expected)
    words = [*shlex.split(exhibit.shell)[1:], "--output", str(tmp_path / "again")]
    assert main(words) == 0
    assert_alike(load_result(tmp_path / "again"), expected)


def test_the_line_of_predictions_gives_their_numbers(out, pages, lite0):
    shown = pages[0]["shown"]["predictions"][0]
    values, classes = eval(shown.python, {"model": lite0})
    for row, share, label in zip(shown.result.rows, values, classes, strict=False):
        assert row["class"] == lite0.class_name(int(label[0]))
        assert row["probability"] == pytest.approx(float(share[0]), rel=1e-4)


def test_the_line_of_the_best_photographs_finds_them(out, pages):
    shown = pages[0]["shown"]["synthesis"][1]
    store = Store.open(out / "demo.scope")
    ids = eval(shown.python, {"strongest": strongest, "store": store})
    names = [store.images.paths[int(image_id)].partition(".")[0] for image_id in ids]
    assert names == [row["best photograph"] for row in shown.result.rows]


def test_the_command_of_the_store_mines_it_again(out, folder, pages, tmp_path, capsys):
    words = shlex.split(pages[0]["mined"])[1:]
    words[words.index("--output") + 1] = str(tmp_path / "again.scope")
    assert main(words) == 0
    again, first = Store.open(tmp_path / "again.scope"), Store.open(out / "demo.scope")
    assert list(again.layers) == list(LAYERS) == list(first.layers)
    for name in LAYERS:
        rows = [store.layer(name).maximum[:] for store in (again, first)]
        np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)


def test_a_folder_that_was_moved_or_has_changed_is_mined_again(folder, lite0, tmp_path):
    here, there, place = tmp_path / "here", tmp_path / "there", tmp_path / "demo.scope"
    shutil.copytree(folder, here)
    first = running._store(lite0, FolderSource(here), place)
    before = stamps(place)
    running._store(lite0, FolderSource(here), place)
    assert stamps(place) == before
    here.rename(there)
    moved = running._store(lite0, FolderSource(there), place)
    assert moved.manifest.images.location == f"folder:{there.resolve()}"
    rows = [store.layer(FEATURES).pooled[:] for store in (moved, first)]
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)  # NaN where there is no picture
    (there / "rocket.jpg").unlink()
    assert len(running._store(lite0, FolderSource(there), place)) == 3


def test_a_single_image_leaves_out_what_needs_two(tmp_path, pages):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (300, 260), (200, 90, 30)).save(folder / "plain.png")
    text = run_demo(tmp_path / "out", folder).read_text(encoding="utf-8")
    shown = pages[-1]["shown"]
    assert [name for name, part in shown.items() if not part] == [
        "units", "neighbours", "map", "style",
    ]  # fmt: skip
    assert text.count("This needs at least two images that can be read.") == 2
    assert "there is only one" in text
    assert "the answer is to be wrong" in text
    assert shown["attack"][0].result.targets is None
    assert len(shown["attack"][0].result.images) == 1


def test_enough_images_are_laid_out_as_a_picture_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "PERPLEXITY", 3)
    folder = tmp_path / "ten"
    for shade in range(10):
        (folder / f"{shade % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (40, 40), (25 * shade, 90, 250 - 25 * shade))
        picture.save(folder / f"{shade % 2}" / f"{shade}.png")
    model = load_model(MODEL)
    assert isinstance(model, HookedModel)
    store = mine(model, folder, tmp_path / "demo.scope", layers=LAYERS)
    tour = Tour(model, store, FolderSource(folder), tmp_path, own=True)
    (shown,) = sections.whole_map(tour)
    assert shown.result.points.shape == (10, 2)
    page = tmp_path / shown.folder / "map.html"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (again,) = sections.whole_map(tour)
    assert again.figure == shown.figure
    monkeypatch.setattr(sections, "PERPLEXITY", 4)
    assert sections.whole_map(tour) == []


def test_a_folder_without_images_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in this folder"):
        run_demo(tmp_path / "out", tmp_path / "empty")


def test_an_output_that_is_a_file_is_one_clear_line(folder, tmp_path):
    (tmp_path / "out").write_text("")
    for images in (None, folder):
        with pytest.raises(TimmscopeError, match=r"cannot write|Not a directory|is a file"):
            run_demo(tmp_path / "out", images)
