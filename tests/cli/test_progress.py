"""Progress is silent without a reporter, and a reporter receives every step."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from timmscope.progress import Advance, RichReporter, remark, reporting, task, track


class Recorder:
    def __init__(self) -> None:
        self.events: list[object] = []

    @contextmanager
    def open(self, description: str, total: int | None) -> Iterator[Advance]:
        self.events.append((description, total))
        try:
            yield self.events.append
        finally:
            self.events.append("closed")


def test_without_a_reporter_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_reporter_receives_the_total_and_every_step() -> None:
    recorder = Recorder()
    with reporting(recorder), task("mining", total=64) as advance:
        advance(32)
        assert list(track(iter("ab"), "inner")) == ["a", "b"]
    assert recorder.events == [("mining", 64), 32, ("inner", None), 1, 1, "closed", "closed"]


def test_a_task_that_fails_or_is_left_early_is_closed() -> None:
    recorder = Recorder()
    with reporting(recorder):
        for item in track(range(5), "steps"):
            if item == 1:
                break
        with pytest.raises(ZeroDivisionError), task("more"):
            raise ZeroDivisionError
    assert recorder.events == [("steps", 5), 1, "closed", ("more", None), "closed"]
    list(track(range(2), "unheard"))
    assert len(recorder.events) == 5


def test_finished_outer_bars_stay_and_inner_bars_disappear() -> None:
    screen = io.StringIO()
    reporter = RichReporter(Console(file=screen, force_terminal=True, width=100))
    with reporting(reporter), task("mining", total=2) as advance:
        list(track(range(3), "optimising"))
        advance(2)
    last = screen.getvalue().rpartition("mining")[2]
    assert "2/2" in last
    assert "optimising" not in last


def test_a_bar_shows_rate_time_left_and_the_last_remark() -> None:
    screen = io.StringIO()
    remark("nobody listens")
    now = 0.0
    console = Console(file=screen, force_terminal=True, width=80, get_time=lambda: now)
    reporter = RichReporter(console)
    reporter.remark("no work yet")
    with reporting(reporter), task("mining images", total=4_000_000) as advance:
        advance(1_000_000)  # finished in an earlier pass
        for shard in (977, 978):
            now += 0.5
            advance(512_000)
            remark(f"1023 unreadable, shard {shard} of 3907")
        with task("inner", total=1) as inner:
            remark("of the inner one")
            inner(1)
        now += 1  # bars are not redrawn at every step
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = text.rpartition("mining images")[2].splitlines()[0]
    assert " 2024000/4000000, 1.02e+06/s, 00:02 left, 1023" in last
    assert len("mining images" + last) <= 80
    assert "no work yet" not in text


def test_a_task_of_unknown_length_shows_the_elapsed_time() -> None:
    screen = io.StringIO()
    now = 0.0
    console = Console(file=screen, force_terminal=True, width=80, get_time=lambda: now)
    with reporting(RichReporter(console)):
        for _ in track(iter("abc"), "looking"):
            now += 25
    assert re.search(r"looking .* 3, 01:15", screen.getvalue())
