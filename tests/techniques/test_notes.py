"""What a technique notes about images is in its result, whatever the base and the batch split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timmscope import (
    AttackTechnique,
    AttributionTechnique,
    CertificationOutcome,
    CertificationTechnique,
    DefenceTechnique,
    HookedModel,
    ModelTechnique,
    StoresTechnique,
    StoreTechnique,
    StyleOutcome,
    StyleTechnique,
    SynthesisOutcome,
    SynthesisTechnique,
    Table,
    Technique,
    TechniqueError,
    UniversalAttack,
    load_result,
)
from timmscope.techniques.notes import Notes
from timmscope_registry import BASES

PICTURES = torch.linspace(0.2, 0.8, 144).reshape(3, 3, 4, 4)
noted: Any = None


class Maps(AttributionTechnique):
    """Notes the value of the test, like the classes below."""

    def attribute(self, model, images, objective):
        self.note("value", noted(images))
        return images.sum(1)


class Changes(AttackTechnique):
    def perturb(self, model, images, goal):
        self.note("value", noted(images))
        return images


class Universal(UniversalAttack):
    def fit(self, model, batches, goal):
        self.note("value", noted(PICTURES))
        return torch.zeros(3, 4, 4)


class Filters(DefenceTechnique):
    def transform(self, images, generators):
        self.note("value", noted(images))
        return images


class Proofs(CertificationTechnique):
    norm = "l2"

    def certify(self, model, images, labels):
        self.note("value", noted(images))
        return CertificationOutcome(predictions=labels, radius=torch.ones(len(images)))


class Images(SynthesisTechnique):
    def synthesize(self, model, objective, init):
        self.note("value", noted(PICTURES))
        return SynthesisOutcome(PICTURES, torch.rand(2, 3), torch.zeros(3, dtype=torch.long))


class Styles(StyleTechnique):
    def stylize(self, model, content, styles, weights):
        self.note("value", noted(PICTURES[:1]))
        return StyleOutcome(PICTURES[:1], {"total": torch.ones(2)})


class Models(ModelTechnique):
    def analyse(self, model, images):
        self.note("value", noted(PICTURES))
        return Table(provenance=self.provenance(model), rows=[{"unit": 1}, {"unit": 2}])


class OneStore(StoreTechnique):
    def analyse(self, source, images):
        self.note("value", noted(PICTURES))
        return Table(provenance=self.provenance(source), rows=[{"unit": 1}])


class ManyStores(StoresTechnique):
    def analyse(self, sources):
        self.note("value", noted(PICTURES))
        return Table(provenance=self.provenance(), rows=[{"unit": 1}])


ROWS = np.ones((3, 2), np.float32)
CALLS: dict[str, Any] = {
    "attribution": lambda model, size: Maps()(model, PICTURES, 0, batch_size=size),
    "attack": lambda model, size: Changes()(model, PICTURES, batch_size=size),
    "universal-attack": lambda model, size: Universal()(model, PICTURES, held_out=0.4),
    "defence": lambda model, size: Filters()(model, PICTURES, batch_size=size),
    "certification": lambda model, size: Proofs()(model, PICTURES, batch_size=size),
    "synthesis": lambda model, size: Images()(model, 0),
    "style": lambda model, size: Styles()(model, PICTURES[0], PICTURES[1]),
    "model": lambda model, size: Models()(model),
    "store": lambda model, size: OneStore()(ROWS),
    "stores": lambda model, size: ManyStores()([ROWS]),
}
OF_IMAGES = {
    "attribution": 3,
    "attack": 3,
    "defence": 3,
    "certification": 3,
    "synthesis": 3,
    "style": 1,
}
"""Bases whose results are of images, and their number."""


def test_every_base_but_training_is_tested() -> None:
    """A training has its loss terms and rates instead."""
    assert set(CALLS) == set(BASES) - {"training"}


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(function: Any) -> None:
        monkeypatch.setattr(f"{__name__}.noted", function)

    return use


@pytest.mark.parametrize("base", CALLS)
def test_one_value_for_all_is_kept_and_shown(
    base: str, linear_model: HookedModel, tmp_path: Path, note: Any
) -> None:
    note(lambda images: np.float32(0.5))
    result = CALLS[base](linear_model, 2)
    assert result.notes == {"value": 0.5}
    assert [row["value"] for row in result.summary()] == [0.5] * len(result.summary())
    folder = result.save(tmp_path)
    assert json.loads((folder / "result.json").read_text())["fields"]["notes"] == {"value": 0.5}
    assert load_result(folder, type(result)).notes == result.notes
    result.figure()


@pytest.mark.parametrize("base", OF_IMAGES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_values_of_chunks_are_joined_in_image_order(
    base: str, size: int, linear_model: HookedModel, tmp_path: Path, note: Any
) -> None:
    note(lambda images: images.mean((1, 2, 3)))
    result = CALLS[base](linear_model, size)
    expected = PICTURES.mean((1, 2, 3)).tolist()[: OF_IMAGES[base]]
    assert result.notes["value"] == pytest.approx(expected)
    assert [row["value"] for row in result.summary()] == pytest.approx(expected)
    assert load_result(result.save(tmp_path), type(result)).notes == result.notes
    texts = [t.get_text() for t in result.figure().findobj(lambda a: hasattr(a, "get_text"))]
    assert any(f"value {expected[0]:.3g}" in text for text in texts), texts


@pytest.mark.parametrize("base", OF_IMAGES)
def test_a_note_of_wrong_length_is_one_line(
    base: str, linear_model: HookedModel, note: Any
) -> None:
    note(lambda images: [1, 2, 3, 4])
    with pytest.raises(TechniqueError, match=r"noted 4 values of 'value'; expected one for all"):
        CALLS[base](linear_model, None)
    note(lambda images: [])
    with pytest.raises(TechniqueError, match="noted 0 values of 'value'") as caught:
        CALLS[base](linear_model, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", sorted(set(CALLS) - set(OF_IMAGES)))
def test_a_result_without_images_takes_one_value_for_all(
    base: str, linear_model: HookedModel, note: Any
) -> None:
    note(lambda images: [1.0, 2.0])
    with pytest.raises(TechniqueError, match="noted 2 values of 'value'; expected one value for"):
        CALLS[base](linear_model, None)


@pytest.mark.parametrize("value", [object(), {"a": 1}, [[1], [2], [3]], [object()] * 3, 1j])
def test_a_note_that_json_cannot_hold_is_one_line(
    value: Any, linear_model: HookedModel, note: Any
) -> None:
    note(lambda images: value)
    with pytest.raises(TechniqueError, match="for 'value'; expected numbers, booleans or text"):
        CALLS["attribution"](linear_model, None)


def test_numbers_that_are_not_finite_become_none(linear_model: HookedModel, note: Any) -> None:
    note(lambda images: [float("nan"), float("inf"), 2.0])
    assert CALLS["attribution"](linear_model, None).notes["value"] == [None, None, 2.0]


def test_a_note_called_like_a_column_does_not_replace_it(linear_model: HookedModel) -> None:
    class Scored(AttributionTechnique):
        def attribute(self, model, images, objective):
            self.note("score", "mine")
            return images.sum(1)

    row = Scored()(linear_model, PICTURES[:1], 0).summary()[0]
    assert isinstance(row["score"], float)
    assert row["score (noted)"] == "mine"


class Nothing(Technique):
    """A technique without a method."""


def test_chunks_may_note_one_value_or_many_and_may_leave_images_out() -> None:
    one = Nothing()
    notes = Notes(one, 5)
    with notes.of([3, 1]):
        one.note("step", [30, 10])
        one.note("same", True)
        one.note("own", "a")
        one.note("once", 1)
        one.note("step", [31, 11])  # replaces
    with notes.of([4]):
        one.note("step", 40)
        one.note("same", True)
        one.note("own", "b")
    assert notes.joined() == {
        "step": [None, 11, None, 31, 40],
        "same": True,
        "own": [None, "a", None, "a", "b"],
        "once": [None, 1, None, 1, None],
    }


def test_notes_of_an_inner_technique_stay_out() -> None:
    outer, inner = Nothing(), Nothing()
    notes = Notes(outer, 2)
    with notes.of([0, 1]):
        inner.note("step", list(range(64)))
        outer.note("step", [1, 2])
    outer.note("late", 3)  # outside a call, nothing happens
    assert notes.joined() == {"step": [1, 2]}
