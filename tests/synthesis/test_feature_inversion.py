"""Feature inversion against the closed forms of linear models, and on lite0 against known bars."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from timmscope import HookedModel, ParameterError, TechniqueError, each, load_result, match
from timmscope.testing import tiny_images, tiny_model
from timmscope_synthesis import FeatureInversion

B = 80 / 255
PRIORS = {"tv_weight": 0.0, "alpha": 2.0}


class Rows(nn.Module):
    """Features `R · pixels` with orthonormal rows, and logits that are their copies."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.num_classes = features
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(3 * size**2, 3 * size**2, generator=generator, dtype=torch.float64)
        self.flatten = nn.Flatten()
        self.rows = nn.Linear(3 * size**2, features, bias=False)
        with torch.no_grad():
            self.rows.weight.copy_(torch.linalg.qr(square)[0][:features])

    def forward(self, x):
        return self.rows(self.flatten(x))


@pytest.fixture
def linear():
    return HookedModel(Rows(20, 4), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))


@pytest.fixture
def image():
    return 0.35 + 0.3 * torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def projected(model, image):
    """The image's part in the row space, relative to grey."""
    rows = model.module.rows.weight.detach()
    return ((image - 0.5).flatten(1) @ rows.T @ rows).view_as(image)


@pytest.mark.parametrize("alpha_weight", [0.3, 1.0, 3.0])
def test_with_an_l2_prior_a_linear_model_gives_the_ridge_solution(linear, image, alpha_weight):
    # min C |R x − R x₀|² / |φ₀|² + λ mean|x|² / B² is at Rᵀ R x₀ / (1 + λ |φ₀|² / (C N B²))
    made = FeatureInversion(steps=250, weight=1.0, alpha_weight=alpha_weight, **PRIORS)(
        linear, match("rows", images=image)
    )
    energy = linear(image).square().sum()
    expected = projected(linear, image) / (1 + alpha_weight * energy / (16 * B**2))
    assert torch.allclose(made.images - 0.5, expected, atol=1e-5)


def test_without_priors_the_row_space_is_recovered_and_the_rest_stays_noise(linear, image):
    technique = FeatureInversion(steps=250, alpha_weight=0.0, **PRIORS)
    made = technique(linear, match("rows", images=image))
    assert made.final_scores.item() > -1e-6
    assert torch.allclose(projected(linear, made.images), projected(linear, image), atol=1e-5)
    rest = made.images - 0.5 - projected(linear, made.images)
    assert rest.std() > 0.05


def test_a_store_row_is_inverted_without_an_original(linear, image):
    features = linear(image).detach()[0]
    made = FeatureInversion(steps=150)(linear, match("rows", vector=features))
    assert made.originals is None
    assert made.psnr_db is None
    assert made.final_scores.item() > -0.01


def test_each_target_has_its_images_and_its_original_beside_them(tmp_path):
    model, photos = tiny_model(), tiny_images(2)
    goal = match("act1", images=photos)
    made = FeatureInversion(steps=20, count=2, frames=3)(model, goal)
    assert made.targets.tolist() == [0, 0, 1, 1]
    assert torch.equal(made.originals, photos)
    assert not torch.equal(made.images[0], made.images[1])
    scores = [
        model.score(made.images[i : i + 1], match("act1", images=photos[i // 2])).item()
        for i in range(4)
    ]
    assert made.final_scores.tolist() == pytest.approx(scores, rel=1e-4)
    mse = (made.images[2] - photos[1]).double().square().mean()
    assert made.psnr_db[2].item() == pytest.approx(-10 * mse.log10().item(), abs=1e-3)
    assert made.frames.shape == (3, 4, 3, 32, 32)
    assert made.frames.dtype == torch.uint8
    last = made.frames[-1].float() / 255  # the image after the last step
    assert (last - made.images).abs().amax((1, 2, 3))[made.best_step == 19].max() < 0.003
    assert list(made.pictures())[-1] == "frames-003"
    loaded = load_result(made.save(tmp_path / "out"))
    assert torch.equal(loaded.targets, made.targets)
    assert torch.equal(loaded.frames, made.frames)
    assert loaded.summary() == made.summary()
    assert [row["target"] for row in made.summary()] == [0, 0, 1, 1]


def test_an_image_depends_on_its_seed_and_place_only():
    model, goal = tiny_model(), match("act1", images=tiny_images(1))
    alone = FeatureInversion(steps=6)(model, goal)
    again = FeatureInversion(steps=6, count=3, batch_size=1)(model, goal)
    assert torch.equal(alone.images, again.images[:1])
    together = FeatureInversion(steps=6, count=3, batch_size=3)(model, goal)
    assert (together.images - again.images).abs().mean() < 1e-3
    assert not torch.equal(alone.images, FeatureInversion(steps=6)(model, goal, seed=1).images)


def test_the_first_step_is_the_papers(linear, image):
    # One step: m = −g / (1 / lr + |g|), with g per 8-bit unit and lr = N · .05 · 80² / 6.
    technique = FeatureInversion(steps=1, tv_weight=0.0, alpha_weight=0.0, weight=2.0, jitter_px=0)
    start = torch.full((1, 3, 4, 4), 0.45)
    made = technique(linear, match("rows", images=image), init=start)
    rows, wanted = linear.module.rows.weight.detach(), linear(image)
    gradient = 2 * 2 * (linear(start) - wanted) @ rows / wanted.square().sum() / 255
    step = -gradient / (1 / (16 * 0.05 * 80**2 / 6) + gradient.abs())
    assert torch.allclose((made.images - start).flatten(1) * 255, step, atol=1e-4)


def test_the_steps_of_the_first_paper_are_the_hand_computed_ones(linear, image):
    # v ← 0.9 v − 0.004 · N · 80² · ∂(|φ − φ₀|² / |φ₀|²)/∂x in 8-bit units, from the paper's code;
    # at a quarter of the steps the rate is a tenth, and v starts from 0.
    rows = linear.module.rows.weight.detach().double()
    target = linear(image)[0].detach().double()
    x = (torch.full_like(image, 0.45) - 0.5).flatten().double() * 255
    velocity = torch.zeros_like(x)
    for step in range(4):
        error = rows @ (x / 255 + 0.5) - target
        gradient = 2 * (rows.T @ error) / 255 / target.square().sum()
        velocity = (0 if step in (1, 3) else 0.9) * velocity
        velocity = velocity - 0.004 * (1, 0.1, 0.1, 0.01)[step] * 16 * 80**2 * gradient
        x = x + velocity
    made = FeatureInversion(
        steps=4, weight=7.0, schedule="cvpr15", alpha_weight=0.0, tv_weight=0.0
    )(linear, match("rows", images=image), init=torch.full_like(image, 0.45))
    assert torch.allclose(made.images[0].flatten().double(), x / 255 + 0.5, atol=1e-5)


def test_several_layers_are_inverted_in_one_call():
    model, image = tiny_model("cnn"), tiny_images(1)
    layers = [layer.name for layer in model.layers.values() if layer.grid is not None][:2]
    together = FeatureInversion(steps=3)(
        model, each(*(match(name, images=image) for name in layers))
    )
    assert together.targets.tolist() == [0, 1]
    assert together.psnr_db.shape == (2,)
    for row, name in enumerate(layers):
        alone = FeatureInversion(steps=3)(model, match(name, images=image), seed=0)
        assert together.labels[row] == alone.labels[0]
    assert torch.equal(
        together.images[:1], FeatureInversion(steps=3)(model, match(layers[0], images=image)).images
    )


def test_colours_stay_within_their_range():
    model = tiny_model()
    made = FeatureInversion(steps=30, alpha_weight=0.0, tv_weight=0.0, weight=1e4)(
        model, match("act2", images=(tiny_images(1) > 0.5).float())
    )
    assert (made.images - 0.5).square().sum(1).sqrt().max() <= 2 * B + 1e-6
    assert 0 <= made.images.min() <= made.images.max() <= 1


def test_the_total_variation_makes_smoother_inversions():
    model, goal = tiny_model(), match("act2", images=tiny_images(1))

    def roughness(weight):
        made = FeatureInversion(steps=60, weight=1.0, tv_weight=weight)(model, goal)
        return made.images.diff(dim=3).square().mean().item()

    assert roughness(100.0) < 0.2 * roughness(0.0)


def test_an_inversion_of_an_early_layer_of_lite0_is_close(lite0, photos):
    made = FeatureInversion(steps=48, weight=300.0)(lite0, match("blocks.0", images=photos[:1]))
    assert made.final_scores.item() > -0.12
    assert made.psnr_db.item() > 18


def test_wrong_uses_are_one_clear_line(linear, image):
    for parameters in ({"weight": 0.0}, {"alpha": 1.0}, {"beta": 0.5}, {"steps": 0}):
        with pytest.raises(ParameterError, match=next(iter(parameters))):
            FeatureInversion(**parameters)
    goal, starts = match("rows", images=image), image.repeat(2, 1, 1, 1)
    with pytest.raises(ParameterError, match="3 count, 2 initial images"):
        FeatureInversion(count=3, steps=1)(linear, goal, init=starts)
    with torch.no_grad():
        linear.module.rows.weight[:, :] = 0
    with pytest.raises(TechniqueError, match="is zero for image 0 in each of the first 8 steps"):
        FeatureInversion(steps=9)(linear, match("rows", vector=[1.0] * 20))


def inverted(model, photo, layer, weight, steps):
    goal = match(layer, images=photo)
    made = FeatureInversion(weight=weight, steps=steps)(model, goal)
    return -made.final_scores.item(), made.psnr_db.item()


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param("blocks.0", marks=pytest.mark.soak),
        pytest.param("blocks.2", marks=pytest.mark.slow),
    ],
)
def test_a_strong_match_inverts_an_early_layer_within_a_twentieth(lite0, photos, layer):
    assert inverted(lite0, photos[:1], layer, 300.0, 350)[0] < 0.05


@pytest.mark.slow
def test_the_bars_of_lite0_are_met_and_deeper_layers_tell_less(lite0, photos):
    layers = ("blocks.0", "blocks.4", "classifier")
    found = [inverted(lite0, photos[:1], layer, 100.0, 180) for layer in layers]
    assert all(error < 0.1 for error, _ in found)
    noise = [psnr for _, psnr in found]
    assert all(a > b for a, b in itertools.pairwise(noise))
