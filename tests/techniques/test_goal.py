"""A goal decides what counts as success, and its losses have the values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from timmscope import Goal, HookedModel, ParameterError, channel, class_logit

LOGITS = torch.tensor([[2.0, 1.0, -1.0, 0.0, 0.5], [0.0, 3.0, 1.0, 2.0, -4.0]])
LABELS, TARGETS = torch.tensor([0, 2]), torch.tensor([1, 3])
AWAY, TOWARDS = Goal(labels=LABELS), Goal(labels=LABELS, targets=TARGETS)


def test_another_class_than_the_label_or_the_target_is_success():
    assert AWAY.reached(LOGITS).tolist() == [False, True]
    assert TOWARDS.reached(LOGITS).tolist() == [False, False]
    assert TOWARDS.reached(LOGITS[:, [1, 0, 2, 3, 4]]).tolist() == [True, False]


def test_the_cross_entropy_is_that_of_the_label_or_minus_that_of_the_target():
    total = [math.log(sum(map(math.exp, row))) for row in LOGITS.tolist()]
    assert AWAY.loss(LOGITS).tolist() == pytest.approx([total[0] - 2, total[1] - 1])
    assert TOWARDS.loss(LOGITS).tolist() == pytest.approx([1 - total[0], 2 - total[1]])


def test_the_margin_is_between_the_class_and_the_best_other():
    assert AWAY.loss(LOGITS, "margin").tolist() == [1 - 2, 3 - 1]
    assert TOWARDS.loss(LOGITS, "margin").tolist() == [1 - 2, 2 - 3]


def test_the_goal_is_reached_where_its_margin_is_positive():
    for goal in (AWAY, TOWARDS):
        assert ((goal.margin(LOGITS) > 0) == goal.reached(LOGITS)).all()
    raised = Goal(labels=torch.zeros(0), objective=channel("a", 0), value=1.5)
    assert raised.margin(torch.tensor([1.0, 1.5, 4.0])).tolist() == [-0.5, 0.0, 2.5]


def test_dlr_is_the_margin_over_the_spread_of_the_largest_logits():
    # Sorted, the rows are 2, 1, .5, 0, -1 and 3, 2, 1, 0, -4.
    assert AWAY.loss(LOGITS, "dlr").tolist() == pytest.approx([(1 - 2) / 1.5, (3 - 1) / 2])
    aimed = [(1 - 2) / (2 - 0.25), (2 - 1) / (3 - 0.5)]
    assert TOWARDS.loss(LOGITS, "dlr").tolist() == pytest.approx(aimed)
    scaled = AWAY.loss(1000 * LOGITS + 7, "dlr")
    torch.testing.assert_close(scaled, AWAY.loss(LOGITS, "dlr"))


@pytest.mark.parametrize(("goal", "classes"), [(AWAY, 2), (TOWARDS, 3)])
def test_dlr_needs_classes_to_compare_with(goal, classes):
    with pytest.raises(ParameterError, match=f"needs {classes + 1} classes, the model has") as told:
        goal.loss(LOGITS[:, :classes], "dlr")
    assert "use margin" in str(told.value)


def test_rows_are_the_goals_of_some_images():
    some = TOWARDS.rows(torch.tensor([1]))
    assert (some.labels.tolist(), some.targets.tolist()) == ([2], [3])
    own = Goal(labels=LABELS, objective=class_logit([3, 4]) - 2.0 * class_logit(1), value=1.0)
    text = "class:4|3 - 2.0*class:1"
    assert str(own.rows(torch.tensor([1, 0])).objective) == text
    one = Goal(labels=LABELS[:0], objective=channel("a", 1)).rows(torch.tensor([1]))
    assert (len(one.labels), str(one.objective)) == (0, "a[1]")


def test_an_objective_is_its_own_loss_and_is_reached_at_the_value(linear_model: HookedModel):
    images = torch.rand(4, 3, 4, 4)
    scores = linear_model(images)[:, 2]
    bound = class_logit(2).bind(linear_model, images)
    goal = Goal(labels=scores[:0].long(), objective=bound, value=float(scores[1]))
    outputs, gradient = goal.gradient(linear_model, images)
    torch.testing.assert_close(outputs, scores)
    assert torch.equal(goal.loss(outputs, "margin"), outputs)
    assert goal.reached(outputs).tolist() == (scores >= scores[1]).tolist()
    slope = linear_model.module.fc.weight[2].view(3, 4, 4)
    torch.testing.assert_close(gradient, slope.expand(4, -1, -1, -1))


def test_the_gradient_is_that_of_the_loss_and_leaves_no_graph(linear_model: HookedModel):
    images = torch.rand(3, 3, 4, 4)
    goal = Goal(labels=torch.tensor([0, 1, 2]))
    with torch.no_grad():
        logits, gradient = goal.gradient(linear_model, images)
    assert not logits.requires_grad
    weight = linear_model.module.fc.weight
    wrong = logits.softmax(1) - torch.eye(3)
    torch.testing.assert_close(gradient, (wrong @ weight).view(3, 3, 4, 4))
    assert linear_model.module.fc.weight.grad is None
