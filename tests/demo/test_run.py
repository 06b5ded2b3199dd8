"""The demo from end to end on a few images, with fewer steps."""

import json
import shutil

import pytest
from PIL import Image

from timmscope import load_model, mine
from timmscope.demo import looks, makes, run, run_demo
from timmscope.demo.dataset import photographs
from timmscope.demo.tour import LAYERS, MODEL, Tour
from timmscope.images import FolderSource
from timmscope.store import Store
from timmscope_registry import ImageError


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(makes, "SYNTHESIS_STEPS", 2)
    monkeypatch.setattr(makes, "STYLE_STEPS", 2)
    monkeypatch.setattr(makes, "ATTACK_STEPS", 3)


@pytest.fixture
def folder(tmp_path):
    """Three photographs, and a file that is none."""
    images = tmp_path / "mine"
    images.mkdir()
    wanted = {"coffee", "chelsea", "rocket"}
    for photograph in photographs():
        if photograph.name in wanted:
            shutil.copy(photograph.path, images)
    (images / "broken <b>.png").write_bytes(b"\x89PNG not really")
    return images


@pytest.fixture
def pages(monkeypatch):
    """Every page the demo writes, as its values."""
    seen = []
    write = run.write_page

    def keep(page, path):
        seen.append(page)
        return write(page, path)

    monkeypatch.setattr(run, "write_page", keep)
    return seen


def section(page, name):
    return next(section for section in page.sections if section.id == name)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_own_images_are_explored_and_the_second_run_takes_all_of_it_up(folder, tmp_path, pages):
    out = tmp_path / "out"
    report = run_demo(out, folder)
    assert report == out / "report.html"
    text = report.read_text(encoding="utf-8")
    assert "broken &lt;b&gt;.png" in text
    assert "espresso" in text
    made = {path.name for path in (out / "results").iterdir()}
    assert {"saliency", "grad-cam", "pgd", "neural-style", "nearest-neighbours"} <= made
    assert sum(name.startswith("activation-maximization") for name in made) == 2
    before = {**stamps(out / "results"), **stamps(out / "demo.scope")}
    before = {path: at for path, at in before.items() if not path.name.endswith("lock")}
    run_demo(out, folder)
    after = {**stamps(out / "results"), **stamps(out / "demo.scope")}
    assert {path: after[path] for path in before} == before
    first, second = pages
    assert [s.title for s in first.sections] == [s.title for s in second.sections]
    assert first.sections[0].cards == second.sections[0].cards
    assert section(first, "explanations").explained == section(second, "explanations").explained
    assert section(first, "map").note == "This needs at least 91 images that can be read."
    attacked = section(first, "attack").attacked
    assert [a.before.bars.rows[0][0] for a in attacked] == [
        card.bars.rows[0][0] for card in first.sections[0].cards[:2]
    ]
    (folder / "rocket.jpg").unlink()
    run_demo(out, folder)
    assert len(Store.open(out / "demo.scope")) == 3


def test_a_single_image_leaves_out_what_needs_two(tmp_path, pages):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (300, 260), (200, 90, 30)).save(folder / "plain.png")
    run_demo(tmp_path / "out", folder)
    notes = {section.id: section.note for section in pages[0].sections}
    assert notes["neighbours"] == "This needs at least two images that can be read."
    assert notes["style"] == "This needs at least two images that can be read."
    assert "only one" in notes["units"]
    assert len(section(pages[0], "attack").attacked) == 1


def test_enough_images_are_laid_out_as_a_picture_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "PERPLEXITY", 3)
    folder = tmp_path / "ten"
    for shade in range(10):
        (folder / f"{shade % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (40, 40), (25 * shade, 90, 250 - 25 * shade))
        picture.save(folder / f"{shade % 2}" / f"{shade}.png")
    model = load_model(MODEL)
    store = mine(model, folder, tmp_path / "demo.scope", layers=LAYERS)
    source = FolderSource(folder)
    tour = Tour(model=model, store=store, source=source, folder=folder, out=tmp_path, own=True)
    shown = looks.whole_map(tour)
    assert shown.note == ""
    assert shown.wide.src.startswith("data:image/png;base64,")
    assert (tmp_path / shown.page).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    at = (tmp_path / shown.page).stat().st_mtime_ns
    assert looks.whole_map(tour) == shown
    assert (tmp_path / shown.page).stat().st_mtime_ns == at


def test_lines_in_the_report_name_real_files(folder, tmp_path, pages):
    run_demo(tmp_path / "out", folder)
    line = next(s.python for s in pages[0].sections if s.id == "predictions")
    paths = json.loads(line[line.index("[") : line.index("]") + 1])
    assert len(paths) == 2
    assert all(Image.open(path).size for path in paths)


def test_a_folder_without_images_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in this folder"):
        run_demo(tmp_path / "out", tmp_path / "empty")
