"""Figures are sized by their content, their text fits, and matplotlib's settings do not change."""

import itertools
import subprocess
import sys
import warnings
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from timmscope.drawing import (
    HeatScale,
    colourise,
    overlay,
    sheet_figure,
    style,
    table_figure,
)
from timmscope.drawing.heat import BY_COLOUR
from timmscope.drawing.style import format_number, text_width, truncate
from timmscope.evaluation.comparison_figure import comparison_figure
from timmscope.results import Provenance
from timmscope.techniques import Certificates, Stylization, Synthesis
from timmscope.techniques.attack_figure import attack_figure
from timmscope.techniques.attribution_figure import attribution_figure
from timmscope.techniques.change_figure import magnified
from timmscope_registry import ParameterError

LONG = "American black bear, black bear, Ursus americanus, Euarctos americanus " * 3


def images(count=2, height=32, width=48):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def adversarial(count=2):
    originals = images(count)
    changed = (originals + 4 / 255).clamp(0, 1)
    flags = torch.tensor([True, False] * count)[:count]
    return SimpleNamespace(
        images=changed,
        originals=originals,
        provenance=SimpleNamespace(technique="timmscope:pgd"),
        class_names=[["cat", "cat", LONG]] * count,
        target_names=[],
        targets=None,
        confidence_before=torch.full((count,), 0.4),
        confidence_after=torch.full((count,), 0.999),
        already_wrong=torch.zeros(count, dtype=torch.bool),
        success=flags,
        success_8bit=flags,
        stuck=torch.zeros(count, dtype=torch.bool),
        linf=torch.full((count,), 4 / 255),
        l2=torch.full((count,), 1.0),
        norm="linf",
        objective="",
        scores_before=None,
        scores_after=None,
        note_text=lambda row: "",
    )


def provenance():
    return Provenance(
        technique="timmscope:x", family="", parameters={}, model=None, weights_sha256=None, seed=0
    )


def synthesis_figure(images, scores, final_scores, labels):
    return Synthesis(
        provenance=provenance(),
        images=images,
        scores=scores,
        best_step=torch.zeros(len(images), dtype=torch.long),
        final_scores=final_scores,
        objective="x",
        labels=labels,
        targets=torch.arange(len(images)),
    ).figure()


def style_figure(content, styles, images, losses):
    return Stylization(
        provenance=provenance(),
        images=images,
        content=content,
        styles=styles,
        losses=torch.stack(list(losses.values())),
        loss_names=list(losses),
        weights=[1 / len(styles)] * len(styles),
    ).figure()


def certificates(count=2):
    return Certificates(
        provenance=provenance(),
        images=images(count),
        labels=torch.zeros(count, dtype=torch.long),
        clean=torch.zeros(count, dtype=torch.long),
        predictions=torch.tensor([0, 1, -1] * count)[:count],
        radius=torch.tensor([0.4, 0.0, 0.0] * count, dtype=torch.float64)[:count],
        norm="linf",
        global_bound=12345.0,
        forwards=torch.ones(count, dtype=torch.long),
        class_names=[[LONG, LONG, LONG]] * count,
    )


FIGURES = {
    "attribution": lambda: attribution_figure(
        images(), images()[:, 0] - 0.5, [LONG, "cat"], title="grad-cam"
    ),
    "constant": lambda: attribution_figure(images(1), torch.zeros(1, 32, 48), ["none"]),
    "synthesis": lambda: synthesis_figure(images(5), torch.rand(9, 5), torch.rand(5), [LONG] * 5),
    "one step": lambda: synthesis_figure(images(1), torch.rand(1, 1), torch.rand(1), ["cat"]),
    "style": lambda: style_figure(
        images(1), images(2, 20, 20), images(1), {"total": torch.rand(9), "zero": torch.zeros(9)}
    ),
    "texture": lambda: style_figure(None, images(1), images(1), {"total": torch.rand(9)}),
    "attack": lambda: attack_figure(adversarial()),
    "certificates": lambda: certificates(40).figure(),
    "one certificate": lambda: certificates(1).figure(),
    "certified accuracy": lambda: certificates(3).pictures()["curve"](),
    "table": lambda: table_figure([{"name": LONG, "value": 0.5, "none": None}] * 50),
    "empty table": lambda: table_figure([]),
    "sheet": lambda: sheet_figure(images(7), [LONG] * 7, columns=3, title=LONG, note=LONG),
}


def drawn(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_is_inside_the_page(name):
    figure = FIGURES[name]()
    renderer = drawn(figure)
    page = figure.bbox
    for text in [*figure.texts, *(t for axes in figure.axes for t in axes.get_children())]:
        if not hasattr(text, "get_text") or not text.get_text():
            continue
        box = text.get_window_extent(renderer)
        assert box.x0 >= page.x0 - 1, text.get_text()
        assert box.x1 <= page.x1 + 1, text.get_text()
        assert box.y0 >= page.y0 - 1, text.get_text()
        assert box.y1 <= page.y1 + 1, text.get_text()


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_keep_their_aspect_ratio(name):
    figure = FIGURES[name]()
    drawn(figure)
    for axes in figure.axes:
        for picture in axes.get_images():
            height, width = picture.get_array().shape[:2]
            box = picture.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=1e-6)


def test_labels_of_a_sheet_do_not_overlap():
    figure = sheet_figure(images(6), [LONG] * 6, columns=6)
    renderer = drawn(figure)
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    rows = {}
    for box in boxes:
        rows.setdefault(round(box.y0), []).append(box)
    for row in rows.values():
        row.sort(key=lambda box: box.x0)
        for left, right in itertools.pairwise(row):
            assert left.x1 < right.x0


def test_rows_of_a_sheet_may_have_different_lengths():
    figure = sheet_figure(
        images(6), list("abcdef"), row_lengths=[1, 3, 2], row_labels=[f"{LONG}\nb", "c", "d\ne"]
    )
    boxes = [picture.get_window_extent() for picture in figure.axes[0].get_images()]
    tops = sorted({round(box.y0) for box in boxes}, reverse=True)
    assert [(tops.index(round(box.y0)), round(box.x0)) for box in boxes] == [
        (row, round(boxes[1 + column].x0)) for row, column in [(0, 0), *((1, c) for c in range(3)),
                                                               (2, 0), (2, 1)]
    ]  # fmt: skip
    renderer = drawn(figure)
    left = min(box.x0 for box in boxes)
    labels = [text.get_window_extent(renderer) for text in figure.texts[6:]]
    assert all(label.x1 < left for label in labels)


def test_a_sheet_shows_each_picture_whole_at_its_position():
    levels = torch.arange(1, 13) / 16
    figure = sheet_figure(levels[:, None, None, None].expand(12, 3, 8, 8), columns=4)
    pixels, (width, height) = render(figure)
    dpi = pixels.shape[1] / width
    axes = figure.axes[0]
    for level, picture in zip(levels.tolist(), axes.get_images(), strict=True):
        box = picture.get_window_extent()
        shown = pixels[
            int(pixels.shape[0] - box.y1) + 3 : int(pixels.shape[0] - box.y0) - 3,
            int(box.x0) + 3 : int(box.x1) - 3,
            :3,
        ]
        assert (shown == round(level * 255)).all()
        assert box.width / dpi == pytest.approx(0.8)  # of few pixels, so half as wide
    centres = [(-picture.get_window_extent().y0, picture.get_window_extent().x0)
               for picture in axes.get_images()]  # fmt: skip
    assert centres == sorted(centres)
    assert height > width * 0.7


def test_a_note_counts_the_rows_that_are_left_out():
    figure = attribution_figure(images(30, 4, 4), torch.rand(30, 4, 4), ["x"] * 30)
    assert "6 more images not shown" in [text.get_text() for text in figure.texts]


def test_the_caption_of_coloured_pixels_does_not_overlap_long_labels():
    plain = attribution_figure(images(1), torch.rand(1, 32, 48), [LONG])
    assert BY_COLOUR not in [text.get_text() for text in plain.texts]
    figure = attribution_figure(
        images(2), torch.rand(2, 32, 48), [LONG, "cat"], pixels=images(2) - 0.5
    )
    captions = [text for text in figure.texts if text.get_text() == BY_COLOUR]
    assert len(captions) == 2
    figure.canvas.draw()
    (label,) = [text for text in figure.texts if text.get_text().startswith(LONG[:8])]
    assert label.get_window_extent().x1 < captions[0].get_window_extent().x0


def test_the_callers_rc_parameters_are_neither_used_nor_changed():
    plain = render(FIGURES["synthesis"]())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "font.family": "serif"}):
        before = dict(matplotlib.rcParams)
        strange = FIGURES["synthesis"]()
        assert dict(matplotlib.rcParams) == before
    assert strange.get_size_inches().tolist() == pytest.approx(plain[1])
    assert strange.axes[-1].get_facecolor() == matplotlib.colors.to_rgba("white")


def render(figure):
    assert isinstance(figure, Figure)
    renderer = drawn(figure)
    return np.asarray(renderer.buffer_rgba()), figure.get_size_inches().tolist()


def test_pyplot_is_never_imported():
    code = (
        "import sys, torch; from timmscope.drawing import sheet_figure;"
        "sheet_figure(torch.rand(2, 3, 4, 4)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dollar_signs_start_no_formula_and_unknown_characters_are_boxes():
    unknown = "\U000f1234"  # for private use: no typeface has it
    figure = attribution_figure(images(1), torch.ones(1, 32, 48), [f"a$b^c$ {unknown}"])
    texts = [text.get_text() for text in figure.texts]
    assert "a$b^c$ □" in texts
    drawn(figure)
    drawn(sheet_figure(images(1), row_labels=[f"a {unknown}\nb"]))
    assert text_width(unknown, 8) == text_width("□", 8)


def test_characters_that_the_typeface_lacks_are_drawn_in_an_installed_one(tmp_path, monkeypatch):
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    pen = TTGlyphPen(None)
    for step, place in enumerate(((0, 0), (0, 900), (900, 900), (900, 0))):
        (pen.lineTo if step else pen.moveTo)(place)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "One Cat", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    caches = (style._families, style._font_of, style._advance)
    monkeypatch.setattr(style, "_FALLBACKS", ("Not Installed", "One Cat"))
    known = list(fontManager.ttflist)
    try:
        fontManager.addfont(tmp_path / "cat.ttf")
        for cache in caches:
            cache.cache_clear()
        assert style.replace_missing_glyphs("a 猫") == "a 猫"
        assert text_width("猫", 72) == pytest.approx(1.03)  # one em, and the allowance of hinting
        figure = sheet_figure(images(1), ["猫"], cell_in=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib's, that a glyph is missing
            drawn(figure)
        assert figure.texts[0].get_text() == "猫"
        assert figure.texts[0].get_fontfamily() == [style.TYPEFACE, "One Cat"]
    finally:
        fontManager.ttflist[:] = known
        for cache in caches:
            cache.cache_clear()


def test_titles_and_notes_of_one_picture_are_not_cut_off():
    title = "layer4 of random:resnet18?seed=0: the strongest patches of 2 units"
    note = "outlined: the receptive field, 435x435 px, and the cell; one patch an image; " * 2
    figure = sheet_figure(images(1), title=title, note=note.strip())
    assert " ".join(text.get_text() for text in figure.texts).split() == f"{title} {note}".split()


def test_fit_cuts_between_words_and_else_inside_them():
    assert truncate("one two", 10.0) == "one two"
    lines = truncate("one two three four five six", 0.6, 8, lines=2).split("\n")
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert all(text_width(line, 8) <= 0.6 for line in lines)
    assert truncate("abcdefghijklmnopqrstuvwxyz", 0.6, 8).endswith("…")
    assert truncate("one\ntwo", 10.0) == "one\ntwo"


def test_fit_keeps_the_ends_of_names():
    short = [truncate(f"3 motorcycle_right-small-{number:02d}", 1.0, 8) for number in (3, 4)]
    assert [text[-4:] for text in short] == ["l-03", "l-04"]
    assert all(text.count("…") == 1 and text_width(text, 8) <= 1.0 for text in short)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (12345.6, "12346"),
        (1e-5, "1.0e-05"),
        (float("nan"), "NaN"),
        (2e7, "2.0e+07"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert format_number(value) == text


def test_a_magnified_change_spans_the_whole_range():
    change = torch.zeros(3, 2, 2)
    change[0, 0, 0], change[1, 1, 1] = 4 / 255, -2 / 255
    shown, factor = magnified(change)
    assert factor == pytest.approx(0.5 / (4 / 255))
    assert shown[0, 0, 0] == pytest.approx(1.0)
    assert shown[1, 1, 1] == pytest.approx(0.25)
    assert magnified(torch.zeros(3, 2, 2))[1] == 1.0
    change = torch.full((3, 20, 20), 1 / 255)
    change[0, 0, 0] = 10 / 255  # one extreme value does not leave the rest grey
    assert magnified(change)[1] == pytest.approx(0.5 * 255)


def test_sheets_refuse_labels_that_do_not_match():
    with pytest.raises(ParameterError, match="at least one"):
        sheet_figure([])
    with pytest.raises(ParameterError, match="2 titles for 3"):
        sheet_figure(images(3), ["a", "b"])
    with pytest.raises(ParameterError, match="row labels"):
        sheet_figure(images(4), columns=2, row_labels=["a"])
    with pytest.raises(ParameterError, match="lengths for 3 pictures, but there are 4"):
        sheet_figure(images(4), row_lengths=[2, 1])


def test_the_colours_of_a_map_far_above_zero_start_at_its_smallest_value():
    high = HeatScale.of(torch.linspace(0.8, 1.0, 1000).view(10, 100))
    assert high.low == pytest.approx(0.8)
    assert high.high == pytest.approx(0.999, abs=1e-3)
    low = HeatScale.of(torch.linspace(0.1, 1.0, 1000).view(10, 100))
    assert low.low == 0
    flat = HeatScale.of(torch.full((4, 4), 0.3))
    assert (flat.low, flat.high) == (0.0, pytest.approx(0.3))


def test_a_comparison_overlays_smooth_maps_and_shows_grainy_ones_without_the_image():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grainy = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))
    smooth = torch.linspace(0, 1, 32).expand(1, 32, 32)
    maps = torch.stack([grainy, smooth])
    figure = comparison_figure(image, maps, ["saliency", "grad-cam"], ["cat"], [False, False])
    shown = [axes.images[0].get_array() / 255 for axes in figure.axes if axes.images]
    _, first, _, second, _ = shown  # the image, and below each map its colour bar
    assert np.allclose(first, colourise(grainy[0]).permute(1, 2, 0), atol=1.01 / 255)
    assert np.allclose(second, overlay(image[0], smooth[0]).permute(1, 2, 0), atol=1.01 / 255)
