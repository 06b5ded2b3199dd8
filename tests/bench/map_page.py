"""Benchmark of the interactive map of 100,000 points in a real browser, against 10,000 points.

It measures the times that a user waits: from a turn of the wheel to the next frame, and from a move
of the pointer to the image. The browser's driver adds the same time to both.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.pairs import Pair, compare
from tests.representation.map_in_browser import Shown, a_large_map, launched, path_of_a_browser

from timmscope_representation.embedding.embedding import Embedding

MANY, FEW = 100_000, 10_000


def map_page() -> Iterator[Pair]:
    """Time pointing at images and redrawing, in two and three dimensions."""
    path = path_of_a_browser()
    if path is None:
        sys.exit("map-page needs a browser, as chromium; TIMMSCOPE_CHROMIUM may name one")
    with tempfile.TemporaryDirectory() as folder, launched(path) as browser:
        for dimensions in (2, 3):
            works: dict[str, list[Callable[[], None]]] = {"point to image": [], "redraw": []}
            for count in (MANY, FEW):
                place = Path(folder) / f"{dimensions}-{count}"
                place.mkdir()
                found = a_large_map(count, dimensions)
                shown = Shown(browser, found, place)
                works["redraw"].append(_redraw(shown))
                if dimensions == 2:  # only there the tests know the positions of points
                    works["point to image"].append(_point(shown, found))
            for name, both in works.items():
                if both:
                    yield compare(
                        f"map page {dimensions}-D, {name}",
                        (f"{MANY} points", both[0]),
                        (f"{FEW} points", both[1]),
                        runs=15,
                    )


def _redraw(shown: Shown) -> Callable[[], None]:
    turns = itertools.cycle((-100, 100))
    box = shown.page.locator("#map").bounding_box()

    def work() -> None:
        shown.page.bring_to_front()
        shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        frames = shown.frames()
        shown.page.mouse.wheel(0, next(turns))
        shown.redrawn(frames)

    return work


def _point(shown: Shown, found: Embedding) -> Callable[[], None]:
    points = itertools.count(step=17)

    def work() -> None:
        shown.page.bring_to_front()
        before = shown.page.get_attribute("#tip", "data-point")
        shown.page.mouse.move(*shown.place(found, next(points)))
        shown.page.wait_for_function(
            """before => {
                const now = document.getElementById('tip').dataset.point;
                return now !== before && document.getElementById('picture').dataset.point === now;
            }""",
            arg=before,
        )

    return work
