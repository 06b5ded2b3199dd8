"""The interactive map in a real browser: hover, zoom, classes, 100,000 points, no network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.representation.map_in_browser import (
    BROWSERS,
    Shown,
    a_large_map,
    a_map,
    launched,
    path_of_a_browser,
)

from timmscope_representation.embedding.embedding import Embedding

EVIL = "</script><img src=x onerror=document.title='evil'>.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = path_of_a_browser()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}, and TIMMSCOPE_CHROMIUM is not set")
    with launched(path) as browser:
        yield browser


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
    return a_map(points, np.arange(24) % 3, colours, names, title=f"A map of {EVIL}")


@pytest.fixture(scope="module", params=[2, 3])
def large(request: pytest.FixtureRequest) -> Embedding:
    return a_large_map(100_000, request.param)


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


def test_a_point_without_a_number_is_grey_and_can_be_switched_off(
    browser: Any, small: Embedding, tmp_path: Path
) -> None:
    values = small.values.clone()
    values[1] = 1_700_000_000 + torch.arange(24, dtype=torch.float64)
    values[1, 5] = torch.nan
    shown = Shown(browser, dataclasses.replace(small, values=values), tmp_path)
    page = shown.page
    page.select_option("#colouring", label="unit 5")
    shown.settled()
    assert page.inner_text("#legend .ends").split() == ["1700000000", "1700000012", "1700000023"]
    np.testing.assert_allclose(colour_at(page, shown.place(small, 5)), [163, 169, 178], atol=16)
    for number, text in ((5, "none"), (6, "1700000006")):
        assert shown.hover(*shown.place(small, number)) == number
        assert page.inner_text("#facts").splitlines()[1] == f"unit 5: {text}"
    page.get_by_text("no value", exact=True).click()
    page.mouse.move(*shown.place(small, 5))
    shown.hidden()
    assert shown.hover(*shown.place(small, 6)) == 6


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


def test_a_hundred_thousand_points_respond(browser: Any, large: Embedding, tmp_path: Path) -> None:
    found, shown = large, Shown(browser, large, tmp_path)
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
    page = small.documents()["map.html"]
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
