"""DeepDream: its step, octaves, tiles and zoom, and real dreams of a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from timmscope import HookedModel, ParameterError, TechniqueError, guide, load_model, load_result
from timmscope.cli import main
from timmscope_synthesis import DeepDream
from timmscope_synthesis.deep_dream import _Dream

DATA = Path(skimage.__file__).parent / "data"


def network(channels: int = 3) -> HookedModel:
    """Two small convolutions with strides of 1."""
    torch.manual_seed(1)
    module = nn.Sequential()
    module.first = nn.Conv2d(channels, 6, 3, padding=1)
    module.act = nn.Tanh()
    module.last = nn.Conv2d(6, 4, 3, padding=1)
    return HookedModel(
        module, mean=(0,) * channels, std=(1,) * channels, input_size=(channels, 48, 48)
    )


def pictures(count: int = 1, size: tuple[int, int] = (40, 56), channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, channels, *size, generator=generator) * 0.8 + 0.1


def energy_gradient(model: HookedModel, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    output = model.module(images)
    (gradient,) = torch.autograd.grad(output.square().mean((1, 2, 3)).sum(), images)
    return gradient


def test_steps_of_size_zero_give_the_image_back_through_all_octaves():
    model, images = network(), pictures(2)
    made = DeepDream(step_size=0, octaves=5, steps=2, jitter_px=9)(model, "last", init=images)
    assert float((made.images - images).abs().max()) < 1e-6
    assert made.images.shape == images.shape


def test_one_step_is_the_gradient_over_its_mean():
    model, images = network(), pictures()
    settings = {"octaves": 1, "steps": 1, "jitter_px": 0, "step_size": 0.03}
    made = DeepDream(**settings)(model, "last", init=images)
    gradient = energy_gradient(model, images)
    expected = (images + 0.03 * gradient / gradient.abs().mean()).clamp(0, 1)
    assert float((made.images - expected).abs().max()) < 1e-6
    moved = (made.images - images).abs().mean()
    assert float(moved) == pytest.approx(0.03, rel=0.02)  # a few values meet 0 or 1
    assert made.scores.shape == (1, 1)
    energy = model.module(images).detach().square().mean()
    assert float(made.scores[0, 0]) == pytest.approx(float(energy), rel=1e-5)
    assert made.best_step.tolist() == [0]


def test_octaves_add_what_smaller_ones_found():
    """Two octaves of one step each, written out."""
    model, images = network(), pictures(size=(48, 64))
    made = DeepDream(octaves=2, octave_scale=2, steps=1, jitter_px=0, step_size=0.02)(
        model, "last", init=images
    )

    def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
        return functional.interpolate(values, size, mode="bilinear", antialias=True)

    small = resized(images, (24, 32))
    gradient = energy_gradient(model, small)
    dreamt = (small + 0.02 * gradient / gradient.abs().mean()).clamp(0, 1)
    large = (images + resized(dreamt - small, (48, 64))).clamp(0, 1)
    gradient = energy_gradient(model, large)
    expected = (large + 0.02 * gradient / gradient.abs().mean()).clamp(0, 1)
    assert float((made.images - expected).abs().max()) < 1e-6


def test_tiles_give_the_gradient_of_the_whole_away_from_their_borders():
    model, images = network(), pictures(size=(160, 224))
    technique = DeepDream(tile_px=64)
    assert technique._tiles(160) == [(0, 64), (64, 96), (96, 160)]
    goal = model_goal(model)
    dream = _Dream(technique, model, goal, 0, torch.Generator(), [(160, 224)])
    whole = _Dream(DeepDream(), model, goal, 0, torch.Generator(), [(160, 224)])
    with model.record("last") as recording:
        score, gradient = dream._gradient(recording, images)
        expected_score, expected = whole._gradient(recording, images)
    assert torch.allclose(expected, energy_gradient(model, images), atol=1e-9)
    away = torch.zeros(160, 224, dtype=torch.bool)
    for top, bottom in technique._tiles(160):
        for left, right in technique._tiles(224):
            away[top + 4 : bottom - 4, left + 4 : right - 4] = True
    difference = (gradient - expected).abs()[0]
    assert float(difference[:, away].max()) < 1e-5 * float(expected.abs().max())
    assert float(difference.max()) > 1e-3 * float(expected.abs().max())  # at the borders
    assert float(score) == pytest.approx(float(expected_score), rel=0.02)


def model_goal(model: HookedModel):  # type: ignore[no-untyped-def]
    from timmscope.objectives import layer_energy

    return layer_energy("last").resolve(model).bind(model, None)


def test_images_of_a_call_are_independent_and_seeds_decide():
    model, images = network(), pictures(3)
    technique = DeepDream(octaves=2, steps=2)
    together = technique(model, "last", init=images, seed=4)
    alone = technique(model, "last", init=images[:1], seed=4)
    assert torch.equal(together.images[:1], alone.images)
    assert torch.equal(technique(model, "last", init=images, seed=4).images, together.images)
    assert not torch.equal(technique(model, "last", init=images, seed=5).images, together.images)
    assert together.scores.shape == (4, 3)


def test_a_zoom_starts_each_frame_from_the_middle_of_the_one_before(tmp_path):
    model, images = network(), pictures()
    settings = {"octaves": 2, "steps": 2, "jitter_px": 0}
    film = DeepDream(**settings, frames=3, zoom=0.25)(model, "last", init=images)
    one = DeepDream(**settings)(model, "last", init=images)
    assert film.frames.shape == (3, 1, 3, 40, 56)
    assert film.scores.shape == (12, 1)
    assert float((film.frames[0, 0] / 255 - one.images[0]).abs().max()) < 1 / 255
    assert float((film.frames[2, 0] / 255 - film.images[0]).abs().max()) < 1 / 255
    still = DeepDream(**settings | {"step_size": 0}, frames=2, zoom=1.0)(model, "last", init=images)
    middle = functional.interpolate(images[..., 10:30, 14:42], (40, 56), mode="bicubic")
    inside = (still.images - middle.clamp(0, 1))[..., 4:-4, 4:-4]
    assert float(inside.abs().max()) < 1e-4
    assert (film.save(tmp_path / "film") / "animation.webp").exists()


def test_frames_without_a_zoom_show_the_dream_from_coarse_to_fine():
    model, images = network(), pictures()
    made = DeepDream(octaves=2, steps=4, frames=4)(model, "last", init=images)
    assert made.frames.shape == (4, 1, 3, 40, 56)
    assert float((made.frames[-1, 0] / 255 - made.images[0]).abs().max()) < 1 / 255


def test_a_picture_keeps_its_own_size_up_to_the_limit(tmp_path):
    pixels = (pictures(size=(30, 70))[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    Image.fromarray(pixels).resize((2048, 64)).save(tmp_path / "wide.png")
    settings = {"octaves": 1, "steps": 1}
    made = DeepDream(**settings)(network(), "last", init=tmp_path / "small.png")
    assert made.images.shape == (1, 3, 30, 70)
    made = DeepDream(**settings)(network(), "last", init=tmp_path / "wide.png")
    assert made.images.shape == (1, 3, 32, 1024)
    made = DeepDream(**settings, size=35)(network(), "last", init=tmp_path / "small.png")
    assert made.images.shape == (1, 3, 15, 35)
    made = DeepDream(**settings)(network(channels=1), "last", init=tmp_path / "small.png")
    assert made.images.shape == (1, 1, 30, 70)
    made = DeepDream(**settings)(network(), "last")  # from noise, at the model's size
    assert made.images.shape == (1, 3, 48, 48)


def test_a_blur_smooths_the_step():
    model, images = network(), pictures()
    settings = {"octaves": 1, "steps": 1, "jitter_px": 0, "step_size": 0.03}
    made = DeepDream(**settings, blur_px=2)(model, "last", init=images)
    gradient = energy_gradient(model, images)[0].numpy()
    smooth = torch.from_numpy(gaussian_filter(gradient, (0, 2, 2), mode="mirror", radius=6))
    expected = (images + 0.03 * smooth / smooth.abs().mean()).clamp(0, 1)
    assert float((made.images - expected).abs().max()) < 1e-5


def test_a_model_of_one_size_is_refused_with_what_to_do_and_works_with_one_octave(capsys):
    model = load_model("random:vit_tiny_patch16_224?seed=0&img_size=64")
    with pytest.raises(ParameterError, match=r"does not take images of 23×23 px.*octaves=1"):
        DeepDream(steps=1)(model, "blocks.2")
    made = DeepDream(steps=1, octaves=1)(model, "blocks.2")
    assert made.images.shape == (1, 3, 64, 64)
    status = main(["run", "deep-dream", model.id, "--target", "blocks.2", "--zoom", "0"])
    assert status == 2
    assert "zoom" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_names_the_step():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.mean((1, 2, 3), keepdim=True).expand(-1, 2, 3, 3) - 0.53).sqrt()

    model = HookedModel(Root(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 32, 32))
    with pytest.raises(TechniqueError, match=r"not finite at step 0 of image 0"):
        DeepDream(octaves=1)(model, "logits", init=torch.full((1, 3, 32, 32), 0.5))


class TestRealDreams:
    @pytest.fixture(scope="class")
    @staticmethod
    def cat() -> Tensor:
        picture = Image.open(DATA / "chelsea.png").resize((225, 150))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255

    @pytest.fixture(scope="class")
    @staticmethod
    def dream(lite0: HookedModel, cat: Tensor):  # type: ignore[no-untyped-def]
        return DeepDream(octaves=3)(lite0, "blocks.4", init=cat)

    def test_every_octave_raises_the_objective(self, dream, lite0, cat, tmp_path):
        octaves = dream.scores[:, 0].reshape(3, 10)
        assert bool((octaves[:, -1] > 1.35 * octaves[:, 0]).all())
        plain = float(lite0.score(cat, model_energy(lite0)))
        assert float(dream.final_scores[0]) > 1.7 * plain
        again = load_result(dream.save(tmp_path / "dream"))
        assert float((again.images - dream.images).abs().max()) < 1 / 255

    def test_a_blur_makes_it_smoother_and_keeps_most_of_the_gain(self, dream, lite0, cat):
        smooth = DeepDream(octaves=3, blur_px=1)(lite0, "blocks.4", init=cat)

        def roughness(images: Tensor) -> float:
            return float((images[..., 1:] - images[..., :-1]).square().mean())

        plain = float(lite0.score(cat, model_energy(lite0)))
        gains = [float(made.final_scores[0]) - plain for made in (smooth, dream)]
        assert gains[0] > 0.7 * gains[1]
        assert roughness(smooth.images) - roughness(cat) < 0.7 * (
            roughness(dream.images) - roughness(cat)
        )

    def test_a_guide_draws_the_image_towards_itself(self, lite0, cat):
        goal = guide("blocks.4", images=cat)
        settings = {"octaves": 1, "steps": 1, "jitter_px": 0}
        guided = DeepDream(**settings)(lite0, goal, init=cat).images - cat
        free = DeepDream(**settings)(lite0, "blocks.4", init=cat).images - cat
        cosine = functional.cosine_similarity(guided.flatten(), free.flatten(), dim=0)
        assert float(cosine) > 0.9


def model_energy(model: HookedModel):  # type: ignore[no-untyped-def]
    from timmscope.objectives import layer_energy

    return layer_energy("blocks.4").resolve(model).bind(model, None)
