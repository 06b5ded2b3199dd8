"""What holds for every attack on every image: the ball, the box, honest reports, exact counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.attack.conftest import Curved

from timmscope import AttackTechnique, Ball, HookedModel, load_model, noise_like, technique

FGSM = technique("fgsm")
PGD = technique("pgd")

ATTACKS = st.one_of(
    st.builds(
        dict,
        attack=st.just("fgsm"),
        norm=st.sampled_from(["linf", "l2"]),
        epsilon=st.floats(0, 1),
    ),
    st.builds(
        dict,
        attack=st.just("pgd"),
        norm=st.sampled_from(["linf", "l2"]),
        epsilon=st.floats(0, 1),
        steps=st.integers(1, 4),
        step_size=st.one_of(st.none(), st.floats(1e-4, 2)),
        loss=st.sampled_from(["cross-entropy", "margin"]),
        stop_when_fooled=st.booleans(),
        restarts=st.integers(1, 2),
    ),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parameters=ATTACKS, seed=st.integers(0, 2**31 - 1), aimed=st.booleans())
def test_results_stay_in_ball_and_box_and_report_the_truth(parameters, seed, aimed, curved):
    parameters = dict(parameters)
    attack = technique(parameters.pop("attack"))(**parameters)
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    labels = curved(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4  # one image is misclassified from the start
    targets = (labels + 2) % 4 if aimed else None
    result = attack(curved, images, labels, targets=targets, seed=seed)
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1
    change = result.images - images
    size = change.abs().amax((1, 2, 3)) if attack.norm == "linf" else change.flatten(1).norm(dim=1)
    assert bool((size <= attack.epsilon * (1 + 1e-5) + 1e-6).all())
    assert torch.equal(result.linf, change.abs().amax((1, 2, 3)))
    assert torch.equal(result.l0, (change != 0).any(1).sum((1, 2)))
    before, after = curved(images).argmax(1), curved(result.images).argmax(1)
    rounded = curved((result.images * 255).round() / 255).argmax(1)
    already = before != labels if targets is None else before == targets
    assert torch.equal(result.already_wrong, already)
    for claimed, predicted in ((result.success, after), (result.success_8bit, rounded)):
        wrong = predicted != labels if targets is None else predicted == targets
        assert torch.equal(claimed, wrong & ~already)
    assert torch.equal(result.images[already], images[already])
    assert bool((result.forwards[already] == 0).all())
    if attack.epsilon == 0:
        assert torch.equal(result.images, images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_do_not_depend_on_how_the_batch_is_split(norm, curved, images):
    attack = PGD(norm=norm, steps=3, restarts=2)
    whole = attack(curved, images, seed=4)
    pieces = attack(curved, images, seed=4, batch_size=3)
    assert torch.allclose(whole.images, pieces.images, atol=1e-6)
    assert torch.equal(whole.images, attack(curved, images, seed=4).images)
    assert not torch.equal(whole.images, attack(curved, images, seed=5).images)


def test_random_starts_are_uniform_in_the_ball():
    images = torch.zeros(20000, 3, 1, 1)  # a ball of three dimensions
    generators = [torch.Generator().manual_seed(row) for row in range(len(images))]
    inside = Ball(norm="l2", epsilon=2.0).sample(images, generators).flatten(1)
    radius = inside.norm(dim=1)
    assert float(radius.max()) <= 2.0 + 1e-6
    for share in (0.1, 0.5, 0.9):  # volume within r is (r/ε)^3
        within = float((radius <= 2 * share ** (1 / 3)).float().mean())
        assert within == pytest.approx(share, abs=0.015)
    assert float(inside.mean(0).abs().max()) < 0.04
    cube = Ball(norm="linf", epsilon=2.0).sample(images, generators).flatten()
    assert -2 <= float(cube.min()) < -1.99 < 1.99 < float(cube.max()) <= 2
    assert float((cube < 1).float().mean()) == pytest.approx(0.75, abs=0.01)


class Passes:
    """Counts images forward and backward with hooks on the module."""

    def __init__(self, module) -> None:
        self.forwards = self.backwards = 0

        def forward(module, args, output):
            self.forwards += len(output)
            if output.requires_grad:
                output.register_hook(self.backward)

        self.handle = module.register_forward_hook(forward)

    def backward(self, gradient):
        self.backwards += len(gradient)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 5},
        {"steps": 5, "stop_when_fooled": True},
        {"steps": 5, "restarts": 3},
        {"steps": 5, "restarts": 3, "stop_when_fooled": True, "loss": "margin"},
    ],
    ids=str,
)
def test_passes_are_counted_as_hooks_see_them(settings, curved, images):
    labels = curved(images).argmax(1)
    attack = PGD(epsilon=0.02, **settings)
    FGSM()(curved, images)  # the first call traces the model once
    with Passes(curved.module) as seen:
        result = attack(curved, images, labels, batch_size=5)
    judging = 3 * len(images)
    assert int(result.forwards.sum()) == seen.forwards - judging
    assert int(result.backwards.sum()) == seen.backwards
    assert result.queries.tolist() == [0] * 8
    if settings == {"steps": 5}:
        assert result.forwards.tolist() == result.backwards.tolist() == [5] * 8
    else:
        assert len(set(result.forwards.tolist())) > 1  # solved images drop out


class Follow(AttackTechnique):
    """Steps along a gradient that it gets in one of several ways, three times."""

    way: str

    def perturb(self, model, images, goal):
        aim = "class:1"
        made = {"mean": model.mean, "std": model.std, "input_size": model.input_size}
        if self.way == "wrapper":
            model = HookedModel(model.module, **made)
            assert model.layers  # lists the modules in a forward that counts as no pass
        elif self.way == "pixels":
            whole = {"mean": (0,) * 3, "std": (1,) * 3, "input_size": model.input_size}
            model = HookedModel(model.as_module(), **whole)
        elif self.way == "nested":
            for _ in range(2):
                model.gradient(images, aim)
            with model.count_passes(len(images)) as inner:
                model.gradient(images, aim)
            assert inner.forwards.tolist() == inner.backwards.tolist() == [1] * len(images)
            return images
        elif self.way == "surrogate":
            model(images)
            model = HookedModel(Curved(), **made, id="file:surrogate")
        leaf = images.clone().requires_grad_()
        for _ in range(3):
            if self.way == "module":
                model.module(leaf)[:, 1].sum().backward()  # the same leaf each time
            else:
                model.gradient(images, aim)
        return images


@pytest.mark.parametrize("way", ["model", "wrapper", "pixels", "module", "nested"])
def test_a_pass_counts_once_whoever_starts_it(way, curved, images):
    curved.module.eval().requires_grad_(False)
    with Passes(curved.module) as seen:
        result = Follow(way=way)(curved, images, batch_size=5)
    assert result.forwards.tolist() == result.backwards.tolist() == [3] * 8
    assert result.other_models == []
    assert result.other_forwards.shape == (8, 0)
    assert seen.backwards == 3 * 8
    assert not curved.module._forward_pre_hooks


def test_passes_of_a_copy_for_speed_are_the_models():
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(16, 4),
    )  # fmt: skip
    with torch.no_grad():
        module[1].running_var.uniform_(0.5, 2, generator=generator)
    model = HookedModel(module, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))
    batch = torch.rand(8, 3, 4, 4, generator=generator)
    with model.count_passes(8) as counter:
        copy = model.fused()
        assert copy.module is not model.module
        assert not copy.hooks.foreign_hooks()
    with model.count_passes(8) as counter:
        copy.gradient(batch, "class:1")
    assert counter.forwards.tolist() == counter.backwards.tolist() == [1] * 8
    assert not counter.others


def test_passes_of_a_surrogate_are_counted_apart_and_under_its_name(curved, images):
    result = Follow(way="surrogate")(curved, images, batch_size=5)
    assert result.forwards.tolist() == [1] * 8
    assert result.backwards.tolist() == [0] * 8
    assert result.other_models == ["file:surrogate"]
    assert result.other_forwards.tolist() == result.other_backwards.tolist() == [[3]] * 8
    row = result.summary()[0]
    assert (row["forwards"], row["backwards"]) == (1, 0)
    assert row["forwards of file:surrogate"] == row["backwards of file:surrogate"] == 3


def test_fgsm_costs_one_pass_each_way(curved, images):
    result = FGSM()(curved, images)
    assert result.forwards.tolist() == result.backwards.tolist() == [1] * 8


def test_stopping_early_saves_passes_and_breaks_as_many(curved, images):
    labels = curved(images).argmax(1)
    settings = {"epsilon": 0.05, "steps": 20, "random_start": False, "loss": "margin"}
    full = PGD(**settings)(curved, images, labels)
    early = PGD(stop_when_fooled=True, **settings)(curved, images, labels)
    assert bool((early.success | ~full.success).all())
    broken = early.success & (early.forwards < 20)
    assert int(broken.sum()) >= 3
    assert bool((early.linf[broken] <= full.linf[broken] + 1e-6).all())


def test_restarts_break_no_fewer_and_keep_what_broke(curved, images):
    labels = curved(images).argmax(1)
    once = PGD(epsilon=0.03, steps=2)(curved, images, labels, seed=1)
    often = PGD(epsilon=0.03, steps=2, restarts=6)(curved, images, labels, seed=1)
    assert bool((often.success | ~once.success).all())
    assert torch.equal(often.images[once.success], once.images[once.success])


def test_images_wrong_from_the_start_are_left_alone(curved, images):
    labels = curved(images).argmax(1)
    labels[2:5] = (labels[2:5] + 1) % 4
    result = PGD(epsilon=0.2)(curved, images, labels)
    assert result.already_wrong.tolist() == [row in (2, 3, 4) for row in range(8)]
    assert torch.equal(result.images[2:5], images[2:5])
    assert result.success[2:5].tolist() == [False] * 3
    assert result.clean_accuracy == pytest.approx(5 / 8)
    attacked = result.success[[0, 1, 5, 6, 7]].float().mean()
    assert result.success_rate == pytest.approx(float(attacked))


def test_default_radii_are_the_usual_ones():
    assert Ball.of("linf", None, torch.zeros(1, 3, 64, 64)).epsilon == 8 / 255
    assert Ball.of("l2", None, torch.zeros(1, 3, 224, 224)).epsilon == pytest.approx(3.0)
    assert Ball.of("l2", None, torch.zeros(1, 3, 32, 32)).epsilon == pytest.approx(3 / 7)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_bfloat16_model_is_attacked_within_the_ball(name):
    model = load_model(f"random:{name}?img_size=64&num_classes=10")
    model.module.to(torch.bfloat16)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    result = PGD(steps=4)(model, images)
    assert result.images.dtype == torch.float32
    assert float(result.linf.max()) == pytest.approx(8 / 255, abs=1e-6)
    predicted = model(result.images).argmax(1)
    assert torch.equal(result.success, predicted != result.labels)


def test_noise_of_a_row_is_its_own(images):
    generators = [torch.Generator().manual_seed(row) for row in range(8)]
    drawn = noise_like(images, "uniform", generators)
    again = noise_like(images[3:4], "uniform", [torch.Generator().manual_seed(3)])
    assert torch.equal(drawn[3:4], again)
