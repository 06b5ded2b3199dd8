"""Universal attacks: one change, measured on other images and beside noise of its size."""

from __future__ import annotations

import csv
import io
import math
import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from timmscope import (
    Ball,
    Goal,
    HookedModel,
    ImageError,
    ObjectiveError,
    ParameterError,
    TechniqueError,
    UniversalAttack,
    load_model,
    load_result,
    open_images,
    technique,
)
from timmscope.cli import main
from timmscope.demo.dataset import photographs, write_data_set
from timmscope.techniques.image_set import ImageSet
from timmscope.techniques.universal_perturbation import wilson

UNIVERSAL = technique("universal-perturbation")


class Plane(nn.Module):
    """`logits = (0, w·x + b)`: the decision is a hyperplane."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.weight = nn.Parameter(torch.randn(48, generator=generator))
        self.bias = nn.Parameter(-self.weight.detach().sum() / 2)

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.fixture
def plane() -> HookedModel:
    return HookedModel(Plane(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))


@pytest.fixture
def crowd() -> Tensor:
    """60 small images around the hyperplane."""
    noise = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return 0.4 + 0.2 * noise


def write(images: Tensor, folder: Path, labels: int = 3) -> Path:
    """Write images without loss, into one folder per label."""
    for row, image in enumerate(images):
        path = folder / f"label{row % labels}" / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path)
    return folder


# What it finds


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_of_two_classes_exactly_one_half_space_is_fooled(norm, plane, crowd):
    before = plane(crowd)[:, 1] > 0
    weight = plane.module.weight.detach()
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    enough = float(plane(crowd)[:, 1].abs().max() / dual) * 1.2
    result = UNIVERSAL(norm=norm, epsilon=enough)(plane, crowd, held_out=0.3)
    fooled = {bool(side): result.fooled[result.before == int(side)] for side in (0, 1)}
    assert sorted(bool(each.all()) for each in fooled.values()) == [False, True]
    assert sorted(bool(each.any()) for each in fooled.values()) == [False, True]
    assert 0 < int(before.sum()) < 60
    # No change of that norm moves further than along the normal.
    moved = float((result.perturbation.flatten() @ weight).abs())
    assert moved == pytest.approx(float(enough * dual), rel=1e-3)


class Listed:
    """Images of a list, always in its order."""

    shape = (3, 4, 4)

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int, size: int) -> Any:
        rows = torch.arange(len(self))
        return zip(self.images.split(size), rows.split(size), strict=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_deepfool_form_is_moosavis_loop(batch, norm, plane, crowd):
    labels = plane(crowd).argmax(1)
    used = UNIVERSAL(method="deepfool", norm=norm, epsilon=0.06, batch=batch, epochs=3)
    found = used.fit(plane, Listed(crowd), Goal(labels=labels, classes=2))
    weight, bias = plane.module.weight.detach().double(), float(plane.module.bias.detach())
    unit = weight.sign() if norm == "linf" else weight / weight.norm()
    slope = float(weight @ unit)
    slow = torch.zeros(48, dtype=torch.float64)
    for _ in range(3):
        met = 0
        for images, sides in zip(crowd.split(batch), labels.split(batch), strict=True):
            changes = []
            for image, side in zip(images.double().flatten(1), sides, strict=True):
                value = float((image + slow) @ weight + bias)
                if (value > 0) == bool(side):
                    moved = abs(value) / slope + 1e-4
                    changes.append(-1.02 * moved * unit * (1 if side else -1))
                else:
                    met += 1
            if changes:
                slow = slow + torch.stack(changes).mean(0)
                if norm == "linf":
                    slow = slow.clamp(-0.06, 0.06)
                else:
                    slow = slow * min(1.0, 0.06 / float(slow.norm()))
        if met >= 0.8 * len(crowd):
            break
    torch.testing.assert_close(found.double().flatten(), slow, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_deepfool_form_goes_no_further_than_the_farthest_image(norm, plane, crowd):
    one_side = crowd[plane(crowd)[:, 1] > 0]
    weight = plane.module.weight.detach()
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    used = UNIVERSAL(method="deepfool", norm=norm, epsilon=5.0 if norm == "l2" else 0.5, batch=1)
    result = used(plane, one_side, held_out=0.3)
    farthest = float(plane(one_side)[~result.held_out, 1].max() / dual)
    assert result.rate(held_out=False) >= 0.8
    assert 0 < result.size <= 1.02 * (farthest + 1e-4) * 1.001
    with pytest.raises(ParameterError, match="take minibatch for a surrogate"):
        UNIVERSAL(method="deepfool", surrogate=plane)


def test_a_surrogate_gives_the_gradient_and_the_model_the_verdict(curved, crowd):
    module = deepcopy(curved.module)
    module.last.weight.data.neg_()
    other = HookedModel(module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))
    settings = {"epsilon": 0.1, "epochs": 2}
    followed = UNIVERSAL(surrogate=other, **settings)(curved, crowd, target=1)
    alone = UNIVERSAL(**settings)(other, crowd, target=1)
    torch.testing.assert_close(followed.perturbation, alone.perturbation)
    assert torch.equal(followed.before, curved(crowd).argmax(1))
    assert followed.forwards == followed.backwards == 0
    passes = followed.further_passes["surrogate"]
    assert passes == {"forwards": 2 * 48, "backwards": 2 * 48}


def test_smaller_perturbations_are_measured_on_held_out_images(curved, crowd):
    result = UNIVERSAL(epsilon=0.1, epochs=2)(curved, crowd, held_out=0.4)
    held, before = result.held_out, curved(crowd).argmax(1)
    new = [
        curved((crowd + share * result.perturbation).clamp(0, 1)).argmax(1) != before
        for share in (0.25, 0.5, 0.75)
    ]
    assert torch.equal(result.fooled_smaller, torch.stack(new)[:, held])
    rows = result.size_table()
    rates = [*(float(each[held].float().mean()) for each in new), result.rate()]
    assert [row["fooling_rate"] for row in rows] == pytest.approx(rates)
    assert [row["linf"] / result.size for row in rows] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rows[-1]["noise_rate"] == result.noise_rate()


def test_a_target_is_reached_by_all_images(linear_model):
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 0.4 + 0.3
    result = UNIVERSAL(epsilon=0.3)(linear_model, images, target=2, held_out=0.25)
    assert (result.after == 2).all()
    assert torch.equal(result.already, result.before == 2)
    assert result.rate() == 1.0
    assert result.target_name == "class 2"
    assert not result.fooled[result.already].any()


def test_an_objective_is_raised_to_its_value_on_all_images(linear_model):
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 0.4 + 0.3
    scores = -linear_model(images)[:, 1].detach()
    slope = float(linear_model.module.fc.weight[1].detach().abs().sum())
    value = float(scores.min()) + 0.05 * slope * 0.98  # the change can add 0.05 times the slope
    result = UNIVERSAL(epsilon=0.05, batch=4, epochs=30)(
        linear_model, images, objective="-class:1", value=value, held_out=0.4
    )
    torch.testing.assert_close(result.scores_before, scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(result.already, result.scores_before >= value)
    assert torch.equal(result.fooled, (result.scores_after >= value) & ~result.already)
    assert result.rate(held_out=False) == 1.0
    assert result.summary()[1]["fooling_rate"] == result.rate()


def test_an_encoder_without_classes_is_attacked_through_a_unit(tmp_path):
    model = load_model("random:resnet18?num_classes=0&img_size=32&seed=0")
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    value = -0.97 * float(model.score(images, "layer1[3]").detach().median())
    result = UNIVERSAL(epochs=3, batch=4)(
        model, images, objective="-layer1[3]", value=value, held_out=0.5
    )
    assert len(result.before) == 0
    assert bool((result.scores_after > result.scores_before).all())
    folder = result.save(tmp_path)
    assert not (folder / "classes.csv").exists()
    assert load_result(folder).summary() == result.summary()


# What it reports


def test_rates_are_those_of_the_returned_perturbation_on_each_part(curved, crowd):
    result = UNIVERSAL(epsilon=0.1, epochs=2)(curved, crowd, held_out=0.4)
    held = result.held_out
    assert int(held.sum()) == 24
    before = curved(crowd).argmax(1)
    moved = (crowd + result.perturbation).clamp(0, 1)
    after, rounded = curved(moved).argmax(1), curved((moved * 255).round() / 255).argmax(1)
    assert torch.equal(result.before, before)
    assert torch.equal(result.after, after)
    assert torch.equal(result.fooled, after != before)
    assert torch.equal(result.fooled_8bit, rounded != before)
    assert torch.equal(result.apply(crowd), moved)
    changes = after != before
    assert result.rate() == pytest.approx(float(changes[held].float().mean()))
    assert result.rate(held_out=False) == pytest.approx(float(changes[~held].float().mean()))
    same = Ball(norm="linf", epsilon=float(result.perturbation.abs().max()))
    generators = [torch.Generator().manual_seed(row) for row in range(60)]
    noisy = curved((crowd + same.noise(crowd, generators)).clamp(0, 1)).argmax(1)
    assert torch.equal(result.fooled_by_noise, noisy != before)
    fitted, out = result.summary()
    assert (fitted["images"], fitted["count"], out["count"]) == ("fitted", 36, 24)
    assert out["fooling_rate"] == result.rate()
    assert out["noise_rate"] == pytest.approx(float((noisy != before)[held].float().mean()))
    assert out["linf"] == pytest.approx(float(result.perturbation.abs().max()))
    assert 0.05 < out["linf"] <= 0.1


def test_the_tables_count_each_class_and_each_image(curved, crowd, tmp_path):
    result = UNIVERSAL(epsilon=0.1)(curved, crowd, held_out=0.4)
    folder = result.save(tmp_path)
    rows = list(csv.DictReader(io.StringIO((folder / "classes.csv").read_text())))
    assert [int(row["class"]) for row in rows] == sorted(set(result.before.tolist()))
    for row in rows:
        own = result.before == int(row["class"])
        out = own & result.held_out
        assert int(row["fitted"]) == int((own & ~result.held_out).sum())
        assert int(row["held_out_fooled"]) == int(result.fooled[out].sum())
        assert int(row["held_out_fooled_by_noise"]) == int(result.fooled_by_noise[out].sum())
        if row["becomes"]:
            index = int(row["becomes"].removeprefix("class "))
            many = (result.after[own & result.fooled] == index).sum()
            assert int(row["becomes_count"]) == int(many)
    images = list(csv.DictReader(io.StringIO((folder / "images.csv").read_text())))
    assert [row["fooled"] == "True" for row in images] == result.fooled.tolist()
    assert {row["part"] for row in images} == {"fitted", "held out"}
    again = load_result(folder)
    assert torch.equal(again.perturbation, result.perturbation)
    assert again.summary() == result.summary()
    assert (folder / "perturbation.png").is_file()
    shown = {t.get_text() for t in result.figure().findobj(lambda a: hasattr(a, "get_text"))}
    assert {"held out, 24 images", "fitted, 36 images", "noise of this size"} <= shown
    with pytest.raises(ImageError, match=r"the perturbation is for \(B, 3, 4, 4\)"):
        result.apply(torch.rand(1, 3, 8, 8))


def test_intervals_are_wilsons():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_where_all_images_have_the_goal_before_there_is_no_rate(linear_model):
    images = torch.rand(6, 3, 4, 4)
    result = UNIVERSAL()(linear_model, images, objective="class:0", value=-1e6, held_out=0.5)
    assert bool(result.already.all())
    assert math.isnan(result.rate())
    result.figure()


# The split, and what decides the result


def test_the_same_seed_gives_the_same_bytes_whatever_the_batch_size(curved, crowd):
    one = UNIVERSAL(epochs=2)(curved, crowd, seed=3)
    for size in (1, 7, 60):
        other = UNIVERSAL(epochs=2)(curved, crowd, seed=3, batch_size=size)
        assert torch.equal(other.perturbation, one.perturbation)
        for name in ("held_out", "before", "after", "fooled", "fooled_by_noise", "shown"):
            assert torch.equal(getattr(other, name), getattr(one, name))
    assert not torch.equal(UNIVERSAL(epochs=2)(curved, crowd, seed=4).held_out, one.held_out)
    assert one.provenance.call["counts"] == [48, 12]


def test_a_folder_a_list_and_a_source_are_what_the_tensor_is(curved, crowd, tmp_path):
    crowd = (crowd * 255).round() / 255
    folder = write(crowd, tmp_path / "photos", labels=1)
    whole = UNIVERSAL(epochs=1)(curved, crowd)
    files = sorted(folder.glob("*/*.png"))
    for images in (folder, str(folder), files, open_images(folder)):
        other = UNIVERSAL(epochs=1)(curved, images)
        torch.testing.assert_close(other.perturbation, whole.perturbation)
        assert torch.equal(other.fooled, whole.fooled)
    assert other.names[0].endswith("000.png")


def test_images_are_not_held_in_memory(curved, crowd, tmp_path, monkeypatch):
    folder = write(crowd, tmp_path / "photos")
    alive: set[int] = set()
    most = 0
    load = ImageSet.load

    def tracked(self: ImageSet, number: int) -> Any:
        nonlocal most
        loaded = load(self, number)
        key = id(loaded.image)
        alive.add(key)
        weakref.finalize(loaded.image, alive.discard, key)
        most = max(most, len(alive))
        return loaded

    monkeypatch.setattr(ImageSet, "load", tracked)
    UNIVERSAL(epochs=2, batch=5)(curved, folder, batch_size=4)
    assert most <= 7  # a batch, or the images of the figure


def test_whole_labels_are_held_out(curved, crowd, tmp_path):
    folder = write(crowd, tmp_path / "photos", labels=6)
    result = UNIVERSAL(epochs=1)(curved, folder, held_out=0.34, split="label")
    labels = [name.split("/")[0] for name in result.names]
    held = {label for label, out in zip(labels, result.held_out.tolist(), strict=True) if out}
    fitted = {label for label, out in zip(labels, result.held_out, strict=True) if not out}
    assert len(held) == 2
    assert not held & fitted


def test_held_out_images_may_be_a_set_of_their_own(curved, crowd, tmp_path):
    first = write(crowd[:40], tmp_path / "fitted")
    second = write(crowd[40:], tmp_path / "others")
    result = UNIVERSAL(epochs=1)(curved, first, held_out=second)
    assert result.held_out.tolist() == [False] * 40 + [True] * 20
    assert result.provenance.call["held_out"]["count"] == 20
    assert result.shown.min() >= 40
    shown = curved(result.originals).argmax(1)
    assert torch.equal(shown, result.before[result.shown])


def test_a_held_out_image_that_is_fitted_on_is_reported(curved, crowd):
    with pytest.warns(UserWarning, match="3 of 20 held-out images equal images that are fitted on"):
        UNIVERSAL(epochs=1)(curved, crowd[:43], held_out=crowd[40:])


def test_images_that_cannot_be_read_are_left_out_and_named(curved, crowd, tmp_path):
    folder = write(crowd[:12], tmp_path / "photos")
    (folder / "label0" / "000.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 12 images cannot be read and are left out"):
        result = UNIVERSAL(epochs=1)(curved, folder)
    assert result.unreadable == ["label0/000.png"]
    assert len(result.names) == len(result.fooled) == 11
    for file in folder.glob("*/*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="none of the 12 images can be read"):
        UNIVERSAL(epochs=1)(curved, folder)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"held_out": 0}, ParameterError, "held_out is 0: expected a share between 0 and 1"),
        ({"held_out": 1.5}, ParameterError, r"held_out is 1\.5"),
        ({"held_out": "nowhere/"}, ImageError, "nowhere"),
        ({"held_out": torch.rand(2, 3, 8, 8)}, ImageError, "held-out images have shape"),
        ({"split": "label"}, ParameterError, "split=label needs labels"),
        ({"split": "photo"}, ParameterError, "split is 'photo': expected image or label"),
        ({"split": "label", "held_out": torch.rand(2, 3, 4, 4)}, ParameterError, "only with a sha"),
        ({"target": 9}, ObjectiveError, "there is no class 9"),
        ({"objective": "class:0|1", "value": 1}, ObjectiveError, "targets for 2 images"),
        ({"objective": "top", "value": 1}, ObjectiveError, "no image"),
        ({"objective": "class:0"}, ParameterError, "needs a value"),
        ({"objective": 0, "value": 1, "target": 1}, ParameterError, "takes the place"),
        ({"batch_size": 0}, ParameterError, "batch_size is 0"),
        ({"seed": 0.5}, ParameterError, "seed is 0.5"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_line(call, error, says, curved, crowd):
    with pytest.raises(error, match=says) as caught:
        UNIVERSAL(epochs=1)(curved, crowd[:12], **call)
    assert "\n" not in str(caught.value)


def test_one_image_cannot_be_split(curved, crowd):
    with pytest.raises(ParameterError, match="1 image leaves none to fit on"):
        UNIVERSAL()(curved, crowd[:1])


returned: Any = None


class Fixed(UniversalAttack):
    """Returns the value of the test."""

    def fit(self, model, batches, goal):
        self.note("images", len(batches))
        return returned


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            torch.full((3, 4, 4), 0.2),
            "a perturbation of L∞ norm 0.2; expected at most",
        ),
        (torch.zeros(1, 3, 4, 4), "expected a tensor (3, 4, 4)"),
        (torch.full((3, 4, 4), torch.nan), "NaN or infinite values of a perturbation"),
        (None, "returned nothing for values of a perturbation"),
    ],
)
def test_a_perturbation_that_cannot_be_is_an_error_that_names_the_plugin(
    value, says, curved, crowd, monkeypatch
):
    monkeypatch.setattr(f"{__name__}.returned", value)
    with pytest.raises(TechniqueError, match="Fixed returned") as caught:
        Fixed(epsilon=0.1)(curved, crowd)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_note_is_kept(curved, crowd, monkeypatch):
    monkeypatch.setattr(f"{__name__}.returned", torch.zeros(3, 4, 4))
    result = Fixed()(curved, crowd)
    assert result.notes == {"images": 48}
    assert [row["images (noted)"] for row in result.summary()] == [48, 48]
    assert result.rate() == result.noise_rate() == 0.0


# The command, and real weights


def test_the_command_takes_a_folder_and_a_share(crowd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = torch.nn.functional.interpolate(crowd, 32)
    write(images[:24], tmp_path / "photos")
    model = "random:resnet18?num_classes=10&img_size=32&seed=0"
    arguments = ["--held-out", "0.34", "--split", "label", "--epochs", "1", "-o", "out"]
    assert main(["run", "universal-perturbation", model, "photos", *arguments]) == 0
    result = load_result(tmp_path / "out")
    assert int(result.held_out.sum()) == 8
    assert "held out" in capsys.readouterr().out
    other = ["--held-out", "nowhere", "-o", "out2"]
    assert main(["run", "universal-perturbation", model, "photos", *other]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_photographs_that_it_never_saw_are_fooled_twice_as_often_as_by_noise(lite0, tmp_path):
    folder = write_data_set(tmp_path / "photos")
    assert len(photographs()) >= 15
    result = UNIVERSAL(epochs=1)(lite0, folder, split="label")
    assert result.rate() >= 0.65
    assert result.rate() >= 1.9 * result.noise_rate()
    assert float(result.perturbation.abs().max()) <= 10 / 255 + 1e-6
