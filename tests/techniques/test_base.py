"""The base class of techniques checks parameters, seeds, splits batches and makes results."""

from __future__ import annotations

import json
import subprocess
import sys

import h5py
import pytest
import torch
from pydantic import Field
from torch import Tensor

from timmscope import (
    AttackTechnique,
    Attribution,
    AttributionTechnique,
    ImageError,
    ModelTechnique,
    ParameterError,
    SynthesisOutcome,
    SynthesisTechnique,
    Table,
    TechniqueError,
    TimmscopeError,
    checked_json,
    image_generators,
    load_model,
    load_result,
    noise_like,
    technique,
)
from timmscope.techniques.session import session
from timmscope_registry.hooks import fingerprint


class Noisy(AttributionTechnique):
    """Gradient times noise, drawn per image."""

    strength: float = Field(1.0, gt=0)
    """Factor of the noise."""

    def attribute(self, model, images, objective):
        _, gradient = model.gradient(images, objective)
        return (gradient * noise_like(images) * self.strength).sum(1)


class Answer(AttributionTechnique):
    """Returns the kind of map that a test asks for."""

    kind: str = "zero"

    def attribute(self, model, images, objective):
        torch.set_grad_enabled(not torch.is_grad_enabled())
        value = {"zero": 0.0, "nan": float("nan"), "raise": 1.0, "shape": 1.0}[self.kind]
        if self.kind == "raise":
            model.module.register_forward_pre_hook(_fail).remove()
            raise RuntimeError("in the middle")
        shape = (1, 1) if self.kind == "shape" else (2, 2)
        return torch.full((len(images), *shape[: 1 if self.kind == "shape" else 2]), value)


def _fail(*_):
    raise RuntimeError


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_error_for_a_misspelt_parameter_suggests_the_nearest_name():
    with pytest.raises(ParameterError, match=r"no parameter 'strenght'; did you mean 'strength'"):
        Noisy(strenght=2)


def test_the_error_for_a_value_out_of_range_names_parameter_and_reason():
    with pytest.raises(ParameterError, match=r"'strength' of .* is -1: .*greater than 0") as caught:
        Noisy(strength=-1)
    assert caught.value.parameter == "strength"
    assert "\n" not in str(caught.value)


def test_a_field_with_an_alias_is_accepted_by_name_and_alias():
    class Aliased(Noisy):
        steps: int = Field(1, alias="n")

    assert Aliased(steps=3).steps == Aliased(n=3).steps == 3
    assert Aliased(**Aliased(steps=3).model_dump()).steps == 3


def test_parameters_are_frozen_and_field_docstrings_are_their_help():
    with pytest.raises(Exception, match="frozen"):
        Noisy().strength = 3
    assert Noisy.model_fields["strength"].description == "Factor of the noise."


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_results_do_not_depend_on_how_the_batch_is_split(linear_model, images, batch_size):
    targets = "class:0|1|2|1|0"
    whole = Noisy()(linear_model, images, targets, seed=7, batch_size=5)
    parts = Noisy()(linear_model, images, targets, seed=7, batch_size=batch_size)
    assert torch.equal(whole.raw, parts.raw)
    assert torch.allclose(whole.scores, parts.scores)
    assert "raw=5×4×4" in repr(whole)


def test_the_seed_decides_the_result_and_the_callers_generator_is_unchanged(linear_model, images):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = Noisy()(linear_model, images, "class:0", seed=1).raw
    torch.rand(1)
    assert torch.equal(first, Noisy()(linear_model, images, "class:0", seed=1).raw)
    assert not torch.equal(first, Noisy()(linear_model, images, "class:0", seed=2).raw)
    torch.set_rng_state(state)
    Noisy()(linear_model, images, "class:0")
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_depends_on_the_image_position_and_not_on_the_chunk():
    with session(3, range(4)):
        whole = noise_like(torch.zeros(4, 3, 2, 2))
    with session(3, [2, 3]):
        part = noise_like(torch.zeros(2, 3, 2, 2))
    assert torch.equal(whole[2:], part)
    with session(3, range(4)):
        generators = image_generators(4)
        drawn = [noise_like(torch.zeros(4, 2), generators=generators) for _ in range(2)]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero", "zero everywhere for image 0"),
        ("nan", "NaN"),
        ("shape", r"expected a tensor"),
    ],
)
def test_a_zero_or_nan_map_or_a_map_of_a_wrong_shape_is_an_error(
    linear_model, images, kind, message
):
    with pytest.raises(TechniqueError, match=message):
        Answer(kind=kind)(linear_model, images, "class:0")


@pytest.mark.parametrize("kind", ["zero", "raise"])
def test_state_is_restored_after_a_failure(linear_model, images, kind):
    linear_model.module.train()
    before = fingerprint(linear_model.module)
    with pytest.raises((TechniqueError, RuntimeError)):
        Answer(kind=kind)(linear_model, images, "class:0")
    assert fingerprint(linear_model.module).difference(before) == []


def test_a_technique_refuses_a_plain_module_and_normalised_images(linear_model, images):
    with pytest.raises(TimmscopeError, match="use load_model"):
        Noisy()(linear_model.module, images, "class:0")
    with pytest.raises(ImageError, match="normalisation"):
        Noisy()(linear_model, images * 4 - 2, "class:0")


def test_a_saved_result_loads_with_equal_values(linear_model, images, tmp_path):
    result = Noisy()(linear_model, images[:2], "class:0|2", seed=4)
    loaded = load_result(result.save(tmp_path / "öut"))
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(TimmscopeError, match="because a file is in its place") as caught:
            result.save(folder)
        assert "Errno" not in str(caught.value)
    assert isinstance(loaded, Attribution)
    for name in ("maps", "raw", "images", "scores"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert loaded.provenance == result.provenance
    assert loaded.labels == result.labels
    assert (tmp_path / "öut" / "figure.png").stat().st_size > 1000
    assert (tmp_path / "öut" / "overlay-001.png").exists()


def test_result_json_holds_everything_needed_to_run_it_again(photos, tmp_path):
    model = load_model("random:resnet18?seed=2&img_size=64")
    picture = photos[:2, :, ::4, ::4][:, :, :56, :56]
    technique("grad-cam")(relu=False)(model, picture, "class:5|9", seed=3).save(tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    source = record["provenance"]
    with h5py.File(tmp_path / "arrays.h5") as file:
        images, raw = (torch.from_numpy(file[name][()]) for name in ("images", "raw"))
    again = technique(source["technique"])(**source["parameters"])(
        load_model(source["model"]), images, source["call"]["objective"], seed=source["seed"]
    )
    assert torch.equal(again.raw, raw)
    assert source["weights_sha256"] == model.weights_sha256
    assert source["versions"]["torch"] == torch.__version__


class Page(Table):
    """A table that also writes a page."""

    def documents(self):
        return {"page.html": "<p>ä\r\n</p>\n", "rows.csv": "a\r\n1\r\n"}


def test_documents_are_written_byte_for_byte_and_listed(linear_model, tmp_path):
    provenance = Noisy()._provenance(linear_model, 0)
    Page(provenance=provenance, rows=[{"a": 1}]).save(tmp_path)
    assert (tmp_path / "page.html").read_bytes() == "<p>ä\r\n</p>\n".encode()
    assert (tmp_path / "rows.csv").read_bytes() == b"a\r\n1\r\n"
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["files"] == ["figure.png", "page.html", "rows.csv"]


def test_results_of_plugins_and_of_lazy_modules_load_in_a_new_process(tmp_path):
    model = load_model("random:resnet18?seed=2&img_size=64")
    maps = technique("activation-maps")(layer="maxpool", count=2)(model, torch.rand(1, 3, 64, 64))
    maps.save(tmp_path / "maps")
    assert type(maps).__module__.startswith("timmscope_representation.")
    record = checked_json.load((tmp_path / "maps" / "result.json").read_bytes())
    others = {
        "lazy": {"type": "Evaluation"},  # a class of timmscope's own that nothing has imported yet
        "unknown": {"type": "json.tool:Thing"},
        "gone": {"type": "Thing", "provenance": {"technique": "strange:gone"}},
        "code": {"type": "Thing", "provenance": {"technique": "json.tool:main"}},
        "function": {"type": "mine"},
    }
    for name, changes in others.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes(checked_json.dump(record | changes))
    code = f"""
import sys
from pathlib import Path
from timmscope import TimmscopeError, load_result
folder = Path({str(tmp_path)!r})
maps = load_result(folder / "maps")
assert maps.maps.shape[:2] == (1, 2), maps
maps.figure()
words = {{
    "lazy": "no result can be read",
    "unknown": "holds 'json.tool:Thing', which the plugin of timmscope:activation-maps lacks",
    "gone": "no plugin contributes the technique 'gone' of strange: install strange",
    "code": "no plugin contributes the technique 'main' of json.tool",
    "function": "holds 'mine', which the plugin of",
}}
for name, expected in words.items():
    try:
        load_result(folder / name)
    except TimmscopeError as error:
        assert expected in str(error) and len(str(error).splitlines()) == 1, error
    else:
        raise AssertionError(name)
assert "timmscope.evaluation.result" in sys.modules
assert "json.tool" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_a_directory_without_a_result_is_an_error_of_one_line(tmp_path):
    with pytest.raises(TimmscopeError, match="no result can be read from"):
        load_result(tmp_path)
    unlike = [
        checked_json.dump({"type": "Thing"}),
        checked_json.dump({"type": 3, "provenance": []}),
    ]
    for damaged in (b'{"type": "Thing"}', b"[]", b"{", b"\xff", b"[" * 100_000, *unlike):
        (tmp_path / "result.json").write_bytes(damaged)
        with pytest.raises(TimmscopeError, match="no result can be read from"):
            load_result(tmp_path)


def test_the_result_of_an_unregistered_technique_loads_with_its_class(linear_model, tmp_path):
    result = Page(provenance=Noisy()._provenance(linear_model, 0), rows=[{"a": 1}])
    record = json.loads((result.save(tmp_path) / "result.json").read_text(encoding="utf-8"))
    assert record["type"] == "Page"
    assert record["provenance"]["technique"] == "Noisy"
    with pytest.raises(TimmscopeError, match=r"pass its class"):
        load_result(tmp_path)
    assert load_result(tmp_path, Page) == result
    with pytest.raises(TimmscopeError, match="holds 'Page', not 'Table'"):
        load_result(tmp_path, Table)


class Painter(SynthesisTechnique):
    """Returns images out of range."""

    value: float = 2.0

    def synthesize(self, model, objective, init):
        images = torch.full((1, 3, 4, 4), self.value)
        return SynthesisOutcome(images, torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))


class Vandal(AttackTechnique):
    """Returns images out of range."""

    def perturb(self, model, images, goal):
        return images + 2


def test_images_outside_the_unit_range_are_an_error(linear_model, images):
    with pytest.raises(TechniqueError, match=r"pixels from 2 to 2; expected \[0, 1\]"):
        Painter()(linear_model, "class:0")
    with pytest.raises(TechniqueError, match="expected \\[0, 1\\]"):
        Vandal()(linear_model, images)
    with pytest.raises(TechniqueError, match="NaN"):
        Painter(value=float("nan"))(linear_model, "class:0")


@pytest.mark.parametrize(
    "arguments", [{"seed": "a"}, {"seed": 2**70}, {"seed": 0.5}, {"batch_size": 1.5}]
)
def test_a_seed_or_batch_size_that_is_not_an_int_is_refused(linear_model, images, arguments):
    with pytest.raises(ParameterError, match="expected an int") as caught:
        Noisy()(linear_model, images, "class:0", **arguments)
    assert caught.value.parameter == next(iter(arguments))


class Forgetful(AttributionTechnique):
    """Leaves two hooks behind, and one more if it raises."""

    broken: bool = False
    """Whether to raise."""

    def attribute(self, model, images, objective):
        model.module.register_forward_hook(lambda *a: None)
        model.module.fc.register_full_backward_hook(lambda *a: None)
        if self.broken:
            model.module.fc.register_forward_pre_hook(lambda *a: None)
            raise RuntimeError("in the middle")
        return model.gradient(images, objective)[1].sum(1)


def test_a_hook_left_behind_is_removed_and_the_warning_names_the_technique(linear_model, images):
    kept = linear_model.module.fc.register_forward_hook(lambda *a: None)
    before = fingerprint(linear_model.module)
    with pytest.warns(UserWarning, match=r"Forgetful left 2 hook.s. behind, on the model, fc;"):
        result = Forgetful()(linear_model, images, 1)
    assert len(result.maps) == len(images)
    assert fingerprint(linear_model.module).difference(before) == []
    with (
        pytest.warns(UserWarning, match="left 3 hook"),
        pytest.raises(RuntimeError, match="in the middle"),
    ):
        Forgetful(broken=True)(linear_model, images, 1)
    assert fingerprint(linear_model.module).difference(before) == []
    kept.remove()


class ForgetfulEverywhere(AttributionTechnique):
    """Leaves hooks on two parameters and on every module of the process."""

    def attribute(self, model, images, objective):
        fc = model.module.fc.requires_grad_(True)
        fc.weight.register_hook(lambda gradient: gradient * 2)
        fc.bias.register_post_accumulate_grad_hook(lambda bias: bias.zero_())
        torch.nn.modules.module.register_module_forward_hook(lambda *a: a[2] * 0, always_call=True)
        return images.sum(1)


def test_a_hook_left_on_a_parameter_or_on_all_modules_is_removed(linear_model, images):
    kept = linear_model.module.fc.weight.requires_grad_(True).register_hook(lambda g: g)
    with pytest.warns(
        UserWarning, match=r"Everywhere left 3 hook.s. behind, on all modules, fc.weight, fc.bias;"
    ):
        ForgetfulEverywhere()(linear_model, images, 1)
    linear_model.module.requires_grad_(True)
    linear_model.module(torch.ones(1, 3, 4, 4))[0, 0].backward()
    assert torch.equal(linear_model.module.fc.weight.grad[0], torch.ones(48))
    assert torch.equal(linear_model.module.fc.bias, torch.linspace(-0.5, 0.5, 3))
    assert list(linear_model.module.fc.weight._backward_hooks) == [kept.id]


class ForgetfulReader(ModelTechnique):
    """Leaves hooks of every kind on the model that it reads."""

    def analyse(self, source, images):
        source.module.fc.register_forward_hook(
            lambda *a, **k: None, with_kwargs=True, always_call=True
        )
        source.module.fc.register_forward_pre_hook(lambda *a, **k: None, with_kwargs=True)
        return Table(provenance=self.provenance(source), rows=[{"layers": len(source.layers)}])


def test_a_hook_left_by_an_analysis_of_a_model_is_removed_without_a_trace(linear_model):
    before = fingerprint(linear_model.module)
    with pytest.warns(UserWarning, match=r"ForgetfulReader left 2 hook.s. behind, on fc;"):
        ForgetfulReader()(linear_model)
    assert fingerprint(linear_model.module).difference(before) == []
