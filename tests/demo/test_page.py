"""The report is one file: valid, self-contained, safe against what file names may hold."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope.demo.cost import Clock
from timmscope.demo.inline import curve_svg, data_uri, gradient, legend
from timmscope.demo.page import render, write_page
from timmscope.demo.view import (
    Attacked,
    Bars,
    Card,
    ColourBar,
    Curve,
    Explained,
    Page,
    Picture,
    Section,
    Strip,
    Stylised,
    Synthesised,
)
from timmscope.drawing import HeatScale
from timmscope.progress import reporting
from timmscope_registry import TimmscopeError

EVIL = "<script>alert('x')</script> & \"q\""
VOID = {"meta", "img", "br", "link", "input"}


def page():
    picture = Picture(data_uri(torch.rand(3, 4, 4)), EVIL, EVIL, EVIL)
    card = Card(picture, Bars([(EVIL, 0.999), ("b", 0.0)]))
    curve = Curve(
        curve_svg({"": torch.rand(5)}, value=EVIL, reference=(EVIL, 0.5)), [(EVIL, "#123456")]
    )
    bar = ColourBar(gradient(HeatScale.of(torch.rand(4, 4))), "0", "1")
    section = Section(
        id="all",
        title=EVIL,
        lead=EVIL,
        python=EVIL,
        cli=EVIL,
        note=EVIL,
        cards=[card],
        strips=[Strip(EVIL, [picture] * 6, EVIL)],
        explained=[Explained(picture, [(picture, bar, picture)])],
        synthesised=[Synthesised(picture, picture, curve)],
        attacked=[Attacked(card, picture, card, EVIL)],
        stylised=[Stylised([picture] * 3, curve)],
    )
    clock = Clock()
    with clock.step(EVIL):
        pass
    return Page(
        subtitle=EVIL,
        facts=[(EVIL, EVIL)],
        setup=EVIL,
        mined=EVIL,
        sections=[section],
        steps=clock.steps,
        total=clock.total(),
        unreadable=[(EVIL, EVIL)] * 25,
        made=EVIL,
    )


class Balance(HTMLParser):
    """Checks that tags close in order, and keeps attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        assert tag not in {"script", "link", "iframe"}, tag
        if tag == "img":
            assert values.get("alt"), "every picture says what it shows"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_balanced_self_contained_and_escapes_names():
    text = render(page())
    checker = Balance()
    checker.feed(text)
    assert checker.open == []
    assert checker.sources
    assert all(source.startswith(("data:image/", "#")) for source in checker.sources)
    assert {source[1:] for source in checker.sources if source[0] == "#"} <= set(checker.ids)
    assert "<script" not in text
    assert "http" not in re.sub(r"data:image/[^\"]+", "", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "and 5 more" in text


def test_page_follows_dark_mode_phones_and_print():
    text = render(page())
    assert "prefers-color-scheme: dark" in text
    assert "max-width: 560px" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


def test_page_is_written_whole(tmp_path):
    path = write_page(page(), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(TimmscopeError, match="cannot write the report"):
        write_page(page(), tmp_path / "missing" / "report.html")


def test_lossless_pictures_keep_their_pixels():
    image = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0)) / 255
    address = data_uri(image, lossless=True)
    kind, _, content = address.partition(";base64,")
    assert kind == "data:image/png"
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert (array.transpose(2, 0, 1) == (image * 255).round().numpy()).all()
    assert data_uri(image).startswith("data:image/jpeg;base64,")


def points(svg, number=0):
    lines = ElementTree.fromstring(svg).findall("polyline")
    return [tuple(map(float, pair.split(","))) for pair in lines[number].get("points").split()]


def test_a_straight_line_is_drawn_straight_from_edge_to_edge():
    svg = curve_svg({"": torch.linspace(0, 10, 11)}, value="logit")
    drawn = points(svg)
    assert drawn[0] == (52.0, 226.0)
    assert drawn[-1] == (508.0, 12.0)
    assert drawn[5] == (280.0, 119.0)


def test_logarithmic_curves_leave_out_what_has_no_logarithm():
    svg = curve_svg({"a": torch.tensor([1.0, 0.1, 0.0, 0.01])}, value="loss", log=True)
    drawn = points(svg)
    assert len(drawn) == 3
    heights = [y for _, y in drawn]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [5.0, 5.0, 5.0], [-2.0, -1.0]])
def test_short_constant_and_negative_curves_are_drawn(values):
    for x, y in points(curve_svg({"": torch.tensor(values)}, value="v")):
        assert 0 <= x <= 520
        assert 0 <= y <= 260


def test_a_curve_without_positive_values_has_no_logarithm_to_draw():
    svg = curve_svg({"a": torch.zeros(3)}, value="loss", log=True)
    assert len(points(svg)) == 3


def test_legend_names_the_colours_drawn():
    curves = {"total": torch.rand(3), "style": torch.rand(3)}
    svg = curve_svg(curves, value="loss")
    for number, (name, colour) in enumerate(legend(curves)):
        assert list(curves)[number] == name
        line = ElementTree.fromstring(svg).findall("polyline")[number]
        assert line.get("style") == f"stroke:{colour}"


def test_gradient_runs_through_the_colour_map():
    text = gradient(HeatScale.of(torch.tensor([[-1.0, 1.0]])))
    assert text.startswith("linear-gradient(to right, #")
    assert text.count("#") == 17


def test_clock_lists_steps_in_order_and_reports_their_titles():
    class Titles:
        def __init__(self):
            self.seen = []

        def open(self, description, total):
            from contextlib import nullcontext

            self.seen.append(description)
            return nullcontext(lambda steps: None)

    clock, titles = Clock(), Titles()
    with reporting(titles):
        with clock.step("one"):
            held = torch.zeros(64, 1024, 1024, dtype=torch.uint8).fill_(1)
        del held
        with clock.step("two"):
            pass
    assert titles.seen == ["one", "two"] == [step.title for step in clock.steps]
    one, two = clock.steps
    assert one.peak_mb is not None
    assert one.peak_mb >= two.peak_mb > 0
    assert clock.total().seconds >= one.seconds + two.seconds
    assert clock.total().peak_mb == one.peak_mb


def test_a_step_that_fails_is_not_listed():
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock.step("bad"):
        _ = 1 / 0
    assert clock.steps == []
