"""Recording, editing and cutting, compared with a slow computation of a small model."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timmscope_registry.errors import LayerNotFound, ParameterError, UnsupportedModel
from timmscope_registry.hooks import ModelHooks, fingerprint


class Small(nn.Module):
    """An in-place, reused activation, a skip connection, and a module fed by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.pair = Pair()
        self.unused = nn.Linear(3, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv1(x)))
        skip = self.same(x)
        y = self.conv2(x)
        y += skip
        y = self.act(y)
        y, _ = self.pair(y)
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x


def slowly(model: Small, x: Tensor) -> dict[str, Tensor]:
    """Compute every value of `Small` out of place, batch norm by its definition."""
    bn = model.bn
    v: dict[str, Tensor] = {"conv1": F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=1)}
    mean, var = bn.running_mean[:, None, None], bn.running_var[:, None, None]
    v["bn"] = (v["conv1"] - mean) / (var + bn.eps).sqrt() * bn.weight[:, None, None]
    v["bn"] = v["bn"] + bn.bias[:, None, None]
    v["act#0"] = v["bn"] * (v["bn"] > 0)
    v["same"] = v["act#0"] * 1
    v["conv2"] = F.conv2d(v["act#0"], model.conv2.weight, model.conv2.bias, padding=1)
    total = v["conv2"] + v["same"]
    v["act"] = total * (total > 0)
    v["fc"] = (v["act"] * 2).mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    v["logits"] = v["fc"] * 1
    return v


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    model = Small().double()
    nn.init.normal_(model.bn.weight)
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture
def hooks(model: Small, images: Tensor) -> ModelHooks:
    return ModelHooks(model, images)


POINTS = ("conv1", "bn", "act#0", "same", "conv2", "act", "fc", "logits")
COEFFICIENTS = torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0]).double()


def test_recorded_values_are_those_of_the_slow_version(model, hooks, images) -> None:
    with hooks.record(*POINTS) as recording:
        output = hooks(images)
    expected = slowly(model, images)
    assert list(recording) == list(expected)
    for name in POINTS:
        torch.testing.assert_close(recording[name], expected[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, expected["logits"], rtol=1e-12, atol=1e-12)


def test_watched_values_are_those_of_the_slow_version(model, hooks, images) -> None:
    sums: dict[str, Tensor] = {}

    def adder(name: str):
        return lambda value: sums.__setitem__(name, value.sum((0, *range(2, value.ndim))))

    with torch.inference_mode(), hooks.watch({name: adder(name) for name in POINTS}):
        hooks(images)
    expected = slowly(model, images)
    assert list(sums) == list(POINTS)
    for name in POINTS:
        total = expected[name].sum((0, *range(2, expected[name].ndim)))
        torch.testing.assert_close(sums[name], total, rtol=1e-12, atol=1e-12)


def test_watching_stops_after_the_last_point_and_sees_edits(model, hooks, images) -> None:
    assert hooks.layers  # traced by a whole forward of its own
    before, seen, ran = fingerprint(model), [], []
    handle = model.fc.register_forward_hook(lambda *a: ran.append(1))
    with hooks.watch({"conv2": seen.append}):
        with hooks.edit({"conv2": torch.zeros_like}):
            assert hooks(images).shape == (2, 0)
        assert not ran
        assert not seen[0].any()
        with hooks.record("fc") as recording:  # another context needs the rest
            hooks(images)
    assert ran == [1]
    assert len(seen) == 2
    assert "fc" in recording
    handle.remove()
    assert fingerprint(model).difference(before) == []


def test_a_watched_point_that_never_runs_is_an_error(hooks, images) -> None:
    with (
        hooks.watch({"unused": lambda value: None}),
        pytest.raises(UnsupportedModel, match="never ran unused"),
    ):
        hooks(images)
    with pytest.raises(ParameterError, match="at least one"):
        hooks.watch({})
    assert not hooks.open_contexts


def test_recorded_gradients_are_those_of_the_slow_version(model, hooks, images) -> None:
    recorded = images.clone().requires_grad_()
    with hooks.record(*POINTS, gradients=True) as recording:
        (hooks(recorded) @ COEFFICIENTS).sum().backward()
    expected = slowly(model, images.clone().requires_grad_())
    gradients = torch.autograd.grad(
        (expected["logits"] @ COEFFICIENTS).sum(), [expected[name] for name in POINTS]
    )
    for name, gradient in zip(POINTS, gradients, strict=True):
        torch.testing.assert_close(recording.gradients[name], gradient, rtol=1e-12, atol=1e-12)


def test_recorded_tensors_are_part_of_the_outputs_graph(model, hooks, images) -> None:
    recorded = images.clone().requires_grad_()
    with hooks.record(*POINTS) as recording:
        score = (hooks(recorded) @ COEFFICIENTS).sum()
    expected = slowly(model, images.clone().requires_grad_())
    for name in POINTS[:-1]:
        ours = torch.autograd.grad(score, recording[name], retain_graph=True)[0]
        theirs = torch.autograd.grad(
            (expected["logits"] @ COEFFICIENTS).sum(), expected[name], retain_graph=True
        )[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["conv1", "bn", "act#0", "same", "conv2", "act", "fc"])
def test_the_gradient_at_a_cut_is_that_of_the_full_graph(model, hooks, images, name) -> None:
    with hooks.cut(name) as cut:
        score = (hooks(images) @ COEFFICIENTS).sum()
    assert cut.leaf.is_leaf
    assert cut.leaf.grad_fn is None
    (gradient,) = torch.autograd.grad(score, cut.leaf)
    expected = slowly(model, images.clone().requires_grad_())
    (reference,) = torch.autograd.grad((expected["logits"] @ COEFFICIENTS).sum(), expected[name])
    torch.testing.assert_close(cut.leaf.detach(), expected[name].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_cut_builds_its_graph_even_if_the_caller_turned_autograd_off(hooks, images, mode) -> None:
    with hooks.cut("conv2") as cut:
        expected = torch.autograd.grad(hooks(images).sum(), cut.leaf)[0]
    with mode():
        inside = images.clone()
        with hooks.cut("conv2") as cut:
            output = hooks(inside)
        assert torch.is_grad_enabled() is False
    torch.testing.assert_close(torch.autograd.grad(output.sum(), cut.leaf)[0], expected)


@pytest.mark.parametrize("until_last", [True, False])
def test_no_activation_outlives_its_forward_even_without_the_garbage_collector(
    hooks, images, until_last
) -> None:
    hooks.layers  # noqa: B018 - traced before we count
    alive: list[weakref.ref[Tensor]] = []

    def watch(value: Tensor) -> None:
        alive.append(weakref.ref(value))

    gc.collect()
    gc.disable()
    try:
        with hooks.watch({"conv1": watch, "conv2": watch}, until_last=until_last):
            hooks(images)
        with hooks.record("conv2", until_last=until_last) as recording:
            hooks(images)
        watch(recording["conv2"])
        del recording
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


def test_forward_stops_after_the_last_point_and_only_then(model, hooks, images) -> None:
    ran: list[str] = []
    hooks.layers  # noqa: B018 - traced before we count
    model.fc.register_forward_hook(lambda *_: ran.append("fc"))
    with hooks.record("act#0", "conv2"):
        output = hooks(images)
    assert output.shape == (2, 0)
    assert ran == []
    with hooks.record("conv2", until_last=False):
        assert hooks(images).shape == (2, 5)
    with hooks.record("conv2"), hooks.record("conv1", until_last=False):
        assert hooks(images).shape == (2, 5)
    with hooks.record("conv1") as early, hooks.record("act") as late:
        assert hooks(images).shape == (2, 0)
    assert "conv1" in early
    assert "act" in late
    with hooks.record("conv1"), hooks.cut("act") as cut:
        hooks(images)
    assert cut.leaf.shape == (2, 4, 6, 8)
    assert ran == ["fc", "fc"]


def test_bare_name_of_a_reused_module_means_its_last_call(model, hooks, images) -> None:
    expected = slowly(model, images)
    with hooks.record("act", "act#0", "act#1") as recording:
        hooks(images)
    torch.testing.assert_close(recording["act"], expected["act"])
    torch.testing.assert_close(recording["act#1"], expected["act"])
    torch.testing.assert_close(recording["act#0"], expected["act#0"])
    assert hooks.layers["act#1"].name == "act"
    assert list(hooks.layers).count("act") == 1
    with pytest.raises(LayerNotFound, match=r"act is called 2 time\(s\).*no act#2"):
        hooks.record("act#2")


def test_edit_replaces_one_call_and_recordings_see_it(model, hooks, images) -> None:
    with hooks.edit({"act#0": lambda t: t * 0 + 3}), hooks.record("act#0", "logits") as recording:
        hooks(images)
    assert bool((recording["act#0"] == 3).all())
    threes = torch.full((2, 4, 6, 8), 3.0).double()
    total = F.conv2d(threes, model.conv2.weight, model.conv2.bias, padding=1) + 3
    pooled = total.clamp(min=0).mean((2, 3)) * 2
    torch.testing.assert_close(recording["logits"], model.fc(pooled))


def test_a_tensor_that_an_edit_returns_is_not_overwritten_by_the_model(hooks, images) -> None:
    patch = torch.randn(2, 4, 6, 8).double()
    before = patch.clone()
    with hooks.edit({"bn": lambda t: patch}):
        first = hooks(images)
        second = hooks(images)
    assert torch.equal(patch, before)
    assert torch.equal(first, second)


def test_edits_compose_in_the_order_in_which_they_were_opened(hooks, images) -> None:
    with (
        hooks.edit({"fc": lambda t: t + 1}),
        hooks.edit({"fc": lambda t: t * 10}),
        hooks.record("fc", "logits") as recording,
    ):
        output = hooks(images)
    plain = hooks(images)
    torch.testing.assert_close(output, (plain + 1) * 10)
    torch.testing.assert_close(recording["fc"], (plain + 1) * 10)


def test_an_edit_of_another_shape_is_refused(hooks, images) -> None:
    with (
        pytest.raises(ParameterError, match=r"edit of fc must return .*\(2, 5\).*\(2, 4\)"),
        hooks.edit({"fc": lambda t: t[:, :4]}),
    ):
        hooks(images)
    with (
        pytest.raises(ParameterError, match="returned NoneType"),
        hooks.edit({"fc": lambda t: None}),
    ):
        hooks(images)


def test_nested_recordings_keep_separate_values(model, hooks, images) -> None:
    with hooks.record("conv1") as outer:
        hooks(images)
        first = outer["conv1"]
        with hooks.record("conv2", "conv1") as inner:
            hooks(images * 2)
        assert outer["conv1"] is inner["conv1"]
        hooks(images)
    torch.testing.assert_close(first, outer["conv1"])
    torch.testing.assert_close(inner["conv2"], slowly(model, images * 2)["conv2"])


def test_the_latest_forward_replaces_the_one_before(model, hooks, images) -> None:
    with hooks.record("conv1") as recording:
        hooks(images)
        hooks(images[:1] * 3)
    torch.testing.assert_close(recording["conv1"], slowly(model, images[:1] * 3)["conv1"])


def test_recording_works_without_autograd(model, hooks, images) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), hooks.record("bn", "conv2") as recording:
            hooks(images)
        torch.testing.assert_close(recording["bn"].clone(), slowly(model, images)["bn"])


def test_recording_gradients_is_an_error_if_nothing_requires_grad(hooks, images) -> None:
    with (
        pytest.raises(ParameterError, match=r"no gradient can reach conv1.*requires_grad_\(\)"),
        hooks.record("conv1", gradients=True),
    ):
        hooks(images)
    with (
        pytest.raises(ParameterError, match="autograd is off"),
        torch.no_grad(),
        hooks.record("conv1", gradients=True),
    ):
        hooks(images.clone().requires_grad_())
    with (
        pytest.raises(ParameterError, match="a cut at a later point"),
        hooks.cut("conv2"),
        hooks.record("conv1", gradients=True),
    ):
        hooks(images)
    with hooks.cut("conv1") as cut, hooks.record("conv2", "logits", gradients=True) as recording:
        hooks(images).sum().backward()
    assert cut.leaf.grad is not None
    assert recording.gradients["conv2"].shape == (2, 4, 6, 8)


def test_the_error_for_an_unknown_hook_point_suggests_the_nearest(hooks, images) -> None:
    with pytest.raises(LayerNotFound, match=r"no layer is called 'conv3'; nearest: conv") as error:
        hooks.record("conv3")
    assert set(error.value.nearest[:2]) == {"conv1", "conv2"}
    with pytest.raises(
        LayerNotFound, match=r"called 'xyz'; there are \d+, from conv1 to logits: see"
    ):
        hooks.record("xyz")
    with pytest.raises(UnsupportedModel, match="pair returns a tuple"):
        hooks.record("pair")
    with pytest.raises(LayerNotFound, match="pair is not a layer: it returns a tuple"):
        hooks.layers["pair"]
    with pytest.raises(LayerNotFound, match="unused is not a layer: it does not run"):
        hooks.layers["unused"]
    with (
        pytest.raises(UnsupportedModel, match="the forward never ran unused"),
        hooks.record("unused"),
    ):
        hooks(images)
    with pytest.raises(ParameterError, match="at least one"):
        hooks.record()


def test_reading_before_a_forward_is_an_error(hooks) -> None:
    with hooks.record("conv1") as recording, hooks.cut("conv1") as cut:
        assert "conv1" not in recording
        assert recording.get("conv1") is None
        with pytest.raises(LayerNotFound, match="run the model inside the context first"):
            recording["conv1"]
        with pytest.raises(UnsupportedModel, match="has not reached conv1"):
            cut.leaf  # noqa: B018
        with pytest.raises(LayerNotFound, match="conv2 is not recorded"):
            recording["conv2"]


def test_an_exception_in_an_edit_is_raised_and_outer_contexts_still_work(
    model, hooks, images
) -> None:
    before = fingerprint(model)

    def fail(t: Tensor) -> Tensor:
        raise KeyError("mine")

    with hooks.record("logits") as recording:
        with pytest.raises(KeyError, match="mine"), hooks.edit({"conv2": fail}):
            hooks(images)
        assert before.difference(fingerprint(model)) == []
        hooks(images)
    torch.testing.assert_close(recording["logits"], slowly(model, images)["logits"])


def test_no_hook_is_on_the_model_between_forwards(model, hooks, images) -> None:
    before = fingerprint(model)
    with hooks.record("bn", "same", gradients=True), hooks.cut("conv1"), hooks.edit({"fc": abs}):
        hooks(images)
        assert before.difference(fingerprint(model)) == []


def test_a_recorded_identity_leaves_no_hook_on_the_callers_images() -> None:
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 2))
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    hooks = ModelHooks(model, images)
    with hooks.record("0", gradients=True, until_last=False) as recording:
        hooks(images).sum().backward()
    assert not images._backward_hooks
    torch.testing.assert_close(recording.gradients["0"], images.grad)


def test_no_cycle_keeps_the_graph_alive(hooks, images) -> None:
    gc.collect()
    gc.disable()
    try:
        with hooks.record("conv2", gradients=True, until_last=False) as recording:
            score = hooks(images.clone().requires_grad_()).sum()
        reference = weakref.ref(recording["conv2"])
        del recording, score
        assert reference() is None
    finally:
        gc.enable()


def test_train_mode_statistics_and_gradients_are_unchanged(model, hooks, images) -> None:
    model.train()
    model.fc.eval()
    model.conv1.weight.requires_grad_(False)
    (model(images).sum()).backward()
    before = fingerprint(model)
    for _ in range(3):
        output = hooks(images.clone().requires_grad_())
        output.sum().backward()
    assert before.difference(fingerprint(model)) == []
    torch.testing.assert_close(output, slowly(model, images)["logits"])


def test_tracing_the_catalogue_changes_neither_model_nor_generators(model, images) -> None:
    noisy = nn.Sequential(model, nn.Dropout(0.5), Noise()).double()
    hooks = ModelHooks(noisy, images)
    before = fingerprint(noisy)
    assert len(hooks.layers) > 10
    assert before.difference(fingerprint(noisy)) == []


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_a_buffer_that_a_forward_replaces_is_restored(images) -> None:
    class Fitting(nn.Module):
        """Like ConViT: computes position indices anew when the input's size changes."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("place", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if self.place.numel() != x.shape[-1]:
                self.place = torch.arange(x.shape[-1]).double()
            return x * self.place

    model = Fitting()
    before = fingerprint(model)
    output = ModelHooks(model, images)(images)
    torch.testing.assert_close(output, images * torch.arange(8.0).double())
    assert before.difference(fingerprint(model)) == []


def test_a_cache_filled_in_eval_mode_does_not_go_stale_in_training(images) -> None:
    class Caching(nn.Module):
        """Like LeViT: biases are cached in eval mode and dropped by `train(True)`."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1).double())
            self.bias_cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return x + self.bias
            if "bias" not in self.bias_cache:
                self.bias_cache["bias"] = self.bias * 1
            return x + self.bias_cache["bias"]

    model = Caching().train()
    ModelHooks(model, images)(images)
    with torch.no_grad():
        model.bias += 1
    torch.testing.assert_close(model.eval()(images), images + 2)


def test_the_error_names_a_model_that_cannot_run_on_the_example(images) -> None:
    hooks = ModelHooks(nn.Sequential(nn.Conv2d(7, 2, 1)).double(), images)
    with pytest.raises(UnsupportedModel, match=r"Sequential cannot run .*\(2, 3, 6, 8\).*7 chan"):
        hooks.layers  # noqa: B018
    with pytest.raises(ParameterError, match=r"must be \(B, C, H, W\)"):
        ModelHooks(nn.Identity(), torch.zeros(3, 4, 4))


def test_threads_do_not_see_each_others_contexts(model, hooks, images) -> None:
    expected = {k: slowly(model, images * k)["conv2"] for k in range(1, 5)}
    failures: list[str] = []

    def work(k: int) -> None:
        for _ in range(10):
            with hooks.record("conv2") as recording:
                hooks(images * k)
            if not torch.allclose(recording["conv2"], expected[k]):
                failures.append(f"thread {k}")

    threads = [threading.Thread(target=work, args=(k,)) for k in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_module_registered_twice_is_one_layer_with_two_names(images) -> None:
    shared = nn.Conv2d(3, 3, 1).double()
    model = nn.ModuleDict({"a": shared, "b": shared})
    model.forward = lambda x: model["b"](model["a"](x))  # type: ignore[method-assign]
    hooks = ModelHooks(copy.copy(model), images)
    with hooks.record("a#0", "b", "b#0") as recording:
        hooks(images)
    torch.testing.assert_close(recording["b#0"], shared(images))
    torch.testing.assert_close(recording["b"], shared(shared(images)))
    assert hooks.layers["b"] == hooks.layers["a"]
