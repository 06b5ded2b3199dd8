"""What holds for every technique that changes images: state, batches, objectives, architectures."""

from __future__ import annotations

import contextlib

import pytest
import torch

from timmscope import (
    HookedModel,
    ObjectiveError,
    channel,
    class_logit,
    direction,
    images_per_forward,
    layer_energy,
    load_model,
    neuron,
    reporting,
    technique,
)
from timmscope.techniques import session
from timmscope_registry.hooks import fingerprint

QUICK = {
    "occlusion": {"patch_px": 16, "stride_px": 16},
    "rise": {"masks": 12},
    "score-cam": {"relu": False},
    "ablation-cam": {"relu": False},
}
ARCHITECTURES = [
    "resnet18?img_size=64",
    "efficientnet_b0?img_size=64",
    "tf_efficientnet_lite0?img_size=64",
    "mobilenetv3_small_100?img_size=64",
    "convnext_atto?img_size=64",
    "vgg11?img_size=64&mlp_ratio=0.05",
    "densenet121?img_size=64",
    "regnety_002?img_size=64",
    "vit_tiny_patch16_224?img_size=64",
    "deit_tiny_distilled_patch16_224?img_size=64",
    "vit_small_patch14_reg4_dinov2?img_size=56",
    "swin_tiny_patch4_window7_224?img_size=64",
    "mambaout_femto?img_size=64",
    "mixer_s32_224?img_size=96",
    "hiera_tiny_224?img_size=64",
    "cait_xxs24_224?img_size=64",
    "levit_128s?img_size=128",
]


def made(name: str, **more):
    return technique(name)(**{**QUICK[name], **more})


@pytest.fixture(scope="module")
def small() -> HookedModel:
    return load_model("random:resnet18?img_size=32&num_classes=10")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("where", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_training_model_comes_back_untouched(name, where, small, images):
    layer = {"layer": "layer1"} if name.endswith("cam") else {}
    expected = made(name, **layer)(small, images, class_logit([3, 1, 7])).raw
    module = small.module.train()
    module.conv1.weight.requires_grad_(False)
    try:
        with where():
            before = fingerprint(module)
            found = made(name, **layer)(small, images, class_logit([3, 1, 7])).raw
            assert fingerprint(module).difference(before) == []
    finally:
        module.eval().conv1.weight.requires_grad_(True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["occlusion", "score-cam", "ablation-cam"])
def test_an_image_has_the_same_map_alone_to_the_last_bit(name, small, images):
    layer = {"layer": "layer1"} if name.endswith("cam") else {}
    whole = made(name, **layer)(small, images, class_logit([3, 1, 7])).raw
    for row, index in enumerate([3, 1, 7]):
        alone = made(name, **layer)(small, images[row : row + 1], index).raw[0]
        assert torch.allclose(whole[row], alone, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))
        if name == "occlusion":
            assert torch.equal(whole[row], alone)


@pytest.mark.parametrize("name", ["occlusion", "rise"])
def test_noise_and_masks_belong_to_an_image_however_the_batch_is_split(name, small, images):
    more = {"baseline": "noise"} if name == "occlusion" else {}
    whole = made(name, **more)(small, images, 3, seed=5).raw
    pieces = made(name, **more)(small, images, 3, seed=5, batch_size=2).raw
    assert torch.allclose(whole, pieces, rtol=1e-3, atol=1e-5)
    assert torch.equal(made(name, **more)(small, images, 3, seed=5).raw, whole)
    assert not torch.allclose(whole, made(name, **more)(small, images, 3, seed=6).raw, rtol=1e-3)


@pytest.mark.parametrize("name", QUICK)
def test_every_kind_of_objective_has_a_map(name, small, images):
    layer = {"layer": "layer1"} if name.endswith("cam") else {}
    goals = [
        "top",
        class_logit([3, 1, 7]),
        channel("layer2", 5),
        neuron("layer2", 5, 1, 1),
        layer_energy("layer2"),
        direction("layer2", torch.linspace(-1, 1, 128)),
        class_logit(1) - 0.5 * channel("layer2", 3),
    ]
    for goal in goals:
        result = made(name, **layer)(small, images[:2] if goal != goals[1] else images, goal)
        assert bool(torch.isfinite(result.raw).all())
        assert bool((result.raw.amax((1, 2)) > result.raw.amin((1, 2))).all())


@pytest.mark.parametrize("name", QUICK)
def test_a_target_outside_the_classes_is_refused(name, small, images):
    with pytest.raises(ObjectiveError, match="classes 0 to 9, there is no class 10"):
        made(name)(small, images, 10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_map_of_its_own(name, awake):
    model = awake(f"random:{name}&num_classes=10")
    image = torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(0))
    before = fingerprint(model.module)
    for each in ("occlusion", "rise"):
        heat = made(each)(model, image, 3).raw[0]
        assert heat.shape == image.shape[2:]
        assert float(heat.max()) > float(heat.min())
    gridded = [layer for layer in model.layers.values() if layer.grid and layer.grid[0] > 1]
    layer = min(gridded, key=lambda layer: (layer.channels, layer.order)).name
    for attribution in (
        technique("ablation-cam")(relu=False, layer=layer),
        technique("score-cam")(relu=False, layer=layer),
    ):
        heat = attribution(model, image, 3).raw[0]
        assert heat.shape == model.layers[layer].grid
        assert float(heat.max()) > float(heat.min())
    assert fingerprint(model.module).difference(before) == []


@pytest.mark.parametrize("name", QUICK)
def test_bfloat16_models_give_nearly_the_same_map(name):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    full, half = (load_model("random:resnet18?img_size=64&num_classes=10") for _ in range(2))
    half.module.to(torch.bfloat16)
    more = {"layer": "layer1"} if name.endswith("cam") else {"patch_px": 32, "stride_px": 32}
    more = {} if name == "rise" else more
    expected, found = (made(name, **more)(model, images, 3).maps for model in (full, half))
    assert found.dtype == torch.float32
    likeness = torch.nn.functional.cosine_similarity(found.flatten(1), expected.flatten(1))
    assert float(likeness.min()) > (0.8 if name == "ablation-cam" else 0.9)


def test_what_goes_through_at_once_fits_the_budget_and_the_callers_wish(small, images):
    largest = max(torch.Size(layer.shape).numel() for layer in small.layers.values())
    room = images_per_forward(small, images)
    assert 1 <= room <= 8
    assert room * largest * 4 < session.FORWARD_BUDGET_BYTES
    huge = torch.zeros(1, 3, 1, 1).expand(1, 3, 32 * 64, 32 * 64)
    assert images_per_forward(small, huge) < room
    sizes = []
    handle = small.module.conv1.register_forward_hook(lambda m, a, out: sizes.append(len(out)))
    technique("occlusion")(patch_px=8)(small, images[:1], 3, batch_size=5)
    handle.remove()
    assert max(sizes) == 5


def test_long_work_reports_its_progress(small, images):
    seen = {}

    class Reporter:
        @contextlib.contextmanager
        def open(self, description, total):
            seen[description] = [0, total]

            def advance(steps):
                seen[description][0] += steps

            yield advance

    with reporting(Reporter()):
        made("rise")(small, images[:1], 3)
    assert seen["masking"][0] == seen["masking"][1]
    assert seen["masking"][1] >= 2


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "convnext_atto", "vit_tiny_patch16_224?depth=3"]
)
def test_a_forward_of_as_many_as_fit_stays_within_the_budget(name, monkeypatch):
    """Every allocation of the forward is counted, by torch's own profiler."""
    budget = 100 << 20
    monkeypatch.setattr(session, "FORWARD_BUDGET_BYTES", budget)
    monkeypatch.setattr(session, "MAX_IMAGES_PER_FORWARD", {})
    model = load_model(f"random:{name}")
    image = torch.rand(1, *model.input_size)
    count = images_per_forward(model, image)
    assert count >= 2
    model(image)
    sizes: list[int] = []
    handle = model.module.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        technique("occlusion")(patch_px=112, stride_px=112)(model, image, 3)
    handle.remove()
    assert max(sizes) <= count
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert 0 < peak <= budget
