"""DeepInversion: the statistics by hand, optima in closed form, and what it says of leaks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.digits.load import digits_network
from torch import Tensor, nn
from torch.nn import functional

from timmscope import (
    HookedModel,
    ImageSet,
    ParameterError,
    UnsupportedModel,
    class_logit,
    load_result,
    open_images,
)
from timmscope.testing import tiny_images, tiny_model
from timmscope_registry.hooks import fingerprint
from timmscope_synthesis import DeepInversion
from timmscope_synthesis.batch_statistics import BatchStatistics
from timmscope_synthesis.nearest_images import nearest_images

SIZE = (3, 6, 5)
STILL = {"jitter_px": 0, "flip": False}
MEAN, VARIANCE = (0.35, 0.5, 0.6), (0.02, 0.03, 0.04)


class Linear(nn.Module):
    """A batch norm of the pixels, and two classes with the scores `± w · norm(x)`."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.copy_(torch.tensor(MEAN))
        self.norm.running_var.copy_(torch.tensor(VARIANCE))
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(SIZE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        score = (self.norm(x) * self.weight).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(Linear().eval(), mean=(0,) * 3, std=(1,) * 3, input_size=SIZE)


def slope(model: HookedModel) -> Tensor:
    """Gradient of the linear score in the pixels."""
    deviation = (torch.tensor(VARIANCE) + model.module.norm.eps).sqrt()
    return model.module.weight.detach() / deviation[:, None, None]


# The statistics


def slow_distance(module: nn.Module, x: Tensor) -> float:
    """The distance of TinyCNN's two batch norms, number by number."""
    total = 0.0
    for conv, norm in ((module.conv1, module.bn1), (module.conv2, module.bn2)):
        with torch.no_grad():
            inputs = conv(x)
        gaps = []
        for channel, values in enumerate(inputs.double().numpy().transpose(1, 0, 2, 3)):
            numbers = values.ravel().tolist()
            mean = sum(numbers) / len(numbers)
            variance = sum((number - mean) ** 2 for number in numbers) / len(numbers)
            gaps.append((mean - norm.running_mean[channel], variance - norm.running_var[channel]))
        total += sum(float(gap) ** 2 for gap, _ in gaps) ** 0.5
        total += sum(float(gap) ** 2 for _, gap in gaps) ** 0.5
        with torch.no_grad():
            x = functional.relu(norm(inputs))
    return total


def test_the_distance_is_that_of_a_slow_version():
    model = tiny_model("cnn")
    statistics = BatchStatistics(model)
    for count in (1, 5):
        images = tiny_images(count)
        with statistics.watching():
            model(images)
        mean, std = (torch.tensor(of)[:, None, None] for of in (model.mean, model.std))
        expected = slow_distance(model.module, (images - mean) / std)
        assert float(statistics.distance()) == pytest.approx(expected, rel=1e-5)


def test_with_a_large_weight_the_batch_has_the_statistics_of_the_training_images(model):
    technique = DeepInversion(**STILL, statistics_weight=1e4, count=6, steps=300)
    made = technique(model, class_logit([0, 1]))
    variance, mean = torch.var_mean(made.images, (0, 2, 3), correction=0)
    assert mean.tolist() == pytest.approx(MEAN, abs=2e-3)
    assert variance.tolist() == pytest.approx(VARIANCE, abs=2e-3)
    assert max(made.notes["statistics"]) < 5e-3
    without = DeepInversion(**STILL, statistics_weight=0, count=6, steps=300)
    apart = without(model, class_logit([0, 1])).notes["statistics"]
    assert min(apart) > 20 * max(made.notes["statistics"])


def test_each_batch_has_its_own_statistics_and_images_depend_on_their_batch_only(model):
    settings = {"statistics_weight": 1.0, "steps": 6}
    split = DeepInversion(**settings, batch_size=2, count=2)(model, class_logit([0, 1]), seed=3)
    alone = DeepInversion(**settings, count=2)(model, 0, seed=3)
    assert torch.equal(alone.images, split.images[:2])
    one, same, two, _ = split.notes["statistics"]
    assert one == same == alone.notes["statistics"][0] != two
    whole = DeepInversion(**settings, count=2)(model, class_logit([0, 1]), seed=3)
    assert not torch.equal(whole.images[:2], split.images[:2])
    assert len(set(whole.notes["statistics"])) == len(set(whole.best_step.tolist())) == 1


# The objective and the priors


@pytest.mark.parametrize("weights", [{"l2_weight": 900.0}, {"l2_weight": 400.0, "tv_weight": 900}])
def test_with_priors_a_linear_unit_has_the_optimum_in_closed_form(model, weights):
    """w = 2 / N · (α_l2 + α_tv · L) x, with the Laplacian L of the grid and N pixels."""
    shifted = HookedModel(model.module, mean=(0.5,) * 3, std=(1,) * 3, input_size=SIZE)
    technique = DeepInversion(**STILL, **weights, statistics_weight=0, steps=400)
    made = technique(shifted, "logits[0]")
    _, height, width = SIZE
    laplacian = np.zeros((height * width, height * width))
    places = list(itertools.product(range(height), range(width)))
    for (row, column), (down, right) in itertools.product(places, ((0, 1), (1, 0))):
        if (row + down, column + right) in places:
            one, other = row * width + column, (row + down) * width + column + right
            laplacian[[one, other], [one, other]] += 1
            laplacian[[one, other], [other, one]] -= 1
    matrix = 2 / (height * width) * (
        weights["l2_weight"] * np.eye(height * width) + weights.get("tv_weight", 0) * laplacian
    )  # fmt: skip
    expected = np.linalg.solve(matrix, slope(model).reshape(3, -1).numpy().T).T.reshape(SIZE)
    assert np.abs(expected).max() < 0.5, "no pixel of the optimum is at a border"
    assert np.abs(made.images[0].numpy() - 0.5 - expected).max() < 5e-4


def test_a_class_is_climbed_as_its_log_probability_and_scored_as_its_logit():
    """The first step of Adam is the sign of the gradient."""
    model, start = tiny_model("cnn"), tiny_images(1) * 0.8 + 0.1
    technique = DeepInversion(**STILL, statistics_weight=0, steps=1, learning_rate=0.05)
    made = technique(model, class_logit(3), init=start)
    signs = []
    for value in (lambda z: z.log_softmax(1)[0, 3], lambda z: z[0, 3]):
        leaf = start.clone().requires_grad_()
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(value(logits), leaf)
        signs.append(gradient.sign())
    moved = made.images - start
    clear = (signs[0] != signs[1]) & (moved.abs() > 0.049)
    assert int(clear.sum()) > 50
    assert torch.equal(moved[clear].sign(), signs[0][clear])
    assert float(made.scores[0, 0]) == pytest.approx(float(logits[0, 3].detach()), abs=1e-5)
    assert float(made.final_scores[0]) == pytest.approx(float(model(made.images)[0, 3]), abs=1e-4)


def test_the_batch_is_shifted_around_its_borders_and_mirrored_as_one(model):
    start = torch.full((2, *SIZE), 0.5)
    technique = DeepInversion(jitter_px=90, statistics_weight=0, steps=1, learning_rate=0.25)
    found = set()
    for seed in range(8):
        made = technique(model, "logits[0]", init=start, seed=seed)
        assert torch.equal(made.images[0], made.images[1])
        signs = (made.images[0] - 0.5).sign()
        for flip, down, right in itertools.product((False, True), range(-2, 3), range(-2, 3)):
            seen = slope(model).flip(2) if flip else slope(model)
            if torch.equal(seen.roll((down, right), (1, 2)).sign(), signs):
                found.add((seed, flip, down, right))
    assert {seed for seed, *_ in found} == set(range(8))
    assert {flip for _, flip, _, _ in found} == {False, True}


# What is left, and what leaks


def test_the_running_statistics_are_as_before_also_after_an_error():
    model = tiny_model("cnn")
    model.module.train()
    before = fingerprint(model.module)
    DeepInversion(steps=3)(model, 1)
    assert not fingerprint(model.module).difference(before)
    wire = model.module.tripwire
    wire.armed = wire.passed + 3
    with pytest.raises(RuntimeError, match="tripwire"):
        DeepInversion(steps=9)(model, 1)
    assert not fingerprint(model.module).difference(before)


def test_the_nearest_training_image_is_found_and_its_distance_is_exact(tmp_path: Path):
    pixels = (tiny_images(70) * 255).round().byte()
    network = tiny_model("cnn").module
    model = HookedModel(network, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 32, 32), crop_pct=1.0)
    np.savez(tmp_path / "seen.npz", images=pixels.permute(0, 2, 3, 1).numpy())
    technique = DeepInversion(steps=1, learning_rate=1e-6, training=str(tmp_path / "seen.npz"))
    start = pixels[[66, 3]].float() / 255
    start[1] = (start[1] + 0.04).clamp(0, 1)
    made = technique(model, class_logit([0, 1]), init=start)
    assert made.notes["nearest_training_image"] == ["seen.npz[66]", "seen.npz[3]"]
    gaps = made.images[1].double().numpy() - pixels[3].double().numpy() / 255
    distance = float((gaps**2).sum() ** 0.5)
    assert made.notes["nearest_training"][1] == pytest.approx(distance, rel=1e-4)
    psnr = 10 * np.log10(1 / (gaps**2).mean())
    assert made.notes["nearest_training_psnr_db"][1] == pytest.approx(psnr, rel=1e-4)
    assert made.notes["nearest_training"][0] < 1e-3
    assert load_result(made.save(tmp_path / "made")).notes == made.notes


def test_the_nearest_images_are_those_of_a_slow_version():
    known, images = tiny_images(150), tiny_images(160)[150:]
    found = nearest_images(images, ImageSet(tiny_model("cnn"), known))
    for row, image in enumerate(images.double()):
        distances = [float((image - other).square().sum() ** 0.5) for other in known.double()]
        assert found.names[row] == str(int(np.argmin(distances)))
        assert float(found.distances[row]) == pytest.approx(min(distances), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_saved_arrays_are_an_image_set_with_classes_as_labels(channels, tmp_path: Path):
    network = nn.Sequential(nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels * 64, 9))
    model = HookedModel(
        network.eval(), mean=(0,) * channels, std=(1,) * channels, input_size=(channels, 8, 8),
        crop_pct=1.0,
    )  # fmt: skip
    made = DeepInversion(steps=2, count=2, frames=2)(model, class_logit([7, 4]))
    images = open_images(str(made.save(tmp_path / "made") / "arrays.h5"))
    assert list(images.labels) == ["7", "7", "4", "4"]
    assert made.classes.tolist() == [7, 7, 4, 4]
    for number in range(4):
        pixels, _ = model.preprocessing.load(images, number)
        assert pixels.shape == (channels, 8, 8)
        assert float((pixels - made.images[number]).abs().max()) < 0.6 / 255
    of_a_unit = DeepInversion(steps=2, count=2)(model, "logits[3]")
    assert of_a_unit.classes is None
    unit = open_images(str(of_a_unit.save(tmp_path / "unit") / "arrays.h5"))
    assert list(unit.labels) == ["0", "0"]


# Refusals


def of_function() -> HookedModel:
    return HookedModel.of_function(
        lambda x: x.mean((2, 3)), outputs="logits", input_size=(3, 8, 8), num_classes=3, id="f:x"
    )


@pytest.mark.parametrize(
    "make", [lambda: digits_network("standard"), lambda: tiny_model("cnn").fused(), of_function]
)
def test_a_model_without_batch_norms_is_refused_in_one_line_that_says_what_to_use(make):
    with pytest.raises(UnsupportedModel, match=r"no batch norms .* or activation-max") as caught:
        DeepInversion(steps=1)(make(), 1)
    assert "\n" not in str(caught.value)


def test_training_images_of_another_size_and_wrong_numbers_are_refused(model, tmp_path: Path):
    np.savez(tmp_path / "seen.npz", images=np.zeros((2, 6, 5, 3), np.uint8))
    technique = DeepInversion(steps=1, training=str(tmp_path / "seen.npz"))
    larger = HookedModel(tiny_model("cnn").module, mean=(0,) * 3, std=(1,) * 3, input_size=SIZE)
    with pytest.raises(ParameterError, match=r"are 3×6×5 and the images to make 3×9×9") as caught:
        technique(larger, 1, init=torch.full((1, 3, 9, 9), 0.5))
    assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match="training"):
        DeepInversion(steps=1, training=str(tmp_path / "nothing"))(model, 1)
    for wrong in ({"steps": 0}, {"learning_rate": 0}, {"statistics_weight": -1}, {"batch_size": 0}):
        with pytest.raises(ParameterError):
            DeepInversion(**wrong)
