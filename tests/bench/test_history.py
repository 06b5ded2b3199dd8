"""Every run of the benchmarks is kept, and `--history` shows how a ratio has moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench import __main__ as bench
from tests.bench import history
from tests.bench.pairs import Pair


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A history of its own, at first without a file."""
    path = tmp_path / "benchmarks" / "history.jsonl"
    monkeypatch.setattr(history, "FILE", path)
    return path


def pair(ratio: float, theirs: str = "captum") -> Pair:
    return Pair("grad-cam resnet50", "timmscope", theirs, ratio, 1.0, ratio, 7)


def run_once(monkeypatch: pytest.MonkeyPatch, *pairs: Pair) -> None:
    monkeypatch.setattr(bench, "CASES", {"grad-cam": lambda: iter(pairs)})
    bench.main([])


def test_each_run_is_one_line_with_commit_machine_and_ratios(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_once(monkeypatch, pair(0.98765432), pair(2.0, "bare forward"))
    run_once(monkeypatch, pair(1.5))
    first, second = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert [each["ratio"] for each in first["pairs"]] == [0.9877, 2.0]
    assert first["pairs"][0]["benchmark"] == "grad-cam"
    assert second["machine"]["cores"] >= 1
    assert second["machine"]["cpu"]
    assert second["versions"].keys() >= {"python", "torch", "timmscope"}
    assert second["commit"] is None or len(second["commit"]) == 40


def test_what_was_measured_before_an_interrupt_is_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Iterator[Pair]:
        yield pair(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "CASES", {"grad-cam": interrupted})
    with pytest.raises(KeyboardInterrupt):
        bench.main(["grad-cam"])
    (record,) = history.read()
    assert [each["ratio"] for each in record["pairs"]] == [0.5]


def test_a_change_is_against_the_run_before_on_the_same_machine() -> None:
    def record(cpu: str, ratio: float) -> history.Record:
        one = {"benchmark": "grad-cam", **pair(ratio).row()}
        return {"machine": {"cpu": cpu}, "pairs": [one]}

    runs = [record("A", 1.0), record("B", 4.0), record("A", 0.5), record("B", 5.0)]
    ((title, moved),) = history.moves(runs, "grad-cam")
    assert title == "grad-cam resnet50: timmscope / captum"
    assert [run["change"] for run in moved] == [None, None, -0.5, 0.25]
    assert len(list(history.moves(runs, "resnet50"))) == 1
    assert list(history.moves(runs, "pca")) == []


def test_the_history_of_a_benchmark_is_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(monkeypatch, pair(1.0))
    run_once(monkeypatch, pair(1.25))
    capsys.readouterr()
    bench.main(["--history", "grad-cam"])
    shown = capsys.readouterr().out
    assert "grad-cam resnet50: timmscope / captum" in shown
    assert "1.25" in shown
    assert "+25%" in shown


def test_a_benchmark_that_was_never_run_is_named(file: Path) -> None:
    with pytest.raises(SystemExit, match="no run of t-sne"):
        bench.main(["--history", "t-sne"])
