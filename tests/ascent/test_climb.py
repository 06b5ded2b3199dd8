"""The loop of gradient ascent: views, dead ReLUs, scores that are no numbers, and steps."""

import warnings

import pytest
import torch
from torch import nn

from timmscope import (
    Climb,
    CropViews,
    HookedModel,
    NormalisedSteps,
    PixelParameterisation,
    SynthesisOutcome,
    SynthesisTechnique,
    TechniqueError,
    class_logit,
    image_generators,
    load_model,
    loop_model,
)
from timmscope_registry.hooks import fingerprint

SIZE = 8


class Small(SynthesisTechnique):
    """Climbs in pixels, with what a test gives."""

    steps: int = 4
    rate: float = 0.1
    count: int = 1

    def synthesize(self, model, objective, init):
        space = PixelParameterisation((SIZE, SIZE), decorrelate=False)
        own = image_generators(self.count)
        variable = space.start(own, torch.zeros(1))
        climb = Climb(
            space=space,
            steps=self.steps,
            optimiser=lambda variable: torch.optim.SGD([variable], lr=self.rate),
            **self.settings,
        )
        return climb.run(self, model, objective, variable, own)

    @property
    def settings(self):
        return {}


def wrapped(module):
    module.num_classes = 2
    return HookedModel(module, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, SIZE, SIZE))


class Linear(nn.Module):
    """Two logits that are linear in the pixels, relative to grey."""

    def __init__(self):
        super().__init__()
        weights = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x - 0.5, self.weights)


class Dead(Linear):
    """A ReLU that is off by `depth` for grey images."""

    def __init__(self, depth):
        super().__init__()
        self.depth = depth
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x) - self.depth)


def test_a_step_of_plain_ascent_is_the_hand_computed_one():
    model = wrapped(Linear())
    made = Small(steps=1, rate=0.1)(model, 0, seed=3)
    own = torch.Generator().manual_seed(3 * 1_000_003)
    start = torch.randn(3, SIZE, SIZE, generator=own) * 0.01
    slope = start.sigmoid() * (1 - start.sigmoid()) * model.module.weights[0].detach()
    assert torch.allclose(made.images[0], (start + 0.1 * slope).sigmoid(), atol=1e-6)


def test_a_gradient_is_led_around_a_dead_relu():
    # Ascent raises the input of the ReLU by the redirected gradient until the unit is active.
    made = Small(steps=12, rate=0.4)(wrapped(Dead(1.0)), 0)
    assert made.final_scores[0] > 0
    assert made.scores[0, 0] == 0


def test_a_unit_that_stays_dead_is_refused_in_one_line():
    with pytest.raises(TechniqueError, match="is zero for image 0 in each of the first 24 steps"):
        Small(steps=30, rate=1e-6)(wrapped(Dead(50.0)), 0)


def test_redirection_changes_nothing_of_images_that_have_a_gradient():
    class Pair(Dead):
        def forward(self, x):
            value = Linear.forward(self, x)
            return self.act(torch.stack([value[:, 0] - 1, value[:, 1] + 50], dim=1))

    model = wrapped(Pair(0.0))
    together = Small(steps=12, rate=0.4, count=2)(model, "class:0|1")
    plain = wrapped(Linear())
    plain.module.weights.data = model.module.weights.data
    # The second image starts from its own noise, so compare with a run of the linear model.
    reference = Small(steps=12, rate=0.4, count=2)(plain, "class:1|1").images[1]
    assert torch.allclose(together.images[1], reference, atol=1e-6)
    assert together.final_scores[0] > 0


class Breaking(Linear):
    """Gives NaN from its n-th forward with a gradient on."""

    def __init__(self, good):
        super().__init__()
        self.good = good
        self.seen = 0

    def forward(self, x):
        self.seen += torch.is_grad_enabled() and x.requires_grad
        return super().forward(x) * (float("nan") if self.seen > self.good else 1)


def test_a_score_that_is_no_number_ends_the_loop_and_keeps_the_best():
    model = wrapped(Breaking(20))
    with pytest.warns(UserWarning, match="not finite at step 20 of image 0: the best image"):
        outcome = run_directly(model, steps=40)
    assert outcome.best_step.tolist() == [15]
    assert outcome.scores.shape == (40, 1)
    assert torch.isfinite(outcome.scores).all()
    assert torch.isfinite(outcome.images).all()


def test_a_score_that_is_no_number_at_once_is_an_error():
    with pytest.raises(TechniqueError, match="not finite at step 2"):
        run_directly(wrapped(Breaking(2)), steps=40)


def run_directly(model, steps, **settings) -> SynthesisOutcome:
    space = PixelParameterisation((SIZE, SIZE), decorrelate=False)
    own = [torch.Generator().manual_seed(5)]
    climb = Climb(
        space=space,
        steps=steps,
        optimiser=lambda variable: torch.optim.SGD([variable], lr=0.01),
        **settings,
    )
    goal = class_logit(0).bind(model, None)
    return climb.run(Small(), model, goal, space.start(own, torch.zeros(1)), own)


def test_the_gradient_of_several_views_is_their_mean():
    model = wrapped(Linear())
    views = CropViews(number=5, first_size=0.8, last_size=0.4, normal_noise=0, uniform_noise=0)
    made = run_directly(model, 1, views=views)
    # By hand: the same crops, one after the other.
    from timmscope.techniques.ascent.views import view

    own = torch.Generator().manual_seed(5)
    start = (torch.randn(3, SIZE, SIZE, generator=own) * 0.01)[None].requires_grad_()
    maps = views.draw(1, (SIZE, SIZE), [own])[0, 0]
    logits = [model(view(start.sigmoid(), one[None]))[0, 0] for one in maps]
    torch.stack(logits).mean().backward()
    expected = (start.detach() + 0.01 * start.grad).sigmoid()
    assert torch.allclose(made.images, expected, atol=1e-6)
    assert made.scores[0, 0].item() == pytest.approx(torch.stack(logits).mean().item(), abs=1e-5)


def test_crops_stay_within_the_image_and_shrink():
    views = CropViews(number=64, first_size=0.5, last_size=0.1, size_deviation=0.02)
    maps = views.draw(9, (64, 64), [torch.Generator().manual_seed(1)])
    share, centre = maps[..., 0, 0], maps[..., :, 2]
    assert ((centre.abs() + share[..., None]) <= 1 + 1e-6).all()
    assert share[0].mean().item() == pytest.approx(0.5, abs=0.01)
    assert share[8].mean().item() == pytest.approx(0.1, abs=0.01)


def test_normalised_steps_have_the_given_mean_size_for_each_image():
    variable = torch.zeros(2, 3, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2)) * 100
    steps = NormalisedSteps([variable], 0.5, 0.1, steps=3)
    sizes = []
    for _ in range(3):
        before = variable.detach().clone()
        variable.grad = None
        (variable * weights).sum().backward()
        steps.step()
        sizes.append((variable.detach() - before).abs().mean((1, 2)))
    assert torch.allclose(torch.stack(sizes), torch.tensor([[0.5] * 2, [0.3] * 2, [0.1] * 2]))


def test_long_loops_run_on_the_fused_copy_unless_it_lacks_a_layer():
    model = load_model("random:resnet18?seed=0&img_size=64")
    images = torch.rand(1, *model.input_size)
    assert "layer2" in model.layers  # listed once, before the model is compared
    before = fingerprint(model.module)
    assert loop_model(model, ["logits"], 31) is model
    copy = loop_model(model, ["layer2"], 32)
    assert copy is not model
    assert loop_model(model, ["layer2.0.conv1"], 32) is model
    with torch.no_grad():
        assert torch.allclose(copy(images), model(images), atol=1e-4)
    assert fingerprint(model.module).difference(before) == []


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_directly(wrapped(Linear()), 3)
