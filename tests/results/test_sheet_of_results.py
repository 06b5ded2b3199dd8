"""A sheet of results: their pictures at their places, and captions that say what differs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from timmscope import (
    ParameterError,
    Provenance,
    Synthesis,
    Table,
    TimmscopeError,
    checked_json,
    sheet_of_results,
)
from timmscope.cli import main


def made(level: float, images: int = 1, **changes: Any) -> Synthesis:
    """Return a synthesis of plain images."""
    facts: dict[str, Any] = {
        "technique": "timmscope:activation-maximization",
        "family": "synthesis",
        "parameters": {"steps": 2, "count": images},
        "model": "random:resnet18",
        "weights_sha256": None,
        "seed": 0,
        "call": {"objective": "class:1"},
    }
    return Synthesis(
        provenance=Provenance(**{**facts, **changes}),
        images=torch.full((images, 3, 20, 20), level),
        scores=torch.zeros(2, images),
        best_step=torch.zeros(images, dtype=torch.long),
        final_scores=torch.zeros(images),
        objective="class:1",
        labels=["class 1"] * images,
        targets=torch.zeros(images, dtype=torch.long),
    )


def levels(figure: Any) -> list[tuple[float, float, int]]:
    """Return the left edge, the top edge and the grey level, as drawn, of each picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    found = []
    for picture in figure.axes[0].get_images():
        box = picture.get_window_extent()
        left, top = round(box.x0), round(len(pixels) - box.y1)
        inside = pixels[top + 3 : top + round(box.height) - 3, left + 3 : left + 100, :3]
        assert inside.min() == inside.max()
        found.append((left, top, int(inside[0, 0, 0])))
    return found


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_results_of_one_picture_are_a_grid_with_what_differs_as_captions(tmp_path):
    results = [
        made(0.2, call={"objective": "class:1"}),
        made(0.4, call={"objective": "class:2"}),
        made(0.6, call={"objective": "class:2"}, parameters={"steps": 3, "count": 1}),
    ]
    figure = sheet_of_results([results[0], results[1].save(tmp_path / "two"), results[2]])
    (left, top, first), second, third = levels(figure)
    assert [first, second[2], third[2]] == [51, 102, 153]
    assert second[1] == top
    assert second[0] > left + 100
    assert third[0] == left
    assert third[1] > top + 100
    shown = ["class:1", "steps 2", "class:2", "steps 2", "class:2", "steps 3"]
    heading = "Synthesis, activation-maximization, random:resnet18"
    assert " ".join(texts(figure)).replace("- ", "-") == " ".join([heading, *shown])
    wide = levels(sheet_of_results(results, columns=3))
    assert len({top for _, top, _ in wide}) == 1


def test_results_of_several_pictures_are_rows():
    figure = sheet_of_results([made(0.2, images=2, seed=3), made(0.4, images=10, seed=4)])
    found = levels(figure)
    assert [level for _, _, level in found] == [51] * 2 + [102] * 8
    assert len({top for _, top, _ in found}) == 2
    assert {"seed 3", "seed 4", "count 2", "count 10"} < set(texts(figure))
    assert "the first 8 of up to 10 pictures" in texts(figure)


def test_parameters_are_compared_within_a_technique():
    one = made(0.2, technique="x:one", parameters={"a": 1})
    two = made(0.2, technique="x:two", parameters={"b": 0.25})
    again = made(0.2, technique="x:two", parameters={"b": 0.5})
    assert texts(sheet_of_results([one, two]))[1:] == ["one", "two"]
    assert texts(sheet_of_results([two, again]))[1:] == ["b 0.25", "b 0.5"]
    assert texts(sheet_of_results([one, one]))[1:] == ["one", "one"]


def test_other_kinds_are_whole_figures():
    table = Table(provenance=made(0.5).provenance, rows=[{"a": 1}])
    figure = sheet_of_results([table, dataclasses.replace(table, rows=[{"a": 2}])])
    shown = figure.axes[0].get_images()
    pictures = [np.asarray(each.get_array()) for each in shown]
    assert all(picture.shape[1] > 100 for picture in pictures)
    assert not np.array_equal(*pictures)
    assert shown[0].get_window_extent().width == pytest.approx(4.5 * figure.dpi)


def test_wrong_sheets_are_refused_in_one_line(tmp_path):
    table = Table(provenance=made(0.5).provenance, rows=[{"a": 1}])
    with pytest.raises(ParameterError, match="are of 2 kinds, Synthesis, Table: a sheet shows one"):
        sheet_of_results([made(0.2), table])
    with pytest.raises(ParameterError, match="0 results: a sheet needs 1 to 256"):
        sheet_of_results([])
    with pytest.raises(ParameterError, match="columns is 0"):
        sheet_of_results([made(0.2)], columns=0)
    with pytest.raises(TimmscopeError, match="no result can be read from"):
        sheet_of_results([tmp_path])


def test_a_result_whose_arrays_do_not_fit_is_one_line(tmp_path):
    folder = dataclasses.replace(made(0.2), images=torch.zeros(1, 2, 3, 4)).save(tmp_path / "odd")
    record = checked_json.load((folder / "result.json").read_bytes())
    with h5py.File(folder / "arrays.h5", "w") as file:
        for name in record["arrays"]:
            file.create_dataset(name, data=np.zeros((2, 2)), track_times=False)
    arrays = (folder / "arrays.h5").read_bytes()
    record["arrays"] = {name: [2, 2] for name in record["arrays"]}
    record["arrays_file"] = {"size": len(arrays), "sha256": hashlib.sha256(arrays).hexdigest()}
    (folder / "result.json").write_bytes(checked_json.dump(record))
    with pytest.raises(TimmscopeError, match=r"result in .*odd cannot be drawn: "):
        sheet_of_results([folder])


def test_the_command_draws_saved_results(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(0.2).save("one")
    made(0.4, seed=1).save("two")
    assert main(["sheet", "one", "two", "-o", "new/sheet.png"]) == 0
    assert capsys.readouterr().out == "wrote new/sheet.png\n"
    assert (tmp_path / "new/sheet.png").stat().st_size > 1000
    assert main(["sheet", "one", "--columns", "1"]) == 0
    assert (tmp_path / "timmscope-out/sheet.png").exists()
    assert main(["sheet"]) == 2
    assert main(["sheet", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "no result given: name at least one folder" in error
    assert error.count("\n") == 2
    assert json.loads((tmp_path / "one/result.json").read_text())["type"] == "Synthesis"
