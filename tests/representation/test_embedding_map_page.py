"""The interactive map in a real browser: hover, zoom, classes, 100,000 points, no network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timmscope import Embedding, Provenance
from timmscope.figures.embedding_page import embedding_page
from timmscope.techniques.embedding_pictures import _jpeg

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 120_000
"""For any one thing to happen in the browser, on a machine with much other work."""
EVIL = "</script><img src=x onerror=document.title='evil'>.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("TIMMSCOPE_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}, and TIMMSCOPE_CHROMIUM is not set")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Shown:
    """A map open in a browser, with all that it asked for and complained about."""

    def __init__(self, browser: Any, found: Embedding, folder: Path) -> None:
        file = folder / "map.html"
        file.write_text(found.documents()["map.html"], encoding="utf-8")
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        if not self.page.evaluate("navigator.maxTouchPoints"):
            self.page.set_viewport_size({"width": 1200, "height": 800})
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(file.as_uri())
        self.redrawn(0)
        self.settled()
        self.file = file.as_uri()

    def frames(self) -> int:
        return int(self.page.get_attribute("#points", "data-frames"))

    def redrawn(self, frames: int) -> None:
        """Wait until more frames than these were drawn.

        A function, not an expression: what is given as text and is not true at once is
        evaluated again inside the page, where its policy forbids that.
        """
        self.page.wait_for_function(
            "frames => Number(document.getElementById('points').dataset.frames) > frames",
            arg=frames,
        )

    def settled(self) -> None:
        """Wait for the frame that shows all that was done so far."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(done))")

    def hidden(self) -> None:
        """Wait until nothing is shown of any point."""
        self.page.locator("#tip").wait_for(state="hidden")

    def named(self, name: str) -> None:
        """Wait until a point of this name is shown."""
        self.page.wait_for_function(
            """name => !document.getElementById('tip').hidden
                && document.getElementById('name').textContent === name""",
            arg=name,
        )

    def place(self, found: Embedding, at: int, zoom: float = 1.0) -> tuple[float, float]:
        """Where a point of a 2-D map lies in the window, by the map's own definition."""
        box = self.page.locator("#map").bounding_box()
        points = torch.cat([found.points, found.query_points]).double()
        low, high = points.amin(0), points.amax(0)
        half = float((high - low).max()) / 2
        scale = min(box["width"], box["height"]) / 2 * 0.94 / half * zoom
        x, y = ((points[at] - (low + high) / 2) * scale).tolist()
        return box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 - y

    def picture(self) -> Any:
        """Mean colour of the picture under the pointer, 0 to 255."""
        return self.page.evaluate(
            """() => {
                const c = document.getElementById('picture');
                const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                const sum = [0, 0, 0];
                for (let i = 0; i < d.length; i++) if (i % 4 < 3) sum[i % 4] += d[i];
                return sum.map(s => s * 4 / d.length);
            }"""
        )

    def hover(self, x: float, y: float) -> int:
        """Point somewhere, wait for the picture, and return which point's it is."""
        self.page.mouse.move(x, y)
        self.page.wait_for_function(
            """() => {
                const tip = document.getElementById('tip'), c = document.getElementById('picture');
                return !tip.hidden && (c.hidden || c.dataset.point === tip.dataset.point);
            }"""
        )
        return int(self.page.get_attribute("#tip", "data-point"))


def a_map(points: Any, labels: Any, colours: Any, names: list[str], tile: int = 16) -> Embedding:
    """A map whose images are plain, in colours `(n, 3)`."""
    count, columns = len(points), 64
    plain = torch.from_numpy(colours.astype(np.uint8))[:, :, None, None]
    per = columns * columns
    sheets = [
        _jpeg(plain[start : start + per].expand(-1, -1, tile, tile).contiguous(), columns, columns)
        for start in range(0, count, per)
    ]
    classes = [f"class {k}" for k in range(int(labels.max()) + 1)]
    return Embedding(
        provenance=Provenance(
            technique="t",
            family="representation",
            parameters={},
            model=None,
            weights_sha256=None,
            seed=0,
        ),
        points=torch.from_numpy(points.astype(np.float32)),
        ids=torch.arange(count),
        names=names,
        method="PCA",
        title=f"A map of {EVIL}",
        note="PCA",
        explained=None,
        colourings=[{"title": "label", "classes": classes}, {"title": "unit 5", "classes": None}],
        values=torch.from_numpy(np.stack([labels.astype(float), points[:, 0].astype(float)])),
        query_points=torch.tensor([[0.0] * points.shape[1]]),
        query_names=["the query"],
        query_images=torch.full((1, 3, 8, 8), 0.5),
        shown=None,
        shown_images=None,
        sheets=torch.frombuffer(bytearray(b"".join(sheets)), dtype=torch.uint8),
        sheet_sizes=[len(sheet) for sheet in sheets],
        tile_px=tile,
        sheet_columns=columns,
        sheet_rows=columns,
    )


@pytest.fixture(scope="module")
def small() -> Embedding:
    """Points on a ring, far from each other, with names that would break a page."""
    angle = np.arange(24) / 24 * 2 * np.pi
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * 5
    generator = np.random.default_rng(1)
    colours = generator.integers(30, 220, size=(24, 3))
    names = [f"folder/{number}.png" for number in range(24)]
    names[3] = EVIL
    names[4] = "a\u2028b & <b>é</b> \"'`.png"
    return a_map(points, np.arange(24) % 3, colours, names)


@pytest.fixture(scope="module", params=[2, 3])
def large(request: pytest.FixtureRequest) -> tuple[Embedding, Any]:
    """100,000 points in 20 classes, each with a picture of its own colour."""
    generator = np.random.default_rng(0)
    labels = generator.integers(20, size=100_000)
    centres = generator.normal(size=(20, request.param)) * 4
    points = centres[labels] + generator.normal(size=(100_000, request.param))
    colours = generator.integers(0, 255, size=(100_000, 3))
    names = [f"{number}.jpg" for number in range(100_000)]
    return a_map(points, labels, colours, names, tile=8), colours


def sheet_colours(found: Embedding) -> Any:
    import io

    from PIL import Image

    sheets = [np.asarray(Image.open(io.BytesIO(each))) for each in found.sheet_files()]
    side = found.tile_px
    tiles = [
        sheet.reshape(-1, side, sheet.shape[1] // side, side, 3).mean((1, 3)).reshape(-1, 3)
        for sheet in sheets
    ]
    return np.concatenate(tiles)[: len(found)]


def test_pointing_shows_the_image_its_name_and_its_values(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    shown = Shown(browser, small, tmp_path)
    expected = sheet_colours(small)
    for number in (0, 3, 4, 11, 23):
        assert shown.hover(*shown.place(small, number)) == number
        np.testing.assert_allclose(shown.picture(), expected[number], atol=2)
        assert shown.page.inner_text("#name") == small.names[number]
        facts = shown.page.inner_text("#facts").splitlines()
        value = float(small.points[number, 0])
        assert facts[0] == f"label: class {number % 3}"
        assert float(facts[1].removeprefix("unit 5: ")) == pytest.approx(value, rel=1e-3)
    assert shown.hover(*shown.place(small, 24)) == 24
    assert shown.page.inner_text("#name") == "the query"
    np.testing.assert_allclose(shown.picture(), [128] * 3, atol=2)
    shown.page.mouse.move(*[at + 60 for at in shown.place(small, 24)])
    shown.hidden()


def test_nothing_is_loaded_and_no_name_becomes_markup(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    shown = Shown(browser, small, tmp_path)
    shown.hover(*shown.place(small, 3))
    shown.page.check("#pictures")
    shown.page.select_option("#colouring", label="unit 5")
    shown.settled()
    assert [url for url in shown.requests if not url.startswith("data:")] == [shown.file]
    assert shown.complaints == []
    assert shown.page.title() == f"A map of {EVIL}"
    assert shown.page.locator("img").count() == 0
    blocked = shown.page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => 'loaded', error => 'refused')"
    )
    assert blocked == "refused"
    assert any("Content Security Policy" in each for each in shown.complaints)


def test_the_wheel_zooms_around_the_pointer_and_dragging_moves(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    shown = Shown(browser, small, tmp_path)
    x, y = shown.place(small, 6)
    frames = shown.frames()
    shown.page.mouse.move(x, y)
    shown.page.mouse.wheel(0, -400)  # e times as large
    shown.redrawn(frames)
    assert shown.hover(x + 1, y + 1) == 6
    near = np.array(shown.place(small, 7)) - (x, y)
    seventh = (x, y) + near * np.e
    assert shown.hover(*seventh) == 7
    shown.page.mouse.move(x + 60, y + 60)
    shown.page.mouse.down()
    shown.page.mouse.move(x + 20, y + 110, steps=3)
    shown.page.mouse.up()
    shown.settled()
    assert shown.hover(x - 40, y + 50) == 6
    shown.page.click("#reset")
    shown.settled()
    assert shown.hover(x, y) == 6


def test_classes_are_switched_off_and_on_and_colours_are_chosen(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    shown = Shown(browser, small, tmp_path)
    page = shown.page
    assert page.locator("#legend input").count() == 3
    place = shown.place(small, 1)
    assert shown.hover(*place) == 1
    page.get_by_text("class 1", exact=True).click()
    page.mouse.move(*place)
    shown.hidden()
    assert shown.hover(*shown.place(small, 2)) == 2
    page.get_by_role("button", name="none").click()
    page.mouse.move(*shown.place(small, 3))
    shown.hidden()
    page.get_by_role("button", name="all").click()
    assert shown.hover(*place) == 1
    page.select_option("#colouring", label="unit 5")
    assert page.locator("#legend .bar").count() == 1
    shown.settled()
    left, right = (colour_at(page, shown.place(small, number)) for number in (12, 0))
    np.testing.assert_allclose(left, [68, 1, 84], atol=26)  # viridis from end to end
    np.testing.assert_allclose(right, [253, 231, 37], atol=26)


def colour_at(page: Any, place: tuple[float, float]) -> Any:
    return page.evaluate(
        """([x, y]) => {
            const c = document.getElementById('points'), box = c.getBoundingClientRect();
            const scale = c.width / box.width;
            const d = c.getContext('2d').getImageData(
                (x - box.left) * scale, (y - box.top) * scale, 1, 1).data;
            return [...d].slice(0, 3);
        }""",
        list(place),
    )


def test_a_map_turns_in_three_dimensions(browser: Any, tmp_path: Path) -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 1.0
    colours = np.random.default_rng(0).integers(30, 220, size=(8, 3))
    found = a_map(corners, np.arange(8) % 2, colours, [f"{k}.png" for k in range(8)])
    shown = Shown(browser, found, tmp_path)
    box = shown.page.locator("#map").bounding_box()
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    scale = min(box["width"], box["height"]) / 2 * 0.94 / np.sqrt(3)

    def place(corner: int, yaw: float, pitch: float) -> Any:
        x, y, z = corners[corner]
        across, away = (
            x * np.cos(yaw) - y * np.sin(yaw),
            x * np.sin(yaw) + y * np.cos(yaw),
        )
        up = z * np.cos(pitch) - away * np.sin(pitch)
        return middle + np.array([across, -up]) * scale

    expected = sheet_colours(found)
    for corner in range(8):
        assert shown.hover(*place(corner, -0.6, 0.45)) == corner
        np.testing.assert_allclose(shown.picture(), expected[corner], atol=2)
    shown.page.mouse.move(*(middle + np.array([150, 200])))
    shown.page.mouse.down()
    shown.page.mouse.move(*(middle + np.array([240, 200])))
    shown.page.mouse.up()
    shown.settled()
    for corner in range(8):
        assert shown.hover(*place(corner, -0.6 + 90 / 180, 0.45)) == corner


def test_a_hundred_thousand_points_respond(
    browser: Any, large: tuple[Embedding, Any], tmp_path: Path
) -> None:
    found, _ = large
    shown = Shown(browser, found, tmp_path)
    assert len(found) == 100_000
    box = shown.page.locator("#map").bounding_box()
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    expected = sheet_colours(found)
    shown.hover(*middle)
    for offset in ((15, 5), (-40, 20), (60, -35)):
        number = shown.hover(*(middle + offset))
        assert number < 100_000
        np.testing.assert_allclose(shown.picture(), expected[number], atol=3)
        assert shown.page.inner_text("#name") == f"{number}.jpg"
    for turn in (-200, -200, 300):
        frames = shown.frames()
        shown.page.mouse.wheel(0, turn)
        shown.redrawn(frames)


def test_the_page_holds_every_name_as_data_and_forbids_itself_to_load(small: Embedding) -> None:
    page = embedding_page(small)
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 3
    assert "Content-Security-Policy" in page
    assert "http" not in page.replace("http-equiv", "")
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(data)["names"] == [*small.names, "the query"]


def test_a_tap_shows_the_image_and_two_fingers_zoom(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True)
    try:
        shown = Shown(context, small, tmp_path)
        x, y = shown.place(small, 6)
        shown.page.touchscreen.tap(x + 10, y)
        shown.named(small.names[6])
        shown.page.touchscreen.tap(*shown.place(small, 12))
        shown.named(small.names[12])
        frames = shown.frames()
        fingers = context.new_cdp_session(shown.page)
        for kind, apart in (("touchStart", 30), ("touchMove", 40), ("touchMove", 60)):
            points = [{"x": x + off, "y": y, "id": int(off > 0)} for off in (-apart, apart)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        shown.redrawn(frames)
        shown.settled()
        seventh = (x, y) + (np.array(shown.place(small, 7)) - (x, y)) * 2
        shown.page.touchscreen.tap(*seventh)
        shown.named(small.names[7])
    finally:
        context.close()


def test_keys_move_zoom_and_show_the_image_in_the_middle(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    shown = Shown(browser, small, tmp_path)
    shown.page.focus("#map")
    for _ in range(3):
        shown.page.keyboard.press("ArrowRight")
    shown.named(small.names[0])  # at the right end of the ring
    for _ in range(6):
        shown.page.keyboard.press("ArrowLeft")
    shown.named(small.names[12])
    assert shown.page.get_attribute("#tip", "role") == "status"
    shown.page.keyboard.press("Escape")
    shown.hidden()
    shown.page.keyboard.press("+")
    shown.named(small.names[12])


def test_numbers_can_be_seen_on_dark_paper(browser: Any, small: Embedding, tmp_path: Path) -> None:
    context = browser.new_context(color_scheme="dark", viewport={"width": 1200, "height": 800})
    try:
        shown = Shown(context, small, tmp_path)
        shown.page.select_option("#colouring", label="unit 5")
        shown.settled()
        paper = colour_at(shown.page, (20, 120))
        lowest = colour_at(shown.page, shown.place(small, 12))
        assert max(paper) < 40
        assert contrast(lowest, paper) > 3  # WCAG 2.2, 1.4.11
    finally:
        context.close()


def contrast(one: Any, other: Any) -> float:
    """WCAG's contrast ratio of two colours, 0 to 255."""

    def luminance(colour: Any) -> float:
        shares = np.array(colour) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
