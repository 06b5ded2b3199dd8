"""Class visualisation: closed forms, each regulariser by hand, and real classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from timmscope import HookedModel, ParameterError, class_logit, load_result
from timmscope_synthesis import ActivationMaximization, ClassVisualization
from timmscope_synthesis.class_visualization import _without_least

SIZE = (3, 12, 10)
OFF = {"decay": 0, "blur_px": 0, "noise_px": 0}


class Linear(nn.Module):
    """Two classes with the scores `± w · x`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(Linear(), mean=(0.5,) * 3, std=(1,) * 3, input_size=SIZE)


def change(made, model: HookedModel) -> Tensor:  # type: ignore[no-untyped-def]
    return made.images[0] - torch.tensor(model.mean)[:, None, None]


def test_with_a_penalty_a_linear_model_has_the_closed_form(model):
    weight = model.module.weight.detach()
    penalty = float(weight.abs().max()) / 2 / 0.4  # so that x stays within 0.4 of the mean
    technique = ClassVisualization(**OFF, l2_weight=penalty, steps=400, step_px=5)
    made = technique(model, 0)
    assert float((change(made, model) - weight / (2 * penalty)).abs().max()) < 1e-5
    best = float((weight**2).sum() / (4 * penalty))
    score = float(made.final_scores[0]) - penalty * float(change(made, model).square().sum())
    assert score == pytest.approx(best, rel=1e-5)


def test_decay_alone_shrinks_by_its_power(model):
    """The last of five steps is not regularised."""
    start = torch.full((1, *SIZE), 0.5) + 0.3 * torch.sign(model.module.weight.detach())
    technique = ClassVisualization(
        **OFF | {"decay": 0.1}, steps=5, step_px=1e-6, frames=5, norm_percentile=0
    )
    made = technique(model, 1, init=start)
    sizes = [float((frame[0] / 255 - 0.5).abs().mean()) for frame in made.frames]
    assert sizes == pytest.approx([0.3 * 0.9**k for k in (1, 2, 3, 4, 4)], abs=1 / 255)


def test_a_constant_step_is_a_multiple_of_the_gradient_with_the_mean_asked_for(model):
    made = ClassVisualization(**OFF, steps=1, step_px=2)(model, 0)
    weight = model.module.weight.detach()
    expected = weight / weight.abs().mean() * 2 / 255
    assert float((change(made, model) - expected).abs().max()) < 1e-6
    assert made.best_step.tolist() == [0]


def test_progress_gains_what_it_says(model):
    settings = {**OFF, "policy": "progress", "step_gain": 0.5}
    made = ClassVisualization(**settings, steps=6)(model, 0)
    assert made.scores[:, 0].tolist() == pytest.approx([0.5 * k for k in range(6)], abs=1e-4)
    assert float(made.final_scores[0]) == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("percentile", [20, 50, 90])
def test_exactly_the_least_pixels_become_the_mean(percentile):
    x = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(4))
    importance = x.square().sum(1).sqrt()
    kept = _without_least(x, importance, percentile)
    limit = np.percentile(importance.numpy(), percentile)
    assert int((kept == 0).all(1).sum()) == int((importance.numpy() < limit).sum())
    assert int((kept == 0).all(1).sum()) == int(np.ceil(percentile / 100 * 98))
    assert torch.equal(kept[(kept != 0).any(1, keepdim=True).expand_as(x)],
                       x[(kept != 0).any(1, keepdim=True).expand_as(x)])  # fmt: skip


@pytest.mark.parametrize("kind", ["norm_percentile", "contribution_percentile"])
def test_norms_and_contributions_decide_which_pixels_stay(model, kind):
    start = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(5)) * 0.8 + 0.1
    technique = ClassVisualization(**OFF | {kind: 40}, steps=2, step_px=1e-6, frames=2)
    made = technique(model, 0, init=start)
    x, weight = start[0] - 0.5, model.module.weight.detach()
    importance = x.norm(dim=0) if kind == "norm_percentile" else (x * weight).sum(0).abs()
    gone = importance.numpy() < np.percentile(importance.numpy(), 40)
    left = (made.frames[0, 0].float() / 255 - 0.5).abs().amax(0).numpy()
    assert (left[gone] <= 0.6 / 255).all()
    assert gone.sum() == np.ceil(0.4 * 119)
    expected = x.abs().amax(0).numpy()
    assert np.abs(left - expected)[~gone].max() < 1 / 255


def test_the_blur_is_a_gaussian_at_every_kth_step(model):
    start = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(6)) * 0.8 + 0.1
    settings = OFF | {"blur_px": 0.8, "blur_every": 2}
    made = ClassVisualization(**settings, steps=4, step_px=1e-6, frames=4)(model, 0, init=start)
    once = gaussian_filter(start[0].numpy(), (0, 0.8, 0.8), mode="mirror", radius=3)
    twice = gaussian_filter(once, (0, 0.8, 0.8), mode="mirror", radius=3)
    for frame, expected in zip(made.frames[:, 0], (once, once, twice, twice), strict=True):
        assert np.abs(frame.numpy() / 255 - expected).max() < 0.6 / 255


def test_images_of_a_call_are_independent_and_seeds_decide(model):
    technique = ClassVisualization(steps=3, count=2)
    made = technique(model, class_logit([0, 1]), seed=3)
    assert made.images.shape == (4, *SIZE)
    assert torch.equal(technique(model, class_logit([0, 1]), seed=3).images, made.images)
    alone = ClassVisualization(steps=3, count=2)(model, 0, seed=3)
    assert torch.equal(alone.images, made.images[:2])
    assert not torch.equal(technique(model, class_logit([0, 1]), seed=4).images, made.images)


class TestJudges:
    def test_rank_and_probability_are_those_of_the_judge(self, model, tmp_path):
        other = HookedModel(Linear(), mean=(0.5,) * 3, std=(2,) * 3, input_size=SIZE, id="other")
        made = ClassVisualization(**OFF, steps=2, judge=other)(model, class_logit([0, 1]))
        logits = other(made.images)
        expected = [1 + int((row > row[k]).sum()) for k, row in enumerate(logits)]
        assert made.notes["transfer_rank"] == expected == [1, 1]
        probabilities = logits.softmax(1).diagonal().tolist()
        assert made.notes["transfer_probability"] == pytest.approx(probabilities, abs=1e-6)
        assert made.summary()[1]["transfer_rank"] == 1
        assert made.further_passes == {"judge": {"forwards": 2, "backwards": 0}}
        assert load_result(made.save(tmp_path / "made")).notes == made.notes

    def test_another_input_size_is_resized_to(self, model):
        class Larger(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                assert x.shape[2:] == (24, 30)
                return torch.stack([x.mean((1, 2, 3)) * 0, x.mean((1, 2, 3)) * 0 + 1], 1)

        judge = HookedModel(Larger(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 24, 30))
        made = ActivationMaximization(steps=2, judge=judge)(model, 0)
        assert made.notes["transfer_rank"] == [2]
        assert made.notes["transfer_probability"] == pytest.approx([1 / (1 + np.e)], rel=1e-5)

    def test_a_judge_of_other_classes_or_of_a_unit_is_refused(self, model):
        other = HookedModel(
            nn.Sequential(nn.Flatten(), nn.Linear(360, 5)),
            mean=(0.5,) * 3, std=(1,) * 3, input_size=SIZE, id="five",
        )  # fmt: skip
        with pytest.raises(ParameterError, match="the judge five has 5 classes"):
            ClassVisualization(steps=1, judge=other)(model, 0)
        named = [
            HookedModel(Linear(), mean=(0.5,) * 3, std=(1,) * 3, input_size=SIZE, class_names=names)
            for names in (["cat", "dog"], ["cat", "fox"])
        ]
        with pytest.raises(ParameterError, match=r"class 1 of the judge .* is 'fox', and of "):
            ClassVisualization(steps=1, judge=named[1])(named[0], 0)
        with pytest.raises(ParameterError, match=r"can judge images of a class, and logits\[1\]"):
            ClassVisualization(steps=1, judge=model)(model, "logits[1]")


@pytest.mark.slow
def test_real_classes_are_found_with_the_published_regularisers(lite0):
    combinations = [
        {"decay": 0, "blur_px": 0.5, "blur_every": 4, "norm_percentile": 50, "step_px": 1},
        {},
        {**OFF, "l2_weight": 0.001, "step_px": 0.03},
    ]
    for settings in combinations:
        made = ClassVisualization(steps=60, **settings)(lite0, class_logit([130, 963]))
        logits = lite0(made.images)
        assert logits.argmax(1).tolist() == [130, 963], settings
        assert float(made.final_scores.min()) > (12 if not settings else 8), settings
