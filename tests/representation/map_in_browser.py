"""An interactive map opened in a real browser, for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timmscope import Provenance
from timmscope_representation.embedding.embedding import Embedding
from timmscope_representation.embedding.pictures import _jpeg

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


def path_of_a_browser() -> str | None:
    """The browser that `TIMMSCOPE_CHROMIUM` names, or one that is installed; None for neither."""
    named = os.environ.get("TIMMSCOPE_CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def launched(path: str) -> Iterator[Any]:
    """A browser without windows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
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


def a_map(
    points: Any, labels: Any, colours: Any, names: list[str], tile: int = 16, title: str = "A map"
) -> Embedding:
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
        title=title,
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


def a_large_map(count: int, dimensions: int) -> Embedding:
    """Points in 20 classes, each with a picture of its own colour."""
    generator = np.random.default_rng(0)
    labels = generator.integers(20, size=count)
    centres = generator.normal(size=(20, dimensions)) * 4
    points = centres[labels] + generator.normal(size=(count, dimensions))
    colours = generator.integers(0, 255, size=(count, 3))
    return a_map(points, labels, colours, [f"{number}.jpg" for number in range(count)], tile=8)
