"""What attacks do where a model has too few classes: another loss, or fewer target classes."""

from __future__ import annotations

import warnings

from timmscope import AttackTechnique, Goal, HookedModel, Loss


def usable_loss(attack: AttackTechnique, model: HookedModel, goal: Goal, loss: Loss) -> Loss:
    """Return the loss, or `margin` in place of `dlr` if the model has too few classes for it.

    DLR needs three classes, with targets four. The attack notes the loss and warns.

    Args:
        attack: the attack that raises the loss.
        model: the model to fool.
        goal: the goal of the loss.
        loss: the loss that was asked for.
    """
    classes, needed = class_count(model, goal), 3 if goal.targets is None else 4
    if loss != "dlr" or goal.objective is not None or not 0 < classes < needed:
        return loss
    attack.note("loss_used", "margin")
    warnings.warn(
        f"{attack.title()} raises the margin: dlr needs {needed} classes, {model.id} has {classes}",
        stacklevel=2,
    )
    return "margin"


def target_count(attack: AttackTechnique, model: HookedModel, goal: Goal, wanted: int) -> int:
    """Return how many other classes may be targets; fewer than wanted is noted, with a warning.

    Args:
        attack: the attack.
        model: the model to fool.
        goal: a goal without targets.
        wanted: number of target classes that was asked for.
    """
    classes = class_count(model, goal)
    if not 0 < classes <= wanted:
        return wanted
    attack.note("target_classes_used", classes - 1)
    warnings.warn(
        f"{attack.title()} tries {classes - 1} target class{'es' * (classes > 2)} instead of "
        f"{wanted}: {model.id} has {classes} classes",
        stacklevel=2,
    )
    return classes - 1


def class_count(model: HookedModel, goal: Goal) -> int:
    """Return the number of classes; 0 if it is not known."""
    return goal.classes or model.num_classes
