"""A prediction function is a model that runs forward only, and whose answers are checked."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from timmscope import (
    AttackTechnique,
    Goal,
    HookedModel,
    LayerNotFound,
    ModelError,
    ParameterError,
    StoreMismatch,
    UnsupportedModel,
    evaluate,
    load_result,
    mine,
    technique,
)
from timmscope.cli import main
from timmscope.store.model import require_same_model
from timmscope.testing import tiny_images, tiny_model
from timmscope_registry import set_registry

INNER = tiny_model()


def wrapped(function: Callable[[Any], Any], outputs: str = "logits", **how: Any) -> HookedModel:
    how = {"input_size": (3, 32, 32), "num_classes": 10, "id": "service:v2", **how}
    return HookedModel.of_function(function, outputs=outputs, **how)


def logits(images: Tensor) -> Tensor:
    with torch.no_grad():
        return INNER(images)


def test_its_logits_are_those_of_the_function() -> None:
    model, images = wrapped(logits), tiny_images(3)
    assert torch.equal(model(images), INNER(images))
    assert model.num_classes == 10
    assert list(model.layers) == ["logits"]


def test_logarithms_of_probabilities_give_the_probabilities_again() -> None:
    shares = np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    model = wrapped(lambda images: shares, "probabilities", num_classes=3, arrays="numpy")
    found = model(tiny_images(2))
    assert found[0, :2].tolist() == pytest.approx(np.log([0.25, 0.75]), rel=1e-6)
    assert found.softmax(1).numpy() == pytest.approx(shares, abs=1e-7)
    assert bool(torch.isfinite(found).all())


def test_a_label_is_a_probability_of_one() -> None:
    model = wrapped(lambda images: [2, 0], "labels", num_classes=4)
    expected = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0]])
    assert torch.allclose(model(tiny_images(2)).softmax(1), expected, atol=1e-30, rtol=0)


def test_it_gets_what_it_asks_for_and_at_most_64_images_per_call() -> None:
    got: list[np.ndarray] = []

    def keep(images: np.ndarray) -> np.ndarray:
        got.append(images.copy())
        images[:] = 0  # what it does with its images is its own affair
        return np.zeros((len(images), 10))

    images = torch.rand(130, 3, 32, 32)
    before = images.clone()
    with torch.no_grad():
        wrapped(keep, arrays="numpy")(images)
    assert [len(part) for part in got] == [64, 64, 2]
    assert got[0].dtype == np.float32
    assert np.array_equal(np.concatenate(got), before.numpy())
    assert torch.equal(images, before)


def test_a_module_inside_is_no_part_of_the_model() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).train()
    model = wrapped(network)
    assert list(model.module.parameters()) == []
    model(tiny_images(1))
    assert network.training
    assert torch.equal(copy.deepcopy(model)(tiny_images(1)), model(tiny_images(1)))


WRONG = {
    "nothing": ("logits", None, "returned nothing; expected logits of shape (2, 3)"),
    "text": ("logits", "cat", "returned a str; expected logits"),
    "uneven rows": ("logits", [[1.0], [1.0, 2.0]], "returned a list; expected logits"),
    "complex": ("logits", torch.zeros(2, 3, dtype=torch.complex64), "returned a Tensor"),
    "one image": ("logits", torch.zeros(1, 3), "shape (1, 3); expected logits of shape (2, 3)"),
    "classes": ("logits", torch.zeros(2, 4), "shape (2, 4); expected logits of shape (2, 3)"),
    "nan": ("logits", torch.full((2, 3), torch.nan), "NaN or infinite logits"),
    "overflow": ("logits", np.full((2, 3), 1e300), "NaN or infinite logits"),
    "sum": ("probabilities", [[0.2, 0.2, 0.2]] * 2, "with the sum 0.6; expected 1; if these are"),
    "range": ("probabilities", [[1.5, -0.5, 0.0]] * 2, "values from -0.5 to 1.5; expected [0, 1]"),
    "label shape": ("labels", [[1], [2]], "shape (2, 1); expected labels of shape (2,)"),
    "label range": ("labels", [0, 3], "the label 3; expected whole numbers from 0 to 2"),
    "negative label": ("labels", [-1, 0], "the label -1; expected whole numbers from 0 to 2"),
    "broken label": ("labels", [0.5, 1], "the label 0.5; expected whole numbers from 0 to 2"),
}


@pytest.mark.parametrize(("outputs", "returned", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_one_line_that_names_the_function(
    outputs: str, returned: object, words: str
) -> None:
    model = wrapped(lambda images: returned, outputs, num_classes=3)
    for call in (lambda: model(tiny_images(2)), lambda: model.layers):
        with pytest.raises(ModelError, match="service:v2") as caught:
            call()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"outputs": "scores"}, "outputs is 'scores': expected one of logits, probabilities"),
        ({"arrays": "jax"}, "arrays is 'jax': expected one of torch, numpy"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"num_classes": None}, "give num_classes or class_names"),
        ({"id": ""}, "id is ''"),
        ({"class_names": ["a", "b"]}, "2 class names for service:v2, which has 10 classes"),
        ({"input_size": (32, 32)}, "input_size is (32, 32)"),
        ({"input_size": ()}, "input_size is ()"),
        ({"function": 3}, "an int cannot be called"),
    ],
)
def test_a_wrong_argument_is_refused(how: dict[str, Any], words: str) -> None:
    function = how.pop("function", logits)
    with pytest.raises(ModelError, match=re.escape(words)):
        wrapped(function, **how)


@pytest.mark.parametrize("name", ["saliency", "guided-backprop", "grad-cam", "fgsm", "pgd"])
def test_techniques_with_gradients_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="prediction function and has no gradient: use"):
        technique(name)()(wrapped(logits), tiny_images(1))


def test_layers_and_stores_are_refused(tmp_path: Path) -> None:
    model = wrapped(logits)
    with (
        pytest.raises(LayerNotFound, match="the model's only layer is logits"),
        model.record("conv1"),
    ):
        pass
    with pytest.raises(UnsupportedModel, match="no layers to mine, and no digest"):
        mine(model, tmp_path, tmp_path / "x.scope", layers=["logits"])
    assert not (tmp_path / "x.scope").exists()
    with pytest.raises(StoreMismatch):
        require_same_model(model, "0" * 64, (), "the model of a store")


def test_occlusion_and_rise_are_those_of_the_model_inside() -> None:
    images = tiny_images(2)
    for how, parameters in (("occlusion", {"patch_px": 16}), ("rise", {"masks": 20})):
        used: Any = technique(how)(**parameters)
        result = used(wrapped(logits), images, "class:3", seed=1)
        if how == "occlusion":  # RISE fills with the mean colour, which a function does not have
            assert torch.equal(result.maps, used(INNER, images, "class:3", seed=1).maps)
        assert result.provenance.model == "service:v2"
        assert result.provenance.weights_sha256 is None


def test_a_result_says_that_there_is_no_digest(tmp_path: Path) -> None:
    result = technique("occlusion")()(wrapped(logits), tiny_images(1))
    again = load_result(result.save(tmp_path))
    assert (again.provenance.model, again.provenance.weights_sha256) == ("service:v2", None)


def test_evaluation_leaves_out_the_metric_that_needs_weights() -> None:
    result = evaluate(wrapped(logits), tiny_images(2), ["occlusion patch_px=16 stride_px=16"])
    assert result.metrics == ["insertion", "deletion", "sensitivity-n"]
    with pytest.raises(ParameterError, match="randomisation replaces weights, and service:v2"):
        evaluate(wrapped(logits), tiny_images(2), ["occlusion"], metrics=["randomisation"])


class Darker(AttackTechnique):
    """Tries darker and darker images."""

    uses_gradients: ClassVar[bool] = False

    epsilon: float | None = 1.0

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        changed, rows = images.clone(), torch.arange(len(images))
        for factor in (0.75, 0.5, 0.25, 0.0):
            with self.only(rows):
                changed[rows] = images[rows] * factor
                rows = rows[~goal.rows(rows).reached(model(changed[rows]))]
            if not len(rows):
                break
        return changed


def test_queries_of_a_black_box_attack_are_counted_once() -> None:
    asked: list[int] = []

    def counted(images: Tensor) -> Tensor:
        asked.append(len(images))
        return logits(images)  # runs a `HookedModel` itself, which must not count again

    model, images = wrapped(counted), tiny_images(3)
    model.layers  # noqa: B018  (one call with two grey images)
    asked.clear()
    result = Darker()(model, images)
    expected = Darker()(INNER, images)
    assert torch.equal(result.images, expected.images)
    assert torch.equal(result.success, expected.success)
    assert result.queries.tolist() == expected.queries.tolist()
    assert int(result.queries.sum()) == sum(asked) - 3 * len(images)  # three passes evaluate


def test_an_error_inside_is_the_functions_own() -> None:
    def failing(images: Tensor) -> Tensor:
        if float(images.max()) > 0.9:
            raise ConnectionError("the service is down")
        return logits(images)

    with pytest.raises(ConnectionError, match="the service is down"):
        wrapped(failing)(torch.ones(1, 3, 32, 32))


SOURCE = """
import numpy as np
from timmscope_registry import ModelSourceSpec, hookimpl

@hookimpl
def timmscope_model_sources():
    yield ModelSourceSpec(scheme="service", summary="A service.", impl=f"{__name__}:load")

def load(rest):
    from timmscope import HookedModel
    def ask(images):
        means = images.mean((2, 3)).clip(0) + 1e-6
        return means / means.sum(1, keepdims=True)
    return HookedModel.of_function(
        ask, outputs="probabilities", arrays="numpy", id=f"service:{rest}",
        input_size=(3, 16, 16), class_names=("red", "green", "blue"),
    )
"""


def test_a_source_offers_it_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin, picture = tmp_path / "my.py", tmp_path / "red.png"
    plugin.write_text(SOURCE)
    ramp = Image.linear_gradient("L")
    Image.merge("RGB", [ramp, ramp.rotate(90), Image.new("L", ramp.size, 20)]).save(picture)
    before = ["--plugin", str(plugin), "run"]
    try:
        out = tmp_path / "out"
        words = ["occlusion", "service:v3", str(picture), "--target", "red", "-o", str(out)]
        assert main([*before, *words]) == 0, capsys.readouterr().err
        assert load_result(out).provenance.model == "service:v3"
        assert main([*before, "pgd", "service:v3", str(picture), "-o", str(out)]) == 2
        told = capsys.readouterr().err
        assert "prediction function and has no gradient" in " ".join(told.split())
        assert "Traceback" not in told
    finally:
        set_registry(None)
