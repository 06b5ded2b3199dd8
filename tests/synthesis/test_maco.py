"""MACO: the spectrum stays, the score rises, a folder's spectrum is used."""

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import ParameterError, channel, falling_spectrum, load_model
from timmscope_synthesis.maco import Maco

QUICK = {"steps": 6, "crops": 2, "size": 32}


@pytest.fixture(scope="module")
def model():
    return load_model("random:resnet18?seed=0&img_size=32")


def magnitudes(images):
    latent = images.clamp(1e-6, 1 - 1e-6).logit()
    return torch.fft.rfft2(latent, norm="ortho").abs()[..., 1:-1]


def grey_model():
    return load_model("random:resnet18?seed=0&img_size=32&in_chans=1")


def test_the_magnitudes_stay_those_of_the_spectrum():
    made = Maco(**QUICK)(grey_model(), channel("layer2", 3))
    ratio = magnitudes(made.images)[0, 0] / falling_spectrum((32, 32), 1)[0, :, 1:-1]
    # The transform averages waves that are stored twice; all others keep their magnitude.
    assert (ratio.std() / ratio.mean()).item() < 0.02


def test_a_folder_gives_the_spectrum(tmp_path):
    model = grey_model()
    waves = np.arange(32)
    for number in range(4):  # one wave only, of 8 px, at four places
        line = 0.5 + 0.4 * np.sin(2 * np.pi * (waves / 8 + number / 4))
        pixels = np.repeat((255 * line)[None], 32, axis=0).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    made = Maco(**QUICK, spectrum=str(tmp_path))(model, channel("layer2", 3))
    found = torch.fft.rfft2(made.images[0, 0] - made.images.mean(), norm="ortho").abs()
    assert divmod(int(found.argmax()), found.shape[1])[1] in (3, 4, 5)
    assert made.provenance.named


def test_the_score_rises_and_importance_is_relative(model):
    made = Maco(steps=24, crops=2, size=32)(model, channel("layer2", 3), seed=1)
    first = Maco(steps=1, crops=2, size=32)(model, channel("layer2", 3), seed=1)
    assert made.final_scores[0] > first.final_scores[0]
    assert made.opacity.shape == (1, 32, 32)
    share = (made.opacity == 1).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.02)
    assert set(made.pictures()) == {"image-000", "over-white-000"}
    white = made.pictures()["over-white-000"]
    assert torch.allclose(white, 1 - made.opacity[0] * (1 - made.images[0]))


def test_an_image_does_not_depend_on_the_others(model):
    several = Maco(**QUICK)(model, "layer2[3|7]")
    alone = Maco(**QUICK)(model, channel("layer2", 3))
    assert torch.equal(several.images[:1], alone.images)
    again = Maco(**QUICK)(model, channel("layer2", 3))
    assert torch.equal(again.images, alone.images)


def test_three_images_are_too_few_for_a_spectrum(model, tmp_path):
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / f"{number}.png")
    with pytest.raises(ParameterError, match=r"has 3 images, too few .* at least 4"):
        Maco(**QUICK, spectrum=str(tmp_path))(model, channel("layer2", 3))
