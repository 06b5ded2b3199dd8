"""What a synthesis returns is checked: targets, facets, frames, and who gets which start."""

from __future__ import annotations

import pytest
import torch

from timmscope import (
    ParameterError,
    SynthesisOutcome,
    SynthesisTechnique,
    TechniqueError,
    class_logit,
    per_image,
)
from timmscope.testing import tiny_images, tiny_model


class Returns(SynthesisTechnique):
    """A synthesis that returns as many images as it is told, with some facts."""

    images: int = 1
    facts: str = ""

    def synthesize(self, model, objective, init):
        values = {
            "facets": {"facets": torch.tensor([2, 0, 1, 1])},
            "negative facets": {"facets": torch.tensor([-1] * self.images)},
            "targets": {"targets": torch.tensor([1, 0, 1, 1])},
            "a target too many": {"targets": torch.tensor([2] * self.images)},
            "targets as floats": {"targets": torch.zeros(self.images)},
            "frames": {"frames": torch.full((5, self.images, 3, 32, 32), 0.2)},
            "bright frames": {"frames": torch.full((5, self.images, 3, 32, 32), 1.5)},
            "small frames": {"frames": torch.zeros(5, self.images, 3, 8, 8)},
        }
        return SynthesisOutcome(
            images=tiny_images(self.images),
            scores=torch.zeros(2, self.images),
            best_step=torch.zeros(self.images, dtype=torch.long),
            **values.get(self.facts, {}),
        )


def test_images_without_targets_are_for_the_only_one_or_one_for_each():
    model = tiny_model()
    assert Returns(images=3)(model, "class:1").targets.tolist() == [0, 0, 0]
    made = Returns(images=2)(model, "class:4|7")
    assert made.targets.tolist() == [0, 1]
    logits = model(made.images)
    assert made.final_scores.tolist() == pytest.approx([logits[0, 4].item(), logits[1, 7].item()])


def test_targets_and_facets_of_an_outcome_are_in_the_result():
    model = tiny_model()
    made = Returns(images=4, facts="targets")(model, "class:4|7")
    assert made.targets.tolist() == [1, 0, 1, 1]
    assert made.labels == ["class 7", "class 4", "class 7", "class 7"]
    expected = model(made.images)[range(4), [7, 4, 7, 7]]
    assert made.final_scores.tolist() == pytest.approx(expected.tolist())
    made = Returns(images=4, facts="facets")(model, "class:4")
    assert [row["facet"] for row in made.summary()] == [2, 0, 1, 1]
    assert made.figure() is not None


def test_frames_are_kept_in_eight_bits():
    made = Returns(images=2, facts="frames")(tiny_model(), "class:1")
    assert made.frames.dtype == torch.uint8
    assert made.frames.unique().tolist() == [51]
    assert made.pictures()["frames-001"].shape == (3, 32, 160)


@pytest.mark.parametrize(
    ("images", "facts", "message"),
    [
        (3, "", "returned 3 images for 2 targets; expected one image of each, or the target"),
        (2, "a target too many", r"returned targets \[2, 2\]; expected whole numbers from 0 to 1"),
        (2, "targets as floats", "expected whole numbers from 0 to 1"),
        (2, "targets", "returned targets of shape"),
        (2, "negative facets", r"returned facets \[-1, -1\]; expected whole numbers from 0"),
        (2, "bright frames", "returned pixels from 1.5 to 1.5"),
        (2, "small frames", "returned images of shape"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_technique(images, facts, message):
    with pytest.raises(TechniqueError, match=message) as caught:
        Returns(images=images, facts=facts)(tiny_model(), "class:4|7")
    assert "Returns" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_image_gets_its_target_and_its_start():
    two, one, start = class_logit([4, 7]), class_logit(3), tiny_images(2)
    targets, goal, init = per_image(two, start, 2)
    assert (targets.tolist(), str(goal)) == ([0, 0, 1, 1], "class:4|4|7|7")
    assert torch.equal(init, start[[0, 0, 1, 1]])
    targets, goal, init = per_image(two, start[:1], 1)
    assert torch.equal(init, start[[0, 0]])
    targets, goal, init = per_image(one, start)
    assert (targets.tolist(), str(goal)) == ([0, 0], "class:3")
    assert torch.equal(init, start)
    assert per_image(one, None, 3)[0].tolist() == [0, 0, 0]
    for objective, count in ((one, 3), (class_logit([1, 2, 3]), 1)):
        with pytest.raises(ParameterError, match=r"these numbers differ: 3 .*, 2 initial images"):
            per_image(objective, start, count)
