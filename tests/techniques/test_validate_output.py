"""Invalid return values of every family are one-line errors that name the technique."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ConfigDict, Field

from timmscope import (
    AttackTechnique,
    AttributionTechnique,
    HookedModel,
    ModelTechnique,
    Sheet,
    StyleOutcome,
    StyleTechnique,
    SynthesisOutcome,
    SynthesisTechnique,
    Table,
    Technique,
    TechniqueError,
    compare,
    technique,
)
from timmscope_registry import PluginError, get_registry, set_registry

NAN = float("nan")
MAPS, SCORES = torch.arange(32.0).reshape(2, 4, 4), torch.ones(2)
PICTURE = torch.full((1, 3, 4, 4), 0.5)
STEPS, BEST = torch.rand(5, 1), torch.zeros(1, dtype=torch.long)
LOSSES = {"total": torch.ones(3)}

returned: Any = None


class Maps(AttributionTechnique):
    """Returns the value of the test, like the classes below."""

    def attribute(self, model, images, objective):
        return returned


class Pictures(SynthesisTechnique):
    def synthesize(self, model, objective, init):
        return returned


class Changes(AttackTechnique):
    def perturb(self, model, images, goal):
        return returned


class Styles(StyleTechnique):
    def stylize(self, model, content, styles, weights):
        return returned


class Sheets(ModelTechnique):
    def analyse(self, model, images):
        if isinstance(returned, torch.Tensor):
            facts = self.provenance(model)
            return Sheet(provenance=facts, images=returned, titles=["a"], rows=[{"a": 1}])
        if isinstance(returned, tuple):
            made, facts = returned
            return Table(provenance=self.provenance(model) if made else None, rows=facts)
        return returned


CALLS: dict[str, Callable[[HookedModel], object]] = {
    "attribution": lambda model: Maps()(model, torch.rand(2, 3, 4, 4), 0),
    "synthesis": lambda model: Pictures()(model, 0),
    "attack": lambda model: Changes()(model, PICTURE),
    "style": lambda model: Styles()(model, PICTURE, PICTURE),
    "representation": lambda model: Sheets()(model),
}


@pytest.mark.parametrize(
    ("family", "value", "words"),
    [
        ("attribution", None, "Maps returned nothing for maps; expected a tensor (2, h, w)"),
        ("attribution", MAPS.numpy(), "returned an array of type float32 for maps"),
        ("attribution", MAPS[:1], "maps of shape (1, 4, 4); expected a tensor (2, h, w)"),
        ("attribution", MAPS[:, :0], "maps of shape (2, 0, 4)"),
        ("attribution", MAPS + 1j, "maps of torch.complex64; expected a dense tensor of real"),
        ("attribution", MAPS.to_sparse(), "maps of torch.sparse_coo"),
        ("attribution", MAPS.to("meta"), "maps of the meta device"),
        ("attribution", MAPS / 0, "NaN or infinite maps"),
        ("attribution", MAPS.double() * 1e38, "NaN or infinite maps"),
        ("attribution", (), "returned 0 tensors; expected maps, (maps, scores) or"),
        ("attribution", (MAPS, SCORES[:, None]), "scores of shape (2, 1); expected a tensor (2)"),
        ("attribution", (MAPS, 3.0), "returned a float for scores"),
        ("attribution", (MAPS, SCORES * NAN), "NaN or infinite scores"),
        ("attribution", (MAPS, SCORES, MAPS), "pixels of shape (2, 4, 4); expected a tensor (2, 3"),
        ("synthesis", PICTURE, "Pictures returned a Tensor; expected a SynthesisOutcome"),
        ("synthesis", SynthesisOutcome(PICTURE * 3, STEPS, BEST), "pixels from 1.5 to 1.5;"),
        ("synthesis", SynthesisOutcome(PICTURE[:0], STEPS, BEST), "images of shape (0, 3, 4, 4)"),
        ("synthesis", SynthesisOutcome(PICTURE, STEPS[:, 0], BEST), "expected a tensor (steps, 1)"),
        ("synthesis", SynthesisOutcome(PICTURE, STEPS * NAN, BEST), "scores; lower the step size"),
        ("synthesis", SynthesisOutcome(PICTURE, STEPS, 3), "returned an int for best steps"),
        ("synthesis", SynthesisOutcome(PICTURE, STEPS, BEST + 5), "best steps [5]; expected whole"),
        ("synthesis", SynthesisOutcome(PICTURE, STEPS, BEST + 0.5), "best steps [0.5]; expected"),
        ("attack", None, "Changes returned nothing for images"),
        ("attack", PICTURE[0], "expected a tensor (1, 3, 4, 4)"),
        ("attack", PICTURE - 1, "pixels from -0.5 to -0.5; expected [0, 1]"),
        ("attack", PICTURE * NAN, "NaN or infinite images"),
        ("style", None, "Styles returned nothing; expected a StyleOutcome"),
        ("style", StyleOutcome(PICTURE.repeat(2, 1, 1, 1), LOSSES), "expected a tensor (1, 3, H"),
        ("style", StyleOutcome(PICTURE, LOSSES | {"b": torch.ones(2)}), "'b' of shape (2,); exp"),
        (
            "style",
            StyleOutcome(PICTURE, {"a": torch.ones(2) * NAN}),
            "'a'; lower the learning rate",
        ),
        ("representation", None, "Sheets returned nothing; expected a Result"),
        ("representation", (False, []), "Sheets returned nothing; expected a Provenance"),
        ("representation", (True, "abc"), "Sheets returned a str; expected a list"),
        ("representation", (True, [{3: 4}]), "Sheets returned columns [3]; expected names"),
        ("representation", (True, ["abc"]), "Sheets returned a str; expected a dict"),
        ("representation", PICTURE[[0, 0]], "Sheets returned 1 titles for 2 pictures; expected"),
        ("style", StyleOutcome(PICTURE, {3: torch.ones(2)}), "losses [3]; expected names"),
        ("representation", PICTURE + 1, "Sheets returned pixels from 1.5 to 1.5; expected [0, 1]"),
    ],
)
def test_an_invalid_return_value_is_an_error_of_one_line_that_names_the_technique(
    linear_model, monkeypatch, family, value, words
):
    monkeypatch.setitem(globals(), "returned", value)
    with pytest.raises(TechniqueError) as caught:
        CALLS[family](linear_model)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Scribbler(AttributionTechnique):
    """Writes into its images in a way that autograd does not notice."""

    def attribute(self, model, images, objective):
        images.data.zero_()
        return MAPS


def test_a_technique_that_changes_its_images_changes_neither_input_nor_result(linear_model):
    images = torch.rand(2, 3, 4, 4)
    kept = images.clone()
    result = Scribbler()(linear_model, images, 0)
    assert torch.equal(images, kept)
    assert torch.equal(result.images, kept)
    with torch.no_grad():
        assert torch.equal(result.scores, linear_model(kept)[:, 0])


SOURCE = """
from timmscope import AttributionTechnique
from timmscope_registry import TechniqueSpec, hookimpl

class Hollow(AttributionTechnique):
    pass

class Whole(AttributionTechnique):
    def attribute(self, model, images, objective): ...
    def __call__(self, *words): ...

class Short(AttributionTechnique):
    def attribute(self, model, images): ...

class Long(AttributionTechnique):
    @staticmethod
    def attribute(self, model, images, objective): ...

class Shadow(AttributionTechnique):
    track: int = 1
    def attribute(self, model, images, objective): ...

def made():
    class Local(AttributionTechnique):
        def attribute(self, *given): ...
    return Local

Exported = made()

@hookimpl
def timmscope_techniques():
    for name in ("Hollow", "Whole", "Short", "Long", "Shadow", "Exported"):
        yield TechniqueSpec(
            name=name.lower(), family="attribution", summary=".", impl=f"{__name__}:{name}"
        )
    for base in ("stores", "model"):
        yield TechniqueSpec(
            name=f"on-{base}",
            family="representation",
            base=base,
            summary=".",
            impl=f"{__name__}:Shadow",
        )
"""


@pytest.fixture
def _hollow(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "hollow.py").write_text(SOURCE)
    set_registry(None)
    get_registry().load_file(tmp_path / "hollow.py")
    yield
    set_registry(None)


@pytest.mark.usefixtures("_hollow")
@pytest.mark.filterwarnings("ignore:.*shadows an attribute")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hollow", "technique 'hollow' of hollow.py has no method attribute"),
        (
            "whole",
            "technique 'whole' of hollow.py defines __call__; expected that of its base class",
        ),
        (
            "short",
            "'short' of hollow.py cannot have its attribute called with model, images, objective: ",
        ),
        (
            "long",
            "of hollow.py cannot have its attribute called with .*: missing a required argument",
        ),
        ("on-stores", "'on-stores' of hollow.py is .*; expected a subclass of .*StoresTechnique"),
        ("on-model", "'on-model' of hollow.py is .*; expected a subclass of .*ModelTechnique"),
        (
            "shadow",
            "'shadow' of hollow.py has parameters that hide attributes of its base class: track",
        ),
    ],
)
def test_a_class_that_does_not_follow_its_familys_interface_is_refused(name, words):
    with pytest.raises(PluginError, match=words):
        technique(name)


class Given(Technique):
    """Parameters that can be changed in place."""

    powers: list[int] = Field(default_factory=lambda: [1, 2])
    weights: dict[str, float] = Field(default_factory=lambda: {"edge": 0.5})

    def forget(self, outcome):
        self.powers.pop()
        self.weights["edge"] = 9.0
        return outcome


class ForgetfulMaps(Given, AttributionTechnique):
    """Changes its own parameters while it runs, like the classes below."""

    def attribute(self, model, images, objective):
        return self.forget(torch.rand(len(images), 4, 4))


class ForgetfulPictures(Given, SynthesisTechnique):
    def synthesize(self, model, objective, init):
        return self.forget(SynthesisOutcome(PICTURE, STEPS, BEST))


class ForgetfulChanges(Given, AttackTechnique):
    def perturb(self, model, images, goal):
        return self.forget(images)


class ForgetfulStyles(Given, StyleTechnique):
    def stylize(self, model, content, styles, weights):
        return self.forget(StyleOutcome(PICTURE, LOSSES))


class ForgetfulTables(Given, ModelTechnique):
    def analyse(self, source, images):
        self.forget(None)
        return Table(provenance=self.provenance(source, seen=BEST, at=self), rows=[{"a": 1}])


@pytest.mark.parametrize(
    "call",
    [
        lambda model: ForgetfulMaps()(model, torch.rand(2, 3, 4, 4), 0),
        lambda model: compare([ForgetfulMaps()], model, torch.rand(2, 3, 4, 4), 0),
        lambda model: ForgetfulPictures()(model, 0),
        lambda model: ForgetfulChanges()(model, PICTURE),
        lambda model: ForgetfulStyles()(model, PICTURE, PICTURE),
        lambda model: ForgetfulTables()(model),
    ],
)
def test_parameters_are_recorded_as_given_even_if_the_method_changes_them(linear_model, call):
    recorded = call(linear_model).provenance.parameters
    recorded = recorded.get("techniques", [{"parameters": recorded}])[0]["parameters"]
    given = {name: recorded[name] for name in ("powers", "weights")}
    assert given == {"powers": [1, 2], "weights": {"edge": 0.5}}


class Odd(ForgetfulMaps):
    """A parameter that JSON cannot hold."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    kernel: torch.Tensor = BEST


def test_a_parameter_that_json_cannot_hold_is_an_error_before_any_computation(linear_model):
    with pytest.raises(
        TechniqueError, match=r"technique .*Odd has parameters that cannot be recorded as JSON: "
    ):
        Odd()(linear_model, torch.rand(1, 3, 4, 4), 0)


@pytest.mark.usefixtures("_hollow")
@pytest.mark.filterwarnings("ignore:.*shadows an attribute")
def test_a_class_that_its_spec_imports_from_another_module_has_its_id():
    assert technique("exported").technique_id() == "hollow.py:exported"
