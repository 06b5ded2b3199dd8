"""Matrices show their numbers on one scale, and shortened names stay distinguishable."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from timmscope.drawing.style import format_with_error, text_width, truncate_middle
from timmscope_representation.distances.matrix_figure import matrix_figure


def test_the_middle_of_a_long_name_is_cut_out() -> None:
    name = "generated-sample-at-guidance-00017"
    short = truncate_middle(name, 1.0, 7.5)
    assert short.startswith("gen")
    assert short.endswith("00017")
    assert short.count("…") == 1
    assert text_width(short, 7.5) <= 1.0 < text_width(name, 7.5)
    assert truncate_middle("short", 1.0, 7.5) == "short"
    assert truncate_middle(name, 0.01, 7.5) == "…"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.04833, 0.003122, "0.0483 ± 0.0031"),
        (-0.0025427, 0.00071075, "-0.00254 ± 0.00071"),
        (7.5, 1.04, "7.5 ± 1.0"),
        (1234.5, 67.8, "1234 ± 68"),
        (2e-12, 3e-13, "2.00e-12 ± 3.0e-13"),
        (0.5, 0.0, "0.5 ± 0"),
    ],
)
def test_a_value_has_as_many_digits_as_its_error(value: float, error: float, text: str) -> None:
    assert format_with_error(value, error) == text


def test_all_matrices_share_a_scale_from_zero_or_the_lowest_number() -> None:
    first, second = torch.eye(3), torch.eye(3) - 0.25 * (1 - torch.eye(3))
    figure = matrix_figure({"A": first, "B": second}, ["x", "y", "z"])
    images = [axes.images[0] for axes in figure.axes]
    assert {image.get_clim() for image in images[:2]} == {(-0.3, 1.0)}
    assert images[2].get_extent()[2:] == [-0.3, 1.0]
    alone = matrix_figure({"A": first}, ["x", "y", "z"])
    assert alone.axes[0].images[0].get_clim() == (0.0, 1.0)


def test_numbers_contrast_with_their_cell() -> None:
    matrix = torch.linspace(0, 1, 16).view(4, 4)
    figure = matrix_figure({"": matrix}, list("abcd"))
    axes = figure.axes[0]
    image = axes.images[0]
    for text, value in zip(axes.texts, matrix.ravel(), strict=True):
        assert text.get_text() == f"{value:.2f}"
        cell = np.dot(image.cmap(image.norm(float(value)))[:3], (0.2126, 0.7152, 0.0722))
        ink = 1.0 if text.get_color() == "#ffffff" else 0.12
        assert abs(cell - ink) > 0.3


def test_groups_have_letters_a_key_and_lines_between_them() -> None:
    labels = ["one", "two", "one", "two"]
    groups = ["some model", "some model", "other model", "other model"]
    figure = matrix_figure({"": torch.eye(4)}, labels, groups=groups)
    axes = figure.axes[0]
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert shown == ["A one", "A two", "B one", "B two"]
    assert sorted(line.get_xdata()[0] for line in axes.lines)[1] == 1.5
    assert {"A some model", "B other model"} <= {text.get_text() for text in figure.texts}
    single = matrix_figure({"": torch.eye(2)}, ["one", "two"], groups=["same", "same"])
    assert [text.get_text() for text in single.axes[0].get_yticklabels()] == ["one", "two"]
    assert not single.axes[0].lines


@pytest.mark.parametrize("count", [2, 12, 13, 60])
def test_no_text_leaves_the_page_or_overlaps_another(count: int, tmp_path: Path) -> None:
    labels = [f"stages.{n}.blocks.{n}.a_long_name_of_a_layer.act{n}" for n in range(count)]
    figure = matrix_figure(
        {"CKA": torch.rand(count, count), "RSA": torch.rand(count, count)},
        labels,
        title="A title",
        notes=["A note that is long enough to need another line. " * 4],
    )
    figure.savefig(tmp_path / "f.png", dpi=60)
    pixels = np.asarray(Image.open(tmp_path / "f.png").convert("L"))
    frame = np.concatenate([pixels[:6].ravel(), pixels[-6:].ravel(), pixels[:, :6].ravel()])
    assert (frame == 255).all()
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes[:2]:
        names = [text.get_window_extent(renderer) for text in axes.get_yticklabels()]
        for upper, lower in pairwise(names):
            assert upper.y0 >= lower.y1 - 1
    note = figure.texts[-1].get_window_extent(renderer)
    below = min(t.get_window_extent(renderer).y0 for t in figure.axes[-2].get_xticklabels())
    assert note.y1 < below
