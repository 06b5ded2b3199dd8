"""The report is one file: valid, self-contained, safe against what file names may hold."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope.demo.cost import Clock
from timmscope.demo.dataset import write_whole
from timmscope.demo.run import SECTIONS, render
from timmscope.demo.tour import Tour, in_python, in_shell
from timmscope.progress import reporting
from timmscope.results import Provenance, Sheet
from timmscope_registry import TimmscopeError

EVIL = "<script>alert('x')</script> & \"q\""
VOID = {"meta", "img", "br", "link", "input"}


def sheet(**fields):
    made = Provenance(
        technique="demo", family="", parameters={}, model=None, weights_sha256=None, seed=0
    )
    rows = [{EVIL: EVIL, "share": 0.123456, "none": None, "list": [1, 2.5], "count": 12}]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 8, 8, generator=generator)
    return Sheet(provenance=made, images=images, titles=[EVIL], rows=rows, **fields)


@pytest.fixture
def exhibit(tmp_path):
    tour = Tour(model=None, store=None, source=None, out=tmp_path, own=True)
    lines = {"python": EVIL, "shell": EVIL, "note": EVIL}
    return tour.exhibit(sheet(title=EVIL), EVIL, "embedding-map", **lines)


def page(exhibit=None, own=False):
    clock = Clock()
    with clock.step(EVIL):
        pass
    return render(
        facts={"model": EVIL, EVIL: EVIL},
        own=own,
        classes=2,
        levels=2,
        needed=91,
        shown={name: [exhibit] * 2 if exhibit else [] for name in SECTIONS},
        steps=clock.steps,
        total=clock.total(),
        model=EVIL,
        store=EVIL,
        mined=EVIL,
        unreadable=[(0, EVIL, EVIL)] * 25,
        made=EVIL,
    )


class Balance(HTMLParser):
    """Checks that tags close in order, and keeps attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.ids, self.text = [], [], [], []

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

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_balanced_self_contained_and_escapes_names(exhibit):
    text = page(exhibit)
    checker = Balance()
    checker.feed(text)
    assert checker.open == []
    links = [source for source in checker.sources if not source.startswith("data:image/webp;")]
    assert len(checker.sources) - len(links) == 2 * len(SECTIONS)
    assert {link for link in links if link[0] != "#"} == {"results/embedding-map/map.html"}
    assert {link[1:] for link in links if link[0] == "#"} == set(checker.ids)
    assert list(SECTIONS) == checker.ids[:-1]
    assert len(checker.ids) == len(set(checker.ids))
    assert "<script" not in text
    assert "http" not in re.sub(r"data:image/[^\"]+", "", text)
    assert "url(" not in text
    assert "@import" not in text
    assert "and 5 more" in text
    for row in ("python", "shell", "note"):
        assert checker.text.count(getattr(exhibit, row)) >= 2 * len(SECTIONS)


def test_summaries_are_tables_of_short_numbers(exhibit):
    cells = re.findall(r"<t([dh])[^>]*>(.*?)</t\1>", page(exhibit))
    assert [text for kind, text in cells if kind == "h"][1:5] == ["share", "none", "list", "count"]
    assert [text for kind, text in cells if kind == "d"][1:5] == ["0.123", "–", "1, 2.5", "12"]


def test_sections_without_a_result_say_what_they_need():
    text = page(own=True)
    assert text.count("This needs at least two images that can be read.") == 6
    assert "This needs images that differ: there is only one." in text
    assert "This needs at least 91 images that can be read." in text
    assert "Do it again" not in text
    assert "Crops of one photograph" not in text


def test_page_follows_dark_mode_phones_and_print(exhibit):
    text = page(exhibit)
    assert "prefers-color-scheme: dark" in text
    assert "max-width: 560px" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


def test_files_are_written_whole(tmp_path):
    write_whole(tmp_path / "new" / "report.html", b"text")
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["report.html"]
    assert (tmp_path / "new" / "report.html").read_bytes() == b"text"
    (tmp_path / "folder").mkdir()
    with pytest.raises(TimmscopeError, match=r"cannot write .*folder"):
        write_whole(tmp_path / "folder", b"text")


def test_an_exhibit_shows_the_figure_that_is_saved(exhibit, tmp_path):
    saved = Image.open(tmp_path / exhibit.folder / "figure.png").convert("RGB")
    kind, _, content = exhibit.figure.partition(";base64,")
    assert kind == "data:image/webp"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    assert shown.size == saved.size
    assert exhibit.width_px == round(0.8 * saved.width)
    error = np.abs(np.asarray(shown, float) - np.asarray(saved, float))
    assert error.mean() < 2


def test_values_are_printed_as_one_types_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, elsewhere = tmp_path / "a b.png", tmp_path.parent / "x.png"
    assert in_python(here) == '"a b.png"'
    assert in_python([here, "ü'", 3, 0.5]) == '["a b.png", "ü\'", 3, 0.5]'
    assert in_python('"-" not in name') == """'"-" not in name'"""
    assert in_python(elsewhere) == f'"{elsewhere}"'
    typed = in_shell("run", here, 3, '"-" not in name')
    assert typed == """timmscope run 'a b.png' 3 '"-" not in name'"""


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
