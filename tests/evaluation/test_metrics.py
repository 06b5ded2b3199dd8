"""Metrics are compared with their definitions, on models whose answers are known."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from timmscope import (
    CascadingRandomisation,
    Case,
    Deletion,
    HookedModel,
    Insertion,
    ParameterError,
    PointingGame,
    SensitivityN,
    TechniqueError,
    class_logit,
)
from timmscope.evaluation.pointing import Boxes
from timmscope.evaluation.randomisation import cascade, spearman
from timmscope.evaluation.sensitivity import pearson
from timmscope.results.bootstrap import interval
from timmscope.techniques.session import session
from timmscope_registry.hooks import fingerprint

SIZE = 6


class Weighted(nn.Module):
    """A model with `logits = (Σ w · I, 0)`, so the probability is logistic in a weighted sum."""

    num_classes = 2

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        score = (images * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def model_of(weight, mean=(0.0, 0.0, 0.0)) -> HookedModel:
    return HookedModel(
        Weighted(weight.double()), mean=mean, std=(1, 1, 1), input_size=(3, *weight.shape[1:])
    )


def case_of(model, image, heat, explain=None, objective=None, inside=None, seed=0) -> Case:
    return Case(
        model=model,
        image=image,
        objective=objective or class_logit(0),
        heat=heat,
        raw=heat,
        explain=explain or (lambda other: heat),
        inside=inside,
        seed=seed,
    )


@pytest.fixture
def one_pixel():
    """Return a model that reads 4 times the red value of one pixel, an image, and its true map."""
    weight = torch.zeros(3, SIZE, SIZE)
    weight[0, 2, 3] = 4
    image = torch.full((3, SIZE, SIZE), 1.0, dtype=torch.float64)
    heat = torch.zeros(SIZE, SIZE)
    heat[2, 3] = 1
    return model_of(weight), image, heat


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_deletion_of_a_model_of_one_pixel(one_pixel):
    """p falls from σ(4) to ½ with the first of 36 pixels for the best map, else with the last."""
    model, image, heat = one_pixel
    metric = Deletion(steps=36)
    best = metric.measure(case_of(model, image, heat))
    worst = metric.measure(case_of(model, image, -heat))
    full, step = logistic(4), 1 / 36
    assert best.curve == pytest.approx([full] + 36 * [0.5])
    assert best.value == pytest.approx(0.5 + step * (full - 0.5) / 2)
    assert worst.value == pytest.approx(full - step * (full - 0.5) / 2)
    assert metric.axis(model, 36) == pytest.approx(np.linspace(0, 1, 37))


def test_insertion_of_a_model_of_one_pixel(one_pixel):
    """From black, p rises to σ(4) with the first pixel for the best map, else with the last."""
    model, image, heat = one_pixel
    metric = Insertion(steps=36, baseline="zero")
    full, step = logistic(4), 1 / 36
    best = metric.measure(case_of(model, image, heat))
    assert best.curve == pytest.approx([0.5] + 36 * [full])
    assert best.value == pytest.approx(full - step * (full - 0.5) / 2)
    worst = metric.measure(case_of(model, image, -heat))
    assert worst.value == pytest.approx(0.5 + step * (full - 0.5) / 2)


def test_curves_of_a_linear_model_follow_the_sorted_weights():
    """Each portion of pixels changes the sum by its own part."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, SIZE, SIZE, generator=generator) / 3
    image = torch.rand(3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    mean = (0.2, 0.5, 0.3)
    model = model_of(weight, mean)
    colour = torch.tensor(mean, dtype=torch.float64)[:, None, None]
    parts = (weight * (image - colour)).sum(0)
    case = case_of(model, image, parts)
    for steps in (36, 10, 7):
        counts = [round(k * 36 / steps) for k in range(steps + 1)]
        ordered = parts.flatten().sort(descending=True).values
        left = [logistic(float(parts.sum() - ordered[:count].sum())) for count in counts]
        curve = Deletion(steps=steps).measure(case)
        assert curve.curve == pytest.approx(left)
        x = np.array(counts) / 36
        area = sum(
            (b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], left, left[1:], strict=False)
        )
        assert curve.value == pytest.approx(area)
    shown = [logistic(float(ordered[:count].sum())) for count in range(37)]
    insertion = Insertion(steps=36, baseline="mean").measure(case)
    assert insertion.curve == pytest.approx(shown)


def test_insertion_starts_from_a_blurred_image():
    image = torch.zeros(3, 224, 224, dtype=torch.float64)
    image[:, :, 100] = 1
    weight = torch.zeros(3, 224, 224)
    weight[0, 50, 100] = 1
    curve = Insertion(steps=1).measure(case_of(model_of(weight), image, torch.ones(224, 224))).curve
    offsets = np.arange(-15, 16)
    kernel = np.exp(-0.5 * (offsets / 5) ** 2)
    assert curve[0] == pytest.approx(logistic(kernel[15] / kernel.sum()), rel=1e-4)
    assert curve[1] == pytest.approx(logistic(1))


def test_an_objective_that_is_not_a_class_is_scored_by_its_value(one_pixel):
    model, image, heat = one_pixel
    goal = 0.5 * class_logit(0)
    curve = Deletion(steps=36).measure(case_of(model, image, heat, objective=goal)).curve
    assert curve == pytest.approx([2.0] + 36 * [0.0])


def test_pixels_of_equal_rank_are_changed_in_reading_order(one_pixel):
    model, image, _ = one_pixel
    curve = Deletion(steps=36).measure(case_of(model, image, torch.ones(SIZE, SIZE))).curve
    place = 2 * SIZE + 3
    assert curve == pytest.approx([logistic(4)] * (place + 1) + [0.5] * (36 - place))


def test_sensitivity_n_of_a_linear_model_is_one_for_its_own_contributions():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, SIZE, SIZE, generator=generator)
    image = torch.rand(3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    mean = (0.2, 0.5, 0.3)
    parts = (weight * (image - torch.tensor(mean, dtype=torch.float64)[:, None, None])).sum(0)
    metric = SensitivityN(sets=20)
    with session(0, [0]):
        right = metric.measure(case_of(model_of(weight, mean), image, parts))
        wrong = metric.measure(case_of(model_of(weight, mean), image, -2 * parts))
    assert right.curve == pytest.approx([1.0] * 5)
    assert right.value == pytest.approx(1)
    assert wrong.value == pytest.approx(-1)


def test_sensitivity_n_equals_the_correlation_of_numpy_over_the_same_sets():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, SIZE, SIZE, generator=generator)
    image = torch.rand(3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    heat = torch.randn(SIZE, SIZE, generator=generator)
    metric = SensitivityN(sets=12, shares=(0.25, 0.5))
    with session(3, [0]):
        measured = metric.measure(case_of(model_of(weight), image, heat))
    drawn = torch.Generator().manual_seed(3 * 1_000_003)
    sets = [torch.randperm(36, generator=drawn)[:n].numpy() for n in 12 * [9] + 12 * [18]]
    parts = (weight.double() * image).sum(0).flatten().numpy()
    sums = np.array([heat.flatten().numpy()[s].sum() for s in sets])
    lost = np.array([parts[s].sum() for s in sets])
    expected = [np.corrcoef(sums[k : k + 12], lost[k : k + 12])[0, 1] for k in (0, 12)]
    assert measured.curve == pytest.approx(expected)
    assert measured.value == pytest.approx(np.mean(expected))


def test_the_correlation_of_a_constant_map_is_zero(one_pixel):
    model, image, _ = one_pixel
    with session(0, [0]):
        flat = SensitivityN(sets=5).measure(case_of(model, image, torch.ones(SIZE, SIZE)))
    assert flat.value == 0


def test_the_scale_of_a_map_does_not_change_the_correlation():
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    expected = np.corrcoef(one.numpy(), two.numpy())[0, 1]
    for scale in (1.0, 1e-9, 1e-30, 1e30):
        assert pearson(scale * one, two) == pytest.approx(expected)
    assert pearson(one, torch.full((50,), 0.1, dtype=torch.float64)) == 0
    assert pearson(one, torch.zeros(50, dtype=torch.float64)) == 0


@pytest.mark.parametrize(
    ("peak", "tolerance", "hit"),
    [((3, 4), 0, 1), ((2, 2), 0, 1), ((6, 4), 0, 0), ((7, 8), 0, 0), ((6, 4), 1, 1),
     ((7, 8), 4, 0), ((7, 8), 5, 1)],
)  # fmt: skip
def test_the_pointing_game_hits_inside_the_box_or_near_it(peak, tolerance, hit):
    """The box covers rows 2 to 5, columns 2 to 4: from (7, 8) it is √(2² + 4²) away."""
    inside = torch.zeros(10, 10, dtype=torch.bool)
    inside[2:6, 2:5] = True
    heat = torch.zeros(10, 10)
    heat[peak] = 1
    case = case_of(None, torch.zeros(3, 10, 10), heat, inside=inside)
    assert PointingGame(tolerance_px=tolerance).measure(case).value == hit


def test_an_image_without_a_visible_box_is_not_measured():
    heat = torch.ones(10, 10)
    assert PointingGame().measure(case_of(None, torch.zeros(3, 10, 10), heat)) is None
    gone = torch.zeros(10, 10, dtype=torch.bool)
    case = case_of(None, torch.zeros(3, 10, 10), heat, inside=gone)
    assert PointingGame().measure(case) is None


def test_boxes_go_through_the_models_resize_and_crop():
    """400×200 px are halved to 200×100, and the middle 100 columns are kept: x' = x/2 − 50."""
    model = HookedModel(
        Weighted(torch.zeros(3, 100, 100)), mean=(0,) * 3, std=(1,) * 3,
        input_size=(3, 100, 100), crop_pct=1.0,
    )  # fmt: skip
    inside = Boxes({"a.jpg": [(140, 40, 240, 120)]}).inside(model, "folder/a.jpg", (400, 200))
    rows, columns = torch.nonzero(inside, as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (20, 59)
    assert (int(columns.min()), int(columns.max())) == (20, 69)
    assert int(inside.sum()) == 40 * 50
    outside = Boxes({"a.jpg": [(0, 0, 60, 60)]}).inside(model, "a.jpg", (400, 200))
    assert not bool(outside.any())
    assert Boxes({}).inside(model, "b.jpg", (400, 200)) is None
    tiny = Boxes({"a.jpg": [(200, 100, 201, 101)]}).inside(model, "a.jpg", (400, 200))
    assert torch.nonzero(tiny).tolist() == [[50, 50]]
    between = Boxes({"a.jpg": [(200.2, 100.1, 200.9, 100.3)]}).inside(model, "a.jpg", (400, 200))
    assert torch.equal(between, tiny), "a box within a pixel is that pixel"
    huge = Boxes({"a.jpg": [(-1e12, -5, 1e12, 1e300)]}).inside(model, "a.jpg", (400, 200))
    assert bool(huge.all()), "a box that exceeds the picture is cut off"
    beside = Boxes({"a.jpg": [(400, 0, 500, 200)]}).inside(model, "a.jpg", (400, 200))
    assert not bool(beside.any())


def test_box_files_are_read_and_their_errors_named(tmp_path):
    file = tmp_path / "boxes.csv"
    file.write_text("path,left,upper,right,lower,label\na.jpg,1,2,3,4,cat\na.jpg,5,5,9,9,cat\n")
    boxes = Boxes(file)
    assert boxes.of("x/a.jpg") == [(1, 2, 3, 4), (5, 5, 9, 9)]
    assert boxes.digest() == Boxes({"a.jpg": [(1, 2, 3, 4), (5, 5, 9, 9)]}).digest()
    for text, words in [
        ("path,left,upper\na,1,2\n", "no column right, lower"),
        ("path,left,upper,right,lower\na.jpg,1,two,3,4\n", "line 2: left, upper"),
        ("path,left,upper,right,lower\na.jpg,3,2,1,4\n", r"of a.jpg is empty"),
        ("path,left,upper,right,lower\na.jpg,0,0,inf,4\n", r"of a.jpg has no size"),
        ("path,left,upper,right,lower\na.jpg,nan,0,3,4\n", r"of a.jpg has no size"),
    ]:
        file.write_text(text)
        with pytest.raises(ParameterError, match=words):
            Boxes(file)
    with pytest.raises(ParameterError, match=r"no boxes can be read from .*gone.csv"):
        Boxes(tmp_path / "gone.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ParameterError, match=r"no boxes can be read from .*a pipe or a device"):
        Boxes(tmp_path / "pipe.csv")


class Stack(nn.Module):
    """A model with three layers that have weights, and a position embedding."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.first(x) + self.place
        return self.fc(self.second(x.relu()).relu().mean((2, 3)))


@pytest.fixture
def stack() -> HookedModel:
    torch.manual_seed(0)
    return HookedModel(Stack(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))


def test_the_cascade_starts_at_the_classifier_and_does_not_change_the_model(stack):
    before = fingerprint(stack.module)
    own = {name: value.clone() for name, value in stack.module.named_parameters()}
    changed = []
    for model in cascade(stack, 4, seed=0):
        now = dict(model.module.named_parameters())
        changed.append(
            {name.split(".")[0] for name in own if not torch.equal(now[name], own[name])}
        )
    assert changed == [
        {"fc"}, {"fc", "second"}, {"fc", "second", "first"}, {"fc", "second", "first", "place"},
    ]  # fmt: skip
    assert fingerprint(stack.module).difference(before) == []
    assert [len(list(cascade(stack, stages, 0))) for stages in (1, 2, 3)] == [1, 2, 3]


def test_random_weights_have_the_mean_and_deviation_of_the_original_weights():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 3))
    module[1].weight.data.mul_(5).add_(2)
    model = HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 40, 40))
    (random,) = cascade(model, 1, seed=0)
    was, now = module[1].weight, random.module[1].weight
    assert float(now.mean().detach()) == pytest.approx(float(was.mean().detach()), abs=0.01)
    assert float(now.std().detach()) == pytest.approx(float(was.std().detach()), rel=0.02)
    both = torch.stack([was.detach().flatten(), now.detach().flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05


def test_randomisation_is_one_for_a_constant_map_and_low_for_a_map_of_weights(stack):
    image = torch.rand(3, 8, 8)
    heat = torch.rand(8, 8)
    blind = CascadingRandomisation(stages=4).measure(case_of(stack, image, heat))
    assert blind.value == pytest.approx(1)
    assert blind.curve == pytest.approx([1.0] * 5)

    def explain(model):
        return model.module.place.detach()[0].sum(0)

    own = explain(stack)
    case = case_of(stack, image, own, explain)
    seeing = CascadingRandomisation(stages=4).measure(case)
    assert seeing.curve[:4] == pytest.approx([1.0] * 4), "the embedding is randomised last"
    assert abs(seeing.curve[4]) < 0.4
    assert CascadingRandomisation(stages=4).axis(stack, 64) == (0, 0.25, 0.5, 0.75, 1)


def test_a_randomised_model_without_a_map_has_correlation_zero(stack):
    def explain(model):
        raise TechniqueError("the map is zero everywhere")

    case = case_of(stack, torch.rand(3, 8, 8), torch.rand(8, 8), explain)
    assert CascadingRandomisation(stages=2).measure(case).value == 0


def test_rank_correlation_equals_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for levels in (5, 1000):
        one, two = torch.randint(0, levels, (2, 60), generator=generator).double()
        two = two + one / 3
        assert spearman(one, two) == pytest.approx(stats.spearmanr(one, two).statistic)
    assert spearman(torch.ones(5), torch.arange(5.0)) == 0


def test_the_interval_is_near_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = interval(values)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert interval(values) == (low, high)
    assert interval(np.full(5, 2.0)) == (2.0, 2.0)
    assert all(math.isnan(end) for end in interval(np.array([1.0])))


def test_the_interval_covers_the_mean_about_95_times_in_100():
    generator = np.random.default_rng(1)
    samples = generator.normal(0, 1, (200, 60))
    hits = sum(low <= 0 <= high for low, high in map(interval, samples))
    assert 180 <= hits <= 199


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Deletion, {"steps": 0}, "parameter 'steps' of deletion is 0"),
        (SensitivityN, {"shares": (0.0,)}, "parameter 'shares.0' of sensitivity-n is 0.0"),
        (PointingGame, {"tolerance_px": -1}, "'tolerance_px' of pointing-game is -1"),
        (Insertion, {"baseline": "pink"}, "'baseline' of insertion is 'pink'"),
    ],
)
def test_impossible_parameters_are_refused(kind, settings, words):
    with pytest.raises(ParameterError, match=words):
        kind(**settings)
