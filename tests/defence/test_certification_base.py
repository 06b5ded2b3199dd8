"""What the base of certifications does for every technique, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from timmscope import (
    Certificates,
    CertificationOutcome,
    CertificationTechnique,
    HookedModel,
    ImageError,
    ModelError,
    ObjectiveError,
    ParameterError,
    TechniqueError,
    image_generators,
    load_result,
)
from timmscope.techniques.restore_state import StateWarning
from timmscope.testing import tiny_images, tiny_model

PREDICTED = [3, 3, -1, 5, 3]
LABELS = [3, 3, 3, 3, 3]
RADII = [0.5, 0.25, 9.0, 7.0, 0.0]


class Given(CertificationTechnique):
    """Returns what `PREDICTED` and `RADII` say."""

    norm = "linf"
    what: Literal["all"] = "all"
    """Nothing."""

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        rows = (images[:, 0, 0, 0] * 10).round().long()
        return CertificationOutcome(
            predictions=torch.tensor(PREDICTED)[rows],
            radius=torch.tensor(RADII)[rows],
            global_bound=float(rows.max()),
        )


def numbered(count: int = 5) -> Tensor:
    """Images whose first pixel is a tenth of their number."""
    images = tiny_images(count)
    images[:, 0, 0, 0] = torch.arange(count) / 10
    return images


def result(**how: Any) -> Certificates:
    return Given()(tiny_model(), numbered(), LABELS, **how)


def test_a_radius_counts_only_where_the_prediction_is_the_label() -> None:
    found = result()
    assert found.radius.tolist() == [0.5, 0.25, 0, 0, 0]
    assert found.predictions.tolist() == PREDICTED
    assert found.abstained.tolist() == [False, False, True, False, False]
    assert found.correct.tolist() == [True, True, False, False, True]
    assert found.norm == "linf"
    assert found.mean_radius == 0.15


def test_the_curve_by_hand() -> None:
    found = result()
    assert [found.certified_accuracy(r) for r in (0, 0.1, 0.25, 0.3, 0.5, 0.6)] == [
        0.6, 0.4, 0.4, 0.2, 0.2, 0.0,
    ]  # fmt: skip
    radii, accuracy = found.curve()
    assert radii.tolist() == [0, 0.25, 0.5]
    assert accuracy.tolist() == [0.6, 0.4, 0.2]
    assert found.documents()["curve.csv"].splitlines() == [
        "radius_linf,certified_accuracy", "0.0,0.6", "0.25,0.4", "0.5,0.2",
    ]  # fmt: skip


def test_the_global_bound_is_the_largest_of_the_chunks() -> None:
    assert result(batch_size=2).global_bound == result().global_bound == 4.0
    assert torch.equal(result(batch_size=2).radius, result().radius)


def test_without_labels_the_models_own_predictions_count() -> None:
    model, images = tiny_model(), numbered()
    found = Given()(model, images)
    assert torch.equal(found.labels, model(images).argmax(1))
    assert torch.equal(found.clean, found.labels)
    assert found.clean_accuracy == 1


def test_it_is_saved_drawn_and_loaded(tmp_path: Path) -> None:
    found = result()
    assert [row["radius_linf"] for row in found.summary()] == [0.5, 0.25, 0, 0, 0]
    assert found.summary()[2]["certified"] is None
    again = load_result(found.save(tmp_path), Certificates)
    assert torch.equal(again.radius, found.radius)
    assert (again.norm, again.global_bound, again.class_names) == ("linf", 4.0, found.class_names)
    for name in ("figure.png", "curve.png", "curve.csv"):
        assert (tmp_path / name).stat().st_size > 0


class Chosen(CertificationTechnique):
    """The user chooses the norm."""

    norm: Literal["l1", "l2"] = "l2"  # type: ignore[misc]
    """Norm of the radius."""

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        return CertificationOutcome(predictions=labels, radius=torch.ones(len(images)))


def test_a_norm_may_be_a_parameter() -> None:
    assert Chosen(norm="l1")(tiny_model(), numbered(), 3).norm == "l1"


class NoNorm(CertificationTechnique):
    """Has no norm."""

    def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> CertificationOutcome:
        raise AssertionError("it is refused before it runs")


class OddNorm(NoNorm):
    """Has a norm that is none."""

    norm = "l3"


@pytest.mark.parametrize(
    ("kind", "words"),
    [(NoNorm, "NoNorm has no norm; expected one of l0, l1, l2, linf"), (OddNorm, "the norm 'l3'")],
)
def test_a_certificate_without_a_norm_is_refused(
    kind: type[CertificationTechnique], words: str
) -> None:
    with pytest.raises(TechniqueError, match=re.escape(words)):
        kind()(tiny_model(), numbered())


def outcome(**changes: Any) -> CertificationOutcome:
    values = {"predictions": torch.zeros(5, dtype=torch.long), "radius": torch.zeros(5), **changes}
    return CertificationOutcome(**values)


WRONG = {
    "tuple": (("a", "b"), "returned a tuple; expected a CertificationOutcome"),
    "shape": (outcome(predictions=torch.zeros(4, dtype=torch.long)), "of shape (4,)"),
    "floats": (outcome(predictions=torch.zeros(5)), "expected whole numbers from 0 to 9, or -1"),
    "flags": (outcome(predictions=torch.zeros(5, dtype=torch.bool)), "expected whole numbers"),
    "class": (outcome(predictions=torch.full((5,), 10)), "predictions such as [10, 10, 10, 10]"),
    "minus two": (outcome(predictions=torch.full((5,), -2)), "or -1 to abstain"),
    "nan": (outcome(radius=torch.full((5,), torch.nan)), "NaN or infinite radii"),
    "infinite": (outcome(radius=torch.full((5,), torch.inf)), "NaN or infinite radii"),
    "negative": (outcome(radius=torch.full((5,), -0.5)), "a radius of -0.5; expected 0 or more"),
    "column": (outcome(radius=torch.zeros(5, 1)), "returned radii of shape (5, 1)"),
    "list": (outcome(radius=[0.0] * 5), "returned a list for radii"),
    "bound": (outcome(global_bound=torch.inf), "the global bound inf; expected a finite number"),
    "text bound": (outcome(global_bound="2"), "the global bound '2'"),
}


@pytest.mark.parametrize(("returned", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_certificate_is_refused_in_one_line(returned: Any, words: str) -> None:
    class Wrong(NoNorm):
        """Returns something else."""

        norm = "l2"

        def certify(self, model: HookedModel, images: Tensor, labels: Tensor) -> Any:
            return returned

    with pytest.raises(TechniqueError, match=re.escape(words)) as caught:
        Wrong()(tiny_model(), numbered())
    assert "\n" not in str(caught.value)
    assert "Wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "how", "error", "words"),
    [
        ((tiny_model().module, numbered()), {}, ModelError, "takes a HookedModel"),
        ((tiny_model(), numbered() * 2), {}, ImageError, "expected [0, 1]"),
        ((tiny_model(), numbered(), 10), {}, ObjectiveError, "there is no class 10"),
        ((tiny_model(), numbered(), [1, 2]), {}, ObjectiveError, "2 labels for 5 images"),
        ((tiny_model(), numbered()), {"batch_size": 0}, ParameterError, "batch_size is 0"),
        ((tiny_model(), numbered()), {"seed": "x"}, ParameterError, "seed is 'x'"),
    ],
)
def test_a_wrong_argument_is_refused(
    arguments: tuple[Any, ...], how: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        Given()(*arguments, **how)


def test_one_class_cannot_change() -> None:
    model = HookedModel.of_function(
        lambda images: images.mean((1, 2, 3))[:, None],
        outputs="logits", num_classes=1, input_size=(3, 32, 32), id="one:class",
    )  # fmt: skip
    with pytest.raises(ObjectiveError, match="one:class has one class, so no prediction could"):
        Given()(model, numbered())


def test_noise_belongs_to_an_image_and_passes_to_its_row() -> None:
    class Noise(Given):
        """Its radius is the first random number of the image; image i runs i passes."""

        def certify(
            self, model: HookedModel, images: Tensor, labels: Tensor
        ) -> CertificationOutcome:
            drawn = [float(torch.rand((), generator=g)) for g in image_generators(len(images))]
            for row, number in enumerate((images[:, 0, 0, 0] * 10).round().long().tolist()):
                with self.only(torch.tensor([row])):
                    for _ in range(number):
                        model(images[row : row + 1].expand(2, -1, -1, -1))
            return CertificationOutcome(predictions=labels, radius=torch.tensor(drawn))

    whole = Noise()(tiny_model(), numbered(), 3, seed=1)
    split = Noise()(tiny_model(), numbered(), 3, seed=1, batch_size=2)
    assert torch.equal(whole.radius, split.radius)
    assert len(set(whole.radius.tolist())) == 5
    assert whole.forwards.tolist() == split.forwards.tolist() == [0, 2, 4, 6, 8]


def test_the_model_is_left_as_it_was_and_images_too() -> None:
    class Rude(Given):
        """Changes what it was given."""

        def certify(
            self, model: HookedModel, images: Tensor, labels: Tensor
        ) -> CertificationOutcome:
            found = super().certify(model, images, labels)
            model.module.train()
            images.zero_()
            labels.zero_()
            return found

    model, images = tiny_model(), numbered()
    before = images.clone()
    with pytest.warns(StateWarning, match="train mode"):
        found = Rude()(model, images, LABELS)
    assert not model.module.training
    assert torch.equal(images, before)
    assert torch.equal(found.images, before)
    assert found.labels.tolist() == LABELS
