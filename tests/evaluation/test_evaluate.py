"""`evaluate` measures techniques side by side, resumes after a kill, and refuses in one line."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.processes import Running

from timmscope import (
    Deletion,
    HookedModel,
    ImageError,
    Insertion,
    ObjectiveError,
    ParameterError,
    PluginError,
    PointingGame,
    SensitivityN,
    StoreCorrupted,
    StoreError,
    StoreMismatch,
    TechniqueError,
    UnsupportedModel,
    checked_json,
    evaluate,
    load_model,
    load_result,
    technique,
)
from timmscope.results.bootstrap import interval
from timmscope_registry.hooks import fingerprint

MODEL = "random:resnet18?seed=0&img_size=32&num_classes=5"
QUICK = [Insertion(steps=4), Deletion(steps=4), SensitivityN(sets=4, shares=(0.1, 0.5))]
TECHNIQUES = {
    "saliency": technique("saliency")(),
    "occlusion": technique("occlusion")(patch_px=16),
}


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model(MODEL)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_values_equal_those_of_the_metrics_and_means_have_intervals(model, photos, tmp_path):
    (photos / "bad.png").write_text("no picture")
    before = fingerprint(model.module)
    found = evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=tmp_path / "out")
    assert fingerprint(model.module).difference(before) == []
    assert found.techniques == ["saliency", "occlusion"]
    assert found.metrics == ["insertion", "deletion", "sensitivity-n"]
    assert found.better == ["higher", "lower", "higher"]
    assert [row["image"] for row in found.unreadable] == ["bad.png"]
    bad = found.images.index("bad.png")
    good = [number for number in range(5) if number != bad]
    assert bool(found.values[:, :, bad].isnan().all())
    for t, m in np.ndindex(2, 3):
        values = found.values[t, m, good].numpy()
        assert float(found.mean[t, m]) == pytest.approx(values.mean())
        assert (float(found.low[t, m]), float(found.high[t, m])) == interval(values)
    number = found.images.index("2.png")
    image = model.images(photos / "2.png")
    heat = technique("saliency")()(model, image).maps[0]
    order = heat.flatten().argsort(descending=True, stable=True)
    top = int(model(image)[0].argmax())
    curve = []
    for count in range(0, 1025, 256):
        left = image.clone()
        places = order[:count]
        left[0].flatten(1)[:, places] = torch.tensor(model.mean)[:, None]
        curve.append(float(model(left).softmax(1)[0, top]))
    area = sum((a + b) / 8 for a, b in itertools.pairwise(curve))
    assert float(found.values[0, 1, number]) == pytest.approx(area, rel=1e-4)
    kept = load_result(tmp_path / "out")
    assert torch.equal(kept.mean, found.mean)
    assert kept.curves == found.curves
    assert (tmp_path / "out/figure.png").stat().st_size > 10_000


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.mark.parametrize("kept", [0, 1, 3, 7])
def test_an_evaluation_cut_anywhere_resumes_to_the_same_bytes(model, photos, tmp_path, kept):
    whole = tmp_path / "whole"
    evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=whole)
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(whole / "evaluation.json", cut)
    (cut / "records.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:37])
    evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=cut)
    assert files_of(cut) == files_of(whole)


def test_a_killed_evaluation_resumes_without_repeating_a_map(photos, tmp_path):
    out = tmp_path / "out"
    code = (
        "from tests.evaluation.test_evaluate import *\n"
        f"evaluate(load_model(MODEL), {str(photos)!r}, TECHNIQUES, metrics=QUICK, out={str(out)!r})"
    )
    child = Running(code)
    records = out / "records.jsonl"
    limit = time.monotonic() + 60
    while child.alive and time.monotonic() < limit:
        if records.exists() and records.read_bytes().count(b"\n") >= 2:
            child.signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    child.done()
    before = records.read_bytes()
    done = before[: before.rfind(b"\n") + 1]
    assert done.count(b"\n") >= 2
    evaluate(load_model(MODEL), photos, TECHNIQUES, metrics=QUICK, out=out)
    assert records.read_bytes().startswith(done)
    fresh = tmp_path / "fresh"
    evaluate(load_model(MODEL), photos, TECHNIQUES, metrics=QUICK, out=fresh)
    assert files_of(out) == files_of(fresh)


def test_a_finished_evaluation_is_read_and_not_repeated(model, photos, tmp_path, monkeypatch):
    first = evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=tmp_path / "out")
    monkeypatch.setattr(type(TECHNIQUES["saliency"]), "attribute", None)
    again = evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=tmp_path / "out")
    assert torch.equal(again.values, first.values)


def test_another_evaluation_in_the_same_folder_is_refused(model, photos, tmp_path):
    out = tmp_path / "out"
    evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=out)
    before = files_of(out)
    with pytest.raises(StoreMismatch, match=r"other settings \(.*metrics\.deletion\.steps: 4 → 5"):
        evaluate(model, photos, TECHNIQUES, metrics=[Deletion(steps=5)], out=out)
    with pytest.raises(StoreMismatch, match=r"\(objective: \"top\" → \"class:3\"\)"):
        evaluate(model, photos, TECHNIQUES, metrics=QUICK, objective=3, out=out)
    (photos / "new.png").write_bytes((photos / "0.png").read_bytes())
    with pytest.raises(StoreMismatch, match=r"\(images\.count: 4 → 5"):
        evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=out)
    assert files_of(out) == before
    with pytest.raises(StoreError, match="not an evaluation, and not empty"):
        evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=photos)


def test_a_failed_start_does_not_occupy_the_folder(model, photos, tmp_path):
    with pytest.raises(UnsupportedModel, match="no attention"):
        evaluate(model, photos, ["attention-rollout"], metrics=QUICK, out=tmp_path / "out")
    evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=tmp_path / "out")


def test_a_kill_while_the_settings_are_written_does_not_occupy_the_folder(model, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json.tmp").write_text('{"mod')
    evaluate(model, photos, ["saliency"], metrics=QUICK[:1], out=out)
    assert not [file.name for file in out.iterdir() if file.suffix == ".tmp"]


def test_a_damaged_line_is_named(model, photos, tmp_path):
    out = tmp_path / "out"
    evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=out)
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "records.jsonl").write_text("".join([lines[0], "{broken\n", *lines[2:]]))
    with pytest.raises(StoreCorrupted, match=r"records.jsonl, line 2 cannot be read"):
        evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=out)


def test_records_of_something_else_are_one_line(model, photos, tmp_path):
    (photos / "1.png").unlink()
    out = tmp_path / "out"
    evaluate(model, photos, ["saliency"], metrics=[Deletion(steps=2)], out=out)
    records = out / "records.jsonl"
    lines = [checked_json.load(line) for line in records.read_bytes().splitlines()]
    odd = [{"metrics": {}}, {"technique": 3}, {"image": 99}, {"metrics": {"deletion": [1]}}]
    for change in [*odd, {"metrics": {"deletion": {"value": 1, "curve": [1, 2, 3, 4]}}}]:
        changed = [*lines[:-1], lines[-1] | change]
        records.write_bytes(b"".join(map(checked_json.dump, changed)))
        with pytest.raises(StoreCorrupted, match=r"records.jsonl has records of something else"):
            evaluate(model, photos, ["saliency"], metrics=[Deletion(steps=2)], out=out)


def test_a_refused_map_is_reported_and_the_others_are_measured(model, photos):
    flat = photos / "0.png"
    Image.new("RGB", (48, 40), (128, 128, 128)).save(flat)
    blurred = technique("occlusion")(patch_px=16, baseline="blur")
    cover = {"blurred": blurred, "saliency": TECHNIQUES["saliency"]}
    found = evaluate(model, photos, cover, metrics=[Deletion(steps=3)])
    (refused,) = found.refused
    assert (refused["image"], refused["technique"]) == ("0.png", "blurred")
    assert "zero everywhere" in refused["reason"]
    assert found.values.isnan().sum() == 1
    assert [row["maps"] for row in found.summary()] == [3, 4]


def test_an_evaluation_without_a_single_map_is_refused(photos, tmp_path):
    transformer = load_model("random:vit_tiny_patch16_224?img_size=32")
    with pytest.raises(TechniqueError, match=r"none of the 4 maps .* on 0.png: .* use saliency"):
        evaluate(transformer, photos, ["deconvnet"], metrics=QUICK, out=tmp_path / "out")


def test_a_file_instead_of_a_folder_is_refused(model, photos, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StoreError, match=r"out: cannot create this folder .*choose another"):
        evaluate(model, photos, ["saliency"], metrics=QUICK, out=tmp_path / "out")


def test_the_pointing_game_counts_images_with_boxes(model, photos):
    everywhere, nowhere = (0, 0, 48, 40), (23, 19, 24, 20)
    boxes = {"0.png": [everywhere], "1.png": [everywhere, nowhere], "2.png": [nowhere]}
    game = PointingGame(tolerance_px=0)
    found = evaluate(model, photos, ["saliency"], metrics=[game], boxes=boxes)
    known = found.values[0, 0][:3].tolist()
    assert known[:2] == [1, 1]
    assert known[2] in (0, 1)
    assert bool(found.values[0, 0, 3].isnan())
    assert float(found.mean[0, 0]) == pytest.approx(sum(known) / 3)
    with pytest.raises(ParameterError, match=r"boxes are of 'cat.jpg', images are called '0.png'"):
        evaluate(model, photos, ["saliency"], boxes={"cat.jpg": [everywhere]})
    with pytest.raises(ParameterError, match="needs the boxes"):
        evaluate(model, photos, ["saliency"], metrics=["pointing-game"])


def test_images_in_memory_each_have_their_target(model):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = evaluate(model, images, ["saliency"], objective="class:1|4|2", metrics=QUICK)
    for row, index in enumerate([1, 4, 2]):
        alone = evaluate(model, images[row : row + 1], ["saliency"], objective=index,
                         metrics=QUICK[:2])  # fmt: skip
        assert torch.equal(found.values[:, :2, row], alone.values[:, :, 0])
    with pytest.raises(ParameterError, match="targets for 2 images, but there are 3"):
        evaluate(model, images, ["saliency"], objective="class:1|4")
    assert not bool(torch.isfinite(alone.low).any()), "one image has no spread"


def test_units_inside_the_model_can_be_evaluated(model, photos):
    found = evaluate(model, photos, TECHNIQUES, objective="layer2[7]", metrics=QUICK)
    assert bool(torch.isfinite(found.values).all())


def test_the_default_metrics_are_all_but_the_pointing_game(model):
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = evaluate(model, image, [technique("grad-cam")(layer="layer1")])
    assert found.metrics == ["insertion", "deletion", "sensitivity-n", "randomisation"]
    assert bool(torch.isfinite(found.values).all())
    assert -1 <= float(found.values[0, 3, 0]) <= 1


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"techniques": []}, ParameterError, "at least one technique"),
        ({"techniques": ["grad-can"]}, PluginError, "did you mean 'grad-cam'"),
        ({"techniques": ["pgd"]}, ParameterError, "family attack: only attributions make maps"),
        ({"techniques": ["saliency", "saliency"]}, ParameterError, "saliency is given twice"),
        ({"metrics": ["insertoin"]}, ParameterError, "did you mean 'insertion'"),
        ({"metrics": []}, ParameterError, "at least one metric"),
        ({"objective": 77}, ObjectiveError, "there is no class 77"),
        ({"images": "gone"}, ImageError, "no such file or folder"),
    ],
)
def test_wrong_input_is_a_one_line_error(model, photos, given, error, words):
    arguments = {"images": photos, "techniques": ["saliency"], "metrics": QUICK} | given
    with pytest.raises(error, match=words) as caught:
        evaluate(model, **arguments)
    assert "\n" not in str(caught.value)


def test_a_folder_without_readable_images_is_refused(model, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    with pytest.raises(ImageError, match="none of the 1 images can be read; the first error is"):
        evaluate(model, folder, ["saliency"], metrics=QUICK, out=tmp_path / "out")


def test_mean_curves_are_the_means_of_the_records(model, photos, tmp_path):
    found = evaluate(model, photos, TECHNIQUES, metrics=QUICK, out=tmp_path / "out")
    lines = (tmp_path / "out/records.jsonl").read_text().splitlines()
    curves = [
        record["metrics"]["insertion"]["curve"]
        for record in map(json.loads, lines)
        if record["technique"] == "occlusion"
    ]
    assert len(curves) == 4
    drawn = found.curves["insertion"]
    assert drawn["mean"]["occlusion"] == pytest.approx(np.mean(curves, 0))
    assert drawn["x"] == [0, 0.25, 0.5, 0.75, 1]
    assert list(drawn["mean"]) == ["saliency", "occlusion"]


def test_the_records_are_plain_json(model, photos, tmp_path):
    evaluate(model, photos, ["saliency"], metrics=QUICK, out=tmp_path / "out")
    for line in (tmp_path / "out/records.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["technique"] == "saliency"
        assert record["objective"].startswith("class:")
        assert set(record["metrics"]) == {"insertion", "deletion", "sensitivity-n"}
        assert len(record["metrics"]["deletion"]["curve"]) == 5
