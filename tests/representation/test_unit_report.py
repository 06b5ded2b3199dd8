"""The report on units: flags and numbers by hand, contexts, arrays, CSV, and what is refused."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.store.rewriting import rewrite_rows

from timmscope import (
    LayerNotFound,
    ParameterError,
    Store,
    UnitReport,
    load_model,
    load_result,
    mine,
    technique,
)
from timmscope.cli import main

JudgeUnits: Any = technique("unit-report")
COUNT = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        low = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        low[..., number % 2] //= 4  # folders differ in colour
        place = folder / f"class{number % 2}" / f"{number:02d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(low).resize((40, 40)).save(place)
    model = load_model("random:resnet18?seed=0&img_size=32&num_classes=10")
    place = tmp_path_factory.mktemp("store") / "s.scope"
    return mine(model, folder, place, layers=["act1", "layer1", "fc"], workers=0)


@pytest.fixture
def with_context(store: Store, tmp_path: Path) -> Store:
    lines = ["id,camera,year,same,one"]
    lines += [
        f"{i},{'north' if i % 3 else 'south'},{2000 + i % 4 if i > 2 else ''},x,7"
        for i in range(COUNT)
    ]
    (tmp_path / "shots.csv").write_text("\n".join(lines) + "\n")
    return store.with_metadata(tmp_path / "shots.csv")


def by_hand(rows: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best of two classes, index of Morcos et al., and area under the curve, of each unit."""
    means = np.stack([rows[codes == code].mean(0) for code in range(2)])
    best = means.argmax(0)
    above = means - np.minimum(rows.min(0), 0)
    high, low = above.max(0), above.min(0)
    areas = []
    for unit, code in enumerate(best):
        own, rest = rows[codes == code, unit], rows[codes != code, unit]
        wins = (own[:, None] > rest).mean() + (own[:, None] == rest).mean() / 2
        areas.append(wins)
    return best, (high - low) / (high + low), np.array(areas)


def test_numbers_of_classes_and_pairs_are_those_by_hand(store: Store) -> None:
    report = JudgeUnits(class_size=5)(store, layer="layer1")
    rows = np.asarray(store.layer("layer1").pooled, np.float64)
    codes = np.array([int(label[-1]) for label in store.images.labels])
    best, index, area = by_hand(rows, codes)
    units = report.table()
    assert [unit["best_class"] for unit in units] == [f"class{code}" for code in best]
    np.testing.assert_allclose([unit["selectivity"] for unit in units], index, rtol=1e-5)
    # Counted in bins 1/32 of a value wide.
    np.testing.assert_allclose([unit["auroc"] for unit in units], area, atol=0.06)
    matrix = np.corrcoef(rows.T)
    np.fill_diagonal(matrix, 0)
    partner = np.abs(matrix).argmax(1)
    assert [unit["partner"] for unit in units] == partner.tolist()
    expected = matrix[np.arange(len(partner)), partner]
    np.testing.assert_allclose([unit["correlation"] for unit in units], expected, atol=1e-6)


def test_a_context_takes_the_place_of_labels(with_context: Store) -> None:
    report = JudgeUnits(context="camera", class_size=5)(with_context, layer="layer1")
    rows = np.asarray(with_context.layer("layer1").pooled, np.float64)
    codes = np.array([i % 3 == 0 for i in range(COUNT)]).astype(int)
    names = np.array(["north", "south"])
    best, index, area = by_hand(rows, codes)
    assert [unit["best_class"] for unit in report.table()] == names[best].tolist()
    np.testing.assert_allclose([unit["selectivity"] for unit in report.table()], index, rtol=1e-5)
    np.testing.assert_allclose([unit["auroc"] for unit in report.table()], area, atol=0.06)
    assert "selective for a camera" in report.sentence
    texts = [text.get_text() for text in report.figure().texts]
    assert "Selectivity for a unit's best camera" in texts
    folders = JudgeUnits(context="folder", class_size=5)(with_context, layer="layer1")
    labels = JudgeUnits(class_size=5)(with_context, layer="layer1")
    assert folders.table() == labels.table()  # the labels of this store are its folders


def test_a_unit_tied_to_a_context_is_found() -> None:
    from timmscope.units import UnitRows, judge_rows

    rng = np.random.default_rng(1)
    codes = np.arange(60) % 2
    rows = rng.random((60, 4)).astype(np.float32)
    rows[:, 2] += 3 * codes
    source = UnitRows(
        name="x",
        channels=4,
        stream=lambda kind, what: iter([(np.arange(60), rows)]),
        known=lambda: None,
        names=("indoors", "outdoors"),
        codes=codes,
        readable=np.ones(60, bool),
    )
    report = judge_rows(source, by="place")
    assert np.flatnonzero(report.selective).tolist() == [2]
    assert report.best_class[2] == "outdoors"
    assert report.auroc[2] == 1


def test_two_numbers_are_no_correlation() -> None:
    from timmscope.units import UnitRows, judge_rows

    rows = np.random.default_rng(0).random((20, 3)).astype(np.float32)

    def report(known: int) -> UnitReport:
        source = UnitRows(
            name="x",
            channels=3,
            stream=lambda kind, what: iter([(np.arange(20), rows)]),
            known=lambda: None,
            names=(),
            codes=np.full(20, -1),
            readable=np.ones(20, bool),
            numbers=np.where(np.arange(20) < known, np.arange(20.0), np.nan),
        )
        return judge_rows(source, by="year")

    with pytest.raises(ParameterError, match="only 2 images have a year"):
        report(2)
    expected = [np.corrcoef(unit[:3], np.arange(3))[0, 1] for unit in rows.T]
    np.testing.assert_allclose(report(3).context_correlation, expected, atol=1e-6)


def test_units_correlate_with_a_column_of_numbers(with_context: Store) -> None:
    report = JudgeUnits(context="year")(with_context, layer="layer1")
    years = np.array([2000 + i % 4 for i in range(3, COUNT)])  # the first three have none
    rows = np.asarray(with_context.layer("layer1").pooled, np.float64)[3:]
    expected = [np.corrcoef(unit, years)[0, 1] for unit in rows.T]
    found = [unit["context_correlation"] for unit in report.table()]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    best = int(np.abs(expected).argmax())
    told = f"unit {best} closest to year (r = {expected[best]:+.2f} over {COUNT - 3})"
    assert told in report.sentence
    assert with_context.images.metadata is not None
    assert report.provenance.call["metadata"] == str(with_context.images.metadata.path)
    assert (report.by, report.labelled, report.unjudged) == ("year", COUNT - 3, "")
    first = report.summary()[0]
    assert first["unit"] == best
    assert first["context_correlation"] == found[best]
    assert "auroc" not in first
    figure = report.figure()
    assert "Correlation of each unit with year" in [text.get_text() for text in figure.texts]
    named = figure.axes[3].texts[0].get_text().splitlines()
    assert named[0] == f"{best}: {expected[best]:+.2f}"
    some = JudgeUnits(context="id")(with_context, layer="layer1", where="id >= 3 and id < 12")
    expected = np.corrcoef(rows[:9].T, np.arange(3, 12))[-1, :-1]
    found = [unit["context_correlation"] for unit in some.table()]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_array_of_float64_is_judged_in_float64() -> None:
    rows = 1 + 1e-9 * np.random.default_rng(3).normal(size=(200, 3))
    rows[:, 2] = 1
    units = JudgeUnits()(rows).table()
    for unit, column in zip(units, rows.T, strict=True):
        assert unit["mean_std"] == pytest.approx(column.std(), rel=1e-6, abs=1e-15)
        assert (unit["max_min"], unit["max_max"]) == (column.min(), column.max())
    assert units[0]["correlation"] == pytest.approx(np.corrcoef(rows[:, :2].T)[0, 1], abs=1e-6)
    assert units[2]["correlation"] is None


def test_a_report_over_few_images_warns_of_chance() -> None:
    rows = np.random.default_rng(0).random((120, 4))
    assert "chance" not in JudgeUnits()(rows).sentence
    few = JudgeUnits()(rows[:99])
    assert few.sentence.endswith("; with only 99 images, much of this is chance")
    assert any("over 99 images" in text.get_text() for text in few.figure().texts)


def test_rows_of_a_store_that_hold_nan_are_refused_and_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "nan.scope"
    shutil.copytree(store.path, path)

    def spoil(arrays: dict[str, np.ndarray]) -> None:
        for kind in ("pooled", "max"):
            arrays[f"layers/layer1/{kind}"][[2, 15], 7] = np.nan

    rewrite_rows(path, 0, spoil)
    message = r"^2 of 20 rows of layer1 of nan.scope hold NaN .* class0/04.png, class1/07.png; "
    with pytest.raises(ParameterError, match=message):
        JudgeUnits()(path, layer="layer1", where="id < 20")

    def spoil_more(arrays: dict[str, np.ndarray]) -> None:
        arrays["layers/layer1/pooled"][:6, 7] = np.nan

    rewrite_rows(path, 0, spoil_more)
    with pytest.raises(ParameterError, match=r"^7 of 20 .* and 2 more; leave them out with where="):
        JudgeUnits()(path, layer="layer1", where="id < 20")


def test_an_array_is_judged_by_its_columns() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((400, 7))
    rows[:, 0] = 0  # dead
    rows[:, 1] = 5 + 0.001 * rows[:, 1]  # always on
    rows[:, 2] = 0
    rows[7, 2] = 1  # sparse
    rows[:, 4] = -2 * rows[:, 3] + 2  # redundant
    rows[:, 5] += rng.random(400)
    report = JudgeUnits()(rows)
    flags = {unit["unit"]: unit["flags"] for unit in report.table()}
    assert flags == {
        0: ["dead"], 1: ["saturated"], 2: ["sparse"],
        3: ["redundant"], 4: ["redundant"], 5: [], 6: [],
    }  # fmt: skip
    assert [unit["unit"] for unit in report.table() if unit["prunable"]] == [0, 1, 3]
    assert report.table()[4]["correlation"] == pytest.approx(-1)
    assert report.unjudged == "no image has a label"
    assert "auroc" not in report.summary()[0]
    text = "\n".join(text.get_text() for text in report.figure().texts)
    assert "to prune: dead 0; saturated 1; redundant 3" in text
    panels = [t.get_text() for t in report.figure().axes[0].get_legend().get_texts()]
    assert "saturated (always on): 1" in panels
    some = JudgeUnits()(rows, where=np.arange(100, 300))
    assert some.images == 200
    assert some.table()[2]["flags"] == ["dead"]


def test_limits_are_parameters() -> None:
    rows = np.random.default_rng(0).random((50, 3))
    rows[:, 1] = rows[:, 0] + 0.4 * rows[:, 2]
    r = abs(np.corrcoef(rows.T)[0, 1])
    assert JudgeUnits(redundant=r - 0.01)(rows).counts["redundant"] == 2
    assert JudgeUnits(redundant=r + 0.01)(rows).counts["redundant"] == 0
    with pytest.raises(ParameterError, match=r"'redundant' .* is 1\.2"):
        JudgeUnits(redundant=1.2)


def test_the_result_survives_saving_with_its_csv(store: Store, tmp_path: Path) -> None:
    report = JudgeUnits(class_size=5)(store, layer="act1")
    again = load_result(report.save(tmp_path))
    assert isinstance(again, UnitReport)
    assert again.table() == report.table()
    assert again.summary() == report.summary()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "units.csv").read_text())))
    assert len(rows) == 64
    assert [row["flags"].split() for row in rows] == [unit["flags"] for unit in report.table()]
    assert [float(row["fires"]) for row in rows] == [unit["fires"] for unit in report.table()]
    first = [text.get_text() for text in report.figure().texts]
    assert [text.get_text() for text in again.figure().texts] == first


def test_one_class_says_why_nothing_is_selective(store: Store) -> None:
    report = JudgeUnits()(store, layer="layer1", where="label == 'class1'")
    assert report.unjudged == "all images that have a label have the same one"
    assert "none is selective: all images that have a label" in report.sentence
    assert all(unit["auroc"] is None for unit in report.table())
    small = JudgeUnits(class_size=13)(store, layer="layer1")
    assert small.unjudged == "no two values of label have 13 images"


def test_wrong_input_is_one_clear_line(store: Store, with_context: Store) -> None:
    def refused(match: str, source: Any = with_context, **given: Any) -> None:
        fields = {name: given.pop(name) for name in ("context",) if name in given}
        with pytest.raises(ParameterError, match=match):
            JudgeUnits(**fields)(source, layer="fc", **given)

    refused(r"no column 'camra' of .*; did you mean 'camera'\? there are id, path", context="camra")
    refused("no column 'readable' of text or numbers", context="readable")
    refused("all images that have a one have the same one", context="one")
    refused("all images that have a same have the same one", context="same")
    refused("no two values of name have 10 images", context="name")
    refused("label have the same one", context="label", where="label == 'class0'")
    refused("takes no query images", images="cat.png")
    refused("no image that meets the condition", where="width > 999")
    refused("a report on units needs at least 3 images, fc of .* has 1 that meet", where=[3])
    with pytest.raises(LayerNotFound, match=r"no layer 'layer9'; did you mean 'layer1'\?"):
        JudgeUnits()(store, layer="layer9")
    with pytest.raises(ParameterError, match="an array is not enough"):
        JudgeUnits(context="label")(np.ones((4, 3)))
    with pytest.raises(ParameterError, match="all 4 rows of the array are equal"):
        JudgeUnits()(np.ones((4, 3)))
    with pytest.raises(ParameterError, match=r"values up to 4e.39, beyond float32's range"):
        JudgeUnits()(4e39 * np.eye(3))
    rows = np.random.default_rng(0).random((9, 3))
    rows[[2, 5], 1] = np.nan
    with pytest.raises(ParameterError, match=r"2 of 9 rows of the array hold NaN .* row 2, row 5"):
        JudgeUnits()(rows)


def test_the_command_writes_the_csv_and_names_the_context(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = ["run", "unit-report", str(store.path), "--layer", "layer1", "-o", str(tmp_path)]
    assert main([*run, "--context", "folder", "--class-size", "5"]) == 0
    out = capsys.readouterr().out
    assert "units.csv" in out
    assert "class0" in out
    for more in (["--layer", "fc"], ["--layer=layer1,fc"]):
        again = [*run[:3], *more, *([] if "," in more[0] else run[3:5])]
        assert main(again) == 2
        error = capsys.readouterr().err
        assert "reads one layer, but 2 are given:" in error
        assert error.endswith("; run it once per layer\n")
    assert main([*run, "--context", "width"]) == 2
    error = capsys.readouterr().err
    assert "all images that have a width have the same one" in error
    assert error.count("\n") == 1
