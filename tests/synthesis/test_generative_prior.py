"""A generative prior finds the code that its objective and its penalty ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.digits.images import write_digits
from tests.digits.load import digits_network
from torch import Tensor, nn

from timmscope import HookedModel, ParameterError, class_logit
from timmscope_registry.hooks import OwnGenerators
from timmscope_synthesis import DecoderTraining, GenerativePrior

SIDE, LENGTH = 4, 3


class Linear(nn.Module):
    """`G(z) = A z + ½`."""

    code_length = LENGTH

    def __init__(self, channels: int = 1, bounds: float | None = None) -> None:
        super().__init__()
        with OwnGenerators(1):
            values = torch.randn(channels * SIDE * SIDE, LENGTH) * 0.03
        self.matrix = nn.Parameter(values)
        self.channels = channels
        if bounds is not None:
            self.code_bounds = lambda: (
                torch.full((LENGTH,), -bounds),
                torch.full((LENGTH,), bounds),
            )

    def forward(self, code: Tensor) -> Tensor:
        return (code @ self.matrix.T).reshape(-1, self.channels, SIDE, SIDE) + 0.5


def scorer(channels: int = 1) -> HookedModel:
    """A model whose logits are linear in the pixels."""
    with OwnGenerators(2):
        module = nn.Sequential(nn.Flatten(), nn.Linear(channels * SIDE * SIDE, 3))
    size = (channels, SIDE, SIDE)
    return HookedModel(module.eval(), mean=(0,) * channels, std=(1,) * channels, input_size=size)


def weight(model: HookedModel, target: int) -> Tensor:
    return model.module[1].weight.detach()[target]  # type: ignore[index, union-attr]


def code(decoder: Linear, image: Tensor) -> Tensor:
    """The code of a decoded image."""
    return torch.linalg.pinv(decoder.matrix.detach()) @ (image.flatten() - 0.5)


def start(place: int = 0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
    return torch.randn(LENGTH, generator=generator)


def prior(**chosen: Any) -> GenerativePrior:
    return GenerativePrior(**{"robust": False, "compare": False} | chosen)


def test_of_a_linear_decoder_and_score_the_code_is_that_of_the_closed_form():
    """`max w·(A z + ½) − λ |z|²` is at `Aᵀw / (2 λ)`."""
    decoder, model = Linear(), scorer()
    for penalty, target in ((0.02, 1), (0.01, 2)):
        made = prior(decoder=decoder, l2_weight=penalty, steps=144, step_size=0.1)(model, target)
        expected = decoder.matrix.detach().T @ weight(model, target) / (2 * penalty)
        assert torch.allclose(
            code(decoder, made.images[0]), expected, atol=2e-3
        )  # scores have 7 digits


def test_a_normalised_step_has_its_mean_size_then_decays_and_stays_within_the_bounds():
    decoder, model = Linear(bounds=1.0), scorer()
    chosen = {"optimizer": "normalised", "step_size": 0.4, "steps": 1, "decay": 0.1}
    gradient = decoder.matrix.detach().T @ weight(model, 1) - 2 * 0.01 * start()
    stepped = 0.9 * (start() + 0.4 * gradient / gradient.abs().mean())
    for clip, expected in ((False, stepped), (True, stepped.clamp(-1, 1))):
        made = prior(decoder=decoder, l2_weight=0.01, clip=clip, **chosen)(model, 1)
        assert torch.allclose(code(decoder, made.images[0]), expected, atol=1e-5)
    assert float(stepped.abs().max()) > 1


def test_normalised_steps_become_smaller_down_to_nothing():
    decoder, model = Linear(), scorer()
    made = prior(decoder=decoder, optimizer="normalised", step_size=0.4, steps=3, l2_weight=0)
    gradient = decoder.matrix.detach().T @ weight(model, 0)
    expected = start() + (0.4 + 0.2) * gradient / gradient.abs().mean()
    assert torch.allclose(code(decoder, made(model, 0).images[0]), expected, atol=1e-5)


def test_the_free_score_is_that_of_pixels_that_climb_without_the_prior():
    model = scorer()
    made = prior(decoder=Linear(), compare=True, steps=5)(model, 2)
    generator = torch.Generator().manual_seed(0)
    latent = (torch.randn(1, SIDE, SIDE, generator=generator) * 0.01).requires_grad_()
    adam = torch.optim.Adam([latent], lr=0.05)
    for _ in range(5):
        adam.zero_grad()
        (-model(latent.sigmoid()[None])[0, 2]).backward()
        adam.step()
    expected = float(model(latent.detach().sigmoid()[None])[0, 2])
    assert made.notes["free_score"] == [pytest.approx(expected, abs=1e-5)]
    assert made.notes["prior_score"] == [pytest.approx(float(made.final_scores[0]), abs=1e-6)]
    assert made.further_passes["decoder"]["backwards"] == 5


def test_the_distance_is_that_to_the_nearest_of_the_images(tmp_path):
    model, decoder = scorer(), Linear()
    some = torch.rand(300, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    made = prior(decoder=decoder, count=2, training_images=some, compare=True, steps=2)(model, 0)
    differences = (some[None] - made.images[:, None]).flatten(2).norm(dim=2)
    assert made.notes["nearest_training"] == pytest.approx(differences.amin(1).tolist(), abs=1e-5)
    assert len(made.notes["free_nearest_training"]) == 2


def test_images_do_not_depend_on_each_other_and_repeat():
    decoder, model = Linear(), scorer()
    together = prior(decoder=decoder, count=3, batch_size=3, steps=6, robust=True)(model, 1)
    alone = prior(decoder=decoder, count=3, batch_size=1, steps=6, robust=True)(model, 1)
    assert torch.allclose(together.images, alone.images, atol=1e-6)
    assert not torch.equal(alone.images[0], alone.images[1])
    again = prior(decoder=decoder, count=3, batch_size=1, steps=6, robust=True)(model, 1)
    assert torch.equal(again.images, alone.images)


def test_a_decoded_image_of_another_size_is_resized_to_the_models_input():
    model = HookedModel(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        mean=(0,), std=(1,), input_size=(1, 16, 12),
    )  # fmt: skip
    made = prior(decoder=Linear(), steps=2)(model, 1)
    assert made.images.shape == (1, 1, 16, 12)


class Normed(Linear):
    """Has a batch norm, which would follow its codes in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(LENGTH)

    def forward(self, code: Tensor) -> Tensor:
        return super().forward(self.norm(code))


def test_a_decoder_in_train_mode_is_as_it_was_also_after_an_error():
    decoder, model = Normed().train(), scorer()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    prior(decoder=decoder, steps=3)(model, 1)
    with pytest.raises(ParameterError, match="leave init unset"):
        prior(decoder=decoder, steps=3)(model, 1, init=torch.rand(1, 1, SIDE, SIDE))
    assert decoder.training
    assert decoder.norm.training
    assert all(weight.requires_grad for weight in decoder.parameters())
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, before[name])


class Random(Linear):
    def forward(self, code: Tensor) -> Tensor:
        return super().forward(code) + 0.01 * torch.rand(1)


class Scaled(Linear):
    def forward(self, code: Tensor) -> Tensor:
        return 2 * super().forward(code) - 1


def no_length() -> nn.Module:
    decoder = Linear()
    decoder.code_length = None  # type: ignore[assignment]
    return decoder


def five_units() -> nn.Module:
    decoder = Linear()
    decoder.code_length = 5
    return decoder


@pytest.mark.parametrize(
    ("decoder", "chosen", "said"),
    [
        (Linear(3), {}, "makes images of 3 channels, and module:Sequential takes 1"),
        (Linear(), {"code_length": 4}, "code_length is 4, and the codes of module:Linear have 3"),
        (no_length(), {}, "does not say how long its codes are: give code_length"),
        (five_units(), {}, "module:Linear does not decode codes of 5 units"),
        (nn.Linear(3, 2), {}, r"makes a tensor \(2, 2\) of two codes"),
        (Random(), {}, "makes two images of one code"),
        (Scaled(), {}, r"expected \[0, 1\]: wrap it"),
        ("nowhere", {}, "'decoder' of generative-prior"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused_in_one_line(decoder, chosen, said):
    with pytest.raises(ParameterError, match=said) as error:
        prior(decoder=decoder, **chosen)(scorer(), 1)
    assert "\n" not in str(error.value)


def test_the_length_of_a_code_is_that_of_the_first_layer():
    class Transposed(nn.Sequential):
        def forward(self, code: Tensor) -> Tensor:
            return super().forward(code).sigmoid()

    model = scorer()
    linear = Transposed(nn.Linear(7, 16), nn.Unflatten(1, (1, 4, 4)))
    transposed = Transposed(nn.ConvTranspose2d(7, 1, SIDE))
    for decoder in (linear, transposed):
        assert prior(decoder=decoder, steps=2)(model, 1).images.shape == (1, 1, SIDE, SIDE)


def test_training_images_are_those_of_the_card(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (12, SIDE, SIDE, 1), np.uint8)
    for name, part in (("some", images[:10]), ("other", images[2:])):
        np.savez(tmp_path / f"{name}.npz", images=part)
    model, some, folder = scorer(), tmp_path / "some.npz", tmp_path / "decoder"
    DecoderTraining(width=1, code_length=2, epochs=1)(model, some, output=folder)
    named = prior(decoder=folder, training_images=some, steps=2)(model, 1)
    assert named.provenance.named["decoder"]["technique"] == "timmscope:decoder-training"
    assert len(named.notes["nearest_training"]) == 1
    with pytest.raises(ParameterError, match="holds other images than those") as error:
        prior(decoder=folder, training_images=tmp_path / "other.npz", steps=2)(model, 1)
    assert "\n" not in str(error.value)


# Real digits


@pytest.mark.slow
def test_digits_of_a_prior_look_like_digits_and_those_of_pixels_do_not(tmp_path: Path):
    trained, held_out = write_digits(tmp_path / "images")
    model, judge = digits_network("standard"), digits_network("fast")
    training = DecoderTraining(kind="vae", code_length=8, width=16, epochs=20)
    training(model, trained, held_out=held_out, output=tmp_path / "vae")
    made = GenerativePrior(
        decoder=tmp_path / "vae", judge=judge, training_images=trained, batch_size=10
    )(model, class_logit(list(range(10))))
    probabilities = model(made.images).softmax(1).diagonal()
    assert float(probabilities.min()) >= 0.99
    assert made.notes["transfer_rank"] == [1] * 10
    near, free = (made.notes[name] for name in ("nearest_training", "free_nearest_training"))
    assert float(np.median(near)) <= 1.2
    assert float(np.median(free)) >= 3
    scores = zip(made.notes["prior_score"], made.notes["free_score"], strict=True)
    assert all(prior < free for prior, free in scores)
