"""Every synthesis makes an image for every architecture, or refuses it in one line."""

import pytest
import torch
from tests.registry.hooks.test_architectures import ARCHITECTURES

from timmscope import TimmscopeError, load_model, match, technique
from timmscope_registry.hooks import fingerprint

SHORT = {
    "activation-maximization": {"steps": 2},
    "class-visualization": {"steps": 2},
    "deep-dream": {"octaves": 1, "steps": 2},
    "deep-inversion": {"steps": 2},
    "feature-accentuation": {"steps": 2, "crops": 1},
    "feature-inversion": {"steps": 2},
    "maco": {"steps": 2, "crops": 2, "size": 256},
}


def random_model(name):
    expected = ARCHITECTURES[name]
    options = "".join(f"&{key}={value}" for key, value in expected.options.items())
    height, width = expected.shape
    size = f"&input_size=3,{height},{width}" if height != width else f"&img_size={height}"
    return load_model(f"random:{name}?seed=0{size}{options}")


@pytest.mark.soak
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("name", list(SHORT))
def test_every_architecture_is_imagined_or_refused_in_one_line(name, architecture):
    model = random_model(architecture)
    image = torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(1))
    layer = next(layer.name for layer in model.layers.values() if layer.grid is not None)
    goal = match(layer, images=image) if name == "feature-inversion" else "class:3"
    init = image if name in ("feature-accentuation", "deep-dream") else None
    before = fingerprint(model.module)
    told = ""
    try:
        made = technique(name)(**SHORT[name])(model, goal, init=init)
    except TimmscopeError as refusal:
        told = str(refusal)
    else:
        assert bool(torch.isfinite(made.images).all())
        assert bool(torch.isfinite(made.final_scores).all())
    assert "\n" not in told
    assert fingerprint(model.module).difference(before) == []
