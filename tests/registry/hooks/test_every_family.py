"""The hooks work on the smallest member of every timm family: `make soak`.

For each, recorded values equal those of plain forward hooks, the maps include timm's own
intermediates, the gradient at a cut equals that of the whole graph, and the model is unchanged
after success and after an exception.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from timmscope_registry.hooks import LOGITS, ModelHooks, ensure_torchvision, fingerprint
from timmscope_registry.hooks.parts import parts_of

ensure_torchvision()

import timm  # noqa: E402
from timm.models import list_models, list_modules, model_entrypoint  # noqa: E402

pytestmark = pytest.mark.soak

SMALL = (
    "atto femto pico nano zepto xxxs xxs xxt _xs _t0 _s0 _b0 tiny mini 050 _n_ _s_ small 18 lite"
)

NO_INTERMEDIATES = {
    "efficientvim": "its blocks return (map, state)",
    "tnt": "its blocks return (pixels, patches)",
    "coat": "sums its parallel branches outside any module",
    "mvitv2": "its blocks return (tokens, size), which is no layer, unlike their parts",
}
"""Families with intermediates that no module returns, and the reason."""


def smallest(family: str) -> str:
    def guess(name: str) -> tuple[int, int]:
        ranks = [rank for rank, word in enumerate(SMALL.split()) if word in name]
        return min(ranks, default=99), len(name)

    def size(name: str) -> int:
        with torch.device("meta"):
            return sum(weight.numel() for weight in model_entrypoint(name)().parameters())

    return min(sorted(list_models(module=family), key=guess)[:4], key=size)


def create(name: str) -> tuple[nn.Module, ModelHooks, Tensor]:
    """Create the model at 128 px, else at 112 (for patches of 14 px), else at its own size."""
    generator = torch.Generator().manual_seed(1)
    sizes = ({"img_size": 128}, 128), ({"img_size": 112}, 112), ({}, 128), ({}, None)
    for options, size in sizes:
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, **options)
            shape = model.default_cfg["input_size"] if size is None else (3, size, size)
            hooks = ModelHooks(model, torch.randn(1, *shape, generator=generator))
            assert hooks.layers
        except Exception:
            if size is None:
                raise
        else:
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.abs().max() <= 1e-3:
                        weight += 0.1 * torch.randn(weight.shape, generator=generator)
            return model, hooks, torch.randn(2, *shape, generator=generator)
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    "family", [family for family in list_modules() if list_models(module=family)]
)
def test_hooks_work_on_the_family(family: str) -> None:
    model, hooks, images = create(smallest(family))
    before = fingerprint(model)
    with torch.no_grad(), hooks.record(*hooks.layers) as recording:
        output = hooks(images)
    assert before.difference(fingerprint(model)) == []

    def fail(t: Tensor) -> Tensor:
        raise ZeroDivisionError

    middle = list(hooks.layers)[len(hooks.layers) // 2]
    with (
        pytest.raises(ZeroDivisionError),
        hooks.plain_attention(),
        hooks.cut(next(iter(hooks.layers))),
        hooks.edit({middle: fail}),
    ):
        hooks(images)
    assert before.difference(fingerprint(model)) == []

    model.eval()
    compare_values(model, hooks, images, recording)
    if family not in NO_INTERMEDIATES and hasattr(model, "forward_intermediates"):
        compare_intermediates(model, hooks, images, recording)
    if isinstance(output, Tensor) and output.ndim == 2:
        compare_gradients(hooks, images)


def compare_values(model: nn.Module, hooks: ModelHooks, images: Tensor, recording) -> None:
    kept: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    paths = {part: path or LOGITS for path, part in model.named_modules()}

    def keep(module: nn.Module, args: object, output: object) -> None:
        number = calls[paths[module]]
        calls[paths[module]] += 1
        outputs = {"": output} if isinstance(output, Tensor) else parts_of(output)
        path = paths[module] if "" in outputs or module is not model else "out"
        for place, tensor in outputs.items():
            kept[f"{path}#{number}{place}"] = tensor.clone()

    handles = [part.register_forward_hook(keep) for part in paths]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    for name, value in recording.items():
        path, bracket, place = name.partition("[")
        last = calls[LOGITS if path == "out" else path] - 1
        full = name if "#" in name else f"{path}#{last}{bracket}{place}"
        torch.testing.assert_close(value, kept[full], rtol=1e-4, atol=1e-5, equal_nan=True)
        layer = hooks.layers[name]
        assert layer.pooled(value).shape == (2, layer.channels)


def compare_intermediates(model: nn.Module, hooks: ModelHooks, images: Tensor, recording) -> None:
    with torch.no_grad():
        try:
            theirs = model.forward_intermediates(images, intermediates_only=True)
        except (AssertionError, RuntimeError, TypeError) as error:
            pytest.skip(f"timm's own intermediates fail: {error}")
    for value in theirs:
        intermediate = value[0] if isinstance(value, tuple | list) else value
        assert any(
            layer.grid == tuple(intermediate.shape[2:])
            and layer.channels == intermediate.shape[1]
            and torch.allclose(
                layer.spatial(recording[name]), intermediate, rtol=1e-3, atol=1e-4, equal_nan=True
            )
            for name, layer in hooks.layers.items()
        ), f"no layer gives timm's intermediate {tuple(intermediate.shape)}"


def compare_gradients(hooks: ModelHooks, images: Tensor) -> None:
    maps = [name for name, layer in hooks.layers.items() if layer.layout != "vector"]
    points = [maps[int(share * (len(maps) - 1))] for share in (0.1, 0.5, 0.8, 0.95)]
    leaf = images.clone().requires_grad_()
    with hooks.record(*points, gradients=True, until_last=False) as recording:
        score = hooks(leaf).square().sum()
        torch.autograd.grad(score, leaf)
    for point in points:
        with hooks.cut(point) as cut:
            score = hooks(images).square().sum()
        found = torch.zeros_like(cut.leaf)
        if score.requires_grad:
            (maybe,) = torch.autograd.grad(score, cut.leaf, allow_unused=True)
            found = found if maybe is None else maybe
        expected = recording.gradients.get(point, torch.zeros_like(found))
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * scale)
