"""Random defences draw per image from the call's seed, and attacks average over draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.defence.conftest import Flip, Noise, linear

from timmscope import (
    AttackTechnique,
    another_draw,
    image_rows,
    load_model,
    mean_over_draws,
    mine,
    pooled_features,
    technique,
)
from timmscope.draws import image_positions

RUNS = {
    "fgsm": lambda m, x, n, s: technique("fgsm")(epsilon=0.1)(m, x, 0, seed=s, batch_size=n).images,
    "pgd": lambda m, x, n, s: (
        technique("pgd")(steps=4, epsilon=0.05, draws=3, stop_when_fooled=True)(
            m, x, seed=s, batch_size=n
        ).images
    ),
    "saliency": lambda m, x, n, s: technique("saliency")()(m, x, "top", seed=s, batch_size=n).maps,
    "occlusion": lambda m, x, n, s: (
        technique("occlusion")(patch_px=2, stride_px=2)(m, x, "top", seed=s, batch_size=n).maps
    ),
    "rise": lambda m, x, n, s: (
        technique("rise")(masks=7, cells=2)(m, x, "class:1", seed=s, batch_size=n).maps
    ),
    "integrated-gradients": lambda m, x, n, s: (
        technique("integrated-gradients")(steps=5)(m, x, "class:1", seed=s, batch_size=n).pixels
    ),
    "smooth-grad": lambda m, x, n, s: (
        technique("smooth-grad")(samples=5)(m, x, "class:1", seed=s, batch_size=n).scores
    ),
    "defence": lambda m, x, n, s: Noise()(m, x, seed=s, batch_size=n).images,
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_draws_depend_on_seed_and_image_and_not_on_the_batch_split(name, images):
    model = linear(std=(0.5,) * 3).defended([Noise(), Flip(share=0.3)])
    run = RUNS[name]
    torch.manual_seed(1)
    whole = run(model, images, 6, 0)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    for size in (1, 4):
        assert torch.allclose(run(model, images, size, 0), whole, atol=1e-5), size
    assert not torch.allclose(run(model, images, 6, 1), whole, atol=1e-3)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_within_a_call_an_image_meets_the_same_draw_in_each_forward(images):
    """The sum of integrated gradients is the difference of two forwards of one linear function."""
    model = linear().defended(Flip())
    result = technique("integrated-gradients")(steps=3)(model, images, "class:1", seed=4)
    assert max(result.notes["completeness_error"]) < 1e-5
    with torch.no_grad(), image_positions(range(6), seed=4):
        assert torch.allclose(model(images)[:, 1], result.scores)


def test_draws_can_be_named_and_outside_a_call_rows_are_images(images):
    model = linear().defended(Noise())
    plain = model(images)
    assert torch.equal(model(images), plain)
    with another_draw(1):
        other = model(images)
    assert (other != plain).any(1).all()
    with another_draw(0), image_rows([3]):
        assert torch.allclose(model(images[3:4]), plain[3:4], atol=1e-6)
        many = model(images[3:4].expand(5, -1, -1, -1))
    assert torch.allclose(many, plain[3:4].expand(5, -1), atol=1e-6)
    with image_rows([2, 5]):
        twice = model(torch.cat([images[[2, 5]]] * 3))
    assert torch.allclose(twice, plain[[2, 5]].repeat(3, 1), atol=1e-6)
    with image_positions([2, 5]), image_rows([1]):
        assert torch.allclose(model(images[5:6]), plain[5:6], atol=1e-6)


def test_two_random_defences_of_a_model_draw_independently(images):
    both = linear().defended([Flip(), Flip()])
    with torch.no_grad():
        seen = torch.stack([_seen(both, images, seed) for seed in range(40)])
    flipped = (seen - images).abs().flatten(2).amax(2) > 1e-6
    assert 0.35 < float(flipped.float().mean()) < 0.65  # never, if both drew the same


def _seen(model, images, seed):
    from timmscope.models.defence import defended_images

    with image_positions(None, seed):
        return defended_images(model.defences, images)


# Expectation over transformation


def test_the_mean_gradient_converges_to_that_of_the_expected_loss(images):
    """With the negative at probability p, E[∇f] = (1 - 2p) w for a linear f."""
    model = linear().defended(Flip(share=0.25))
    weight = model.module.weight.detach()[1].view(1, 3, 4, 4)

    def compute():
        return model.gradient(images, "class:1")

    score, gradient = mean_over_draws(model, compute, step=0, draws=200)
    shares = gradient / weight  # per image 1 - 2 * (share of negatives)
    assert torch.allclose(shares, shares[:, :1, :1, :1].expand_as(shares), atol=1e-3)
    assert float((shares.mean((1, 2, 3)) - 0.5).abs().max()) < 0.25  # 4 standard errors
    expected = 0.75 * model.defended(())(images)[:, 1] + 0.25 * linear()(1 - images)[:, 1]
    assert float((score - expected).abs().max()) < 0.12 * float(
        (linear()(1 - images) - linear()(images))[:, 1].abs().max()
    )
    with another_draw(7):
        _, single = compute()
    assert torch.allclose((single / weight).abs(), torch.ones_like(single), atol=1e-4)


def test_an_attack_of_one_draw_is_wrong_where_the_mean_over_draws_is_right():
    """For a linear f, FGSM must step along the sign of the expected gradient, ±sign(w)."""
    image = torch.full((12, 3, 4, 4), 0.5)  # equal to its negative, so that predictions are too
    model = linear()
    with torch.no_grad():
        model.module.weight[0].zero_()
        model.module.weight[2].fill_(-50)
    behind = model.defended(Flip(share=0.35))
    label = int(model(image[:1]).argmax())
    sign = model.module.weight.detach()[1].sign().view(1, 3, 4, 4) * (1 - 2 * label)

    def right(draws):
        change = technique("fgsm")(epsilon=0.01, draws=draws)(behind, image).images - image
        return float(((change.sign() * sign).mean((1, 2, 3)) == 1).float().mean())

    assert right(1) < 0.9
    assert right(101) == 1


def test_each_step_has_new_draws_and_success_is_judged_on_a_draw_that_no_attack_has_met(images):
    seen = []

    class Watches(AttackTechnique):
        """Does nothing, on three steps of two draws."""

        def perturb(self, model, images, goal):
            for step in range(3):
                mean_over_draws(model, lambda: (model(images),), step=step, draws=2)
            return images

    class Told(Noise):
        """Notes its noise."""

        def transform(self, images, generators):
            changed = super().transform(images, generators)
            seen.append((changed - images)[0, 0, 0, 0].item())
            return changed

    result = Watches()(linear().defended(Told()), images[:1])
    clean, *attack, after, _ = seen
    assert len(attack) == len(set(attack)) == 6
    assert clean not in attack
    assert after == pytest.approx(clean, abs=1e-6)
    assert result.forwards.tolist() == [6]


def test_a_universal_attack_meets_new_draws_at_each_step_whatever_the_batch_size(images):
    seen = []

    class Told(Noise):
        """Notes its noise."""

        def transform(self, images, generators):
            changed = super().transform(images, generators)
            seen.append((changed - images)[:, 0, 0, 0].tolist())
            return changed

    model = linear(std=(0.5,) * 3).defended([Told()])
    attack = technique("universal-perturbation")(epochs=2, batch=3)
    found = {}
    for size in (1, 4):
        seen.clear()
        found[size] = attack(model, images, held_out=0.5, batch_size=size)
        steps = [draw for draw in seen[6 // size + (6 % size > 0) :][:2] for draw in draw]
        assert len({round(draw, 5) for draw in steps}) == len(steps) == 6, steps
    one, four = found.values()
    assert torch.equal(one.perturbation, four.perturbation)
    assert torch.allclose(one.confidence_before, four.confidence_before, atol=1e-5)
    assert torch.allclose(one.confidence_after, four.confidence_after, atol=1e-5)


def test_without_a_random_defence_there_is_one_draw(images):
    result = technique("pgd")(steps=3, draws=50)(linear(), images)
    assert result.forwards.max() == 3
    assert not linear().has_random_defence
    assert linear().defended(Noise()).has_random_defence


# Data sets


def test_a_mined_row_is_that_of_its_image_id_whatever_the_batch(tmp_path):
    spec = "random:test_resnet?seed=0&img_size=32"
    model = load_model(spec, defences="randomized-resize smallest=0.5")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    rows = [
        mine(
            model,
            tmp_path / "images.npz",
            tmp_path / f"{size}",
            layers=["layer2"],
            batch_size=size,
            workers=0,
        )
        .layer("layer2")
        .pooled
        for size in (7, 3)
    ]
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)
    with image_positions([5]):
        image = model.images([pixels[5]])
        alone = pooled_features(model, image, "layer2")[0]
    np.testing.assert_allclose(alone, rows[0][5], rtol=1e-4, atol=1e-5)
    assert np.abs(pooled_features(model, image, "layer2")[0] - rows[0][5]).max() > 1e-3
