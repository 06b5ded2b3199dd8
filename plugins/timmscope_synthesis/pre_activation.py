"""Finds the layer before the activation function of an objective's layer."""

from __future__ import annotations

from timmscope import HookedModel, Objective, ParameterError


def before_activation(model: HookedModel, objective: Objective) -> Objective:
    """Return the bound objective at what the activation functions of its layers get.

    Raises:
        ParameterError: no layer of the objective ends with an activation function whose input is a
            layer of its own.
    """
    found = {}
    for call in model.hooks.activations():
        before = sorted(name for name in call.before if name in model.layers)
        for after in call.after & set(objective.points) if before else ():
            found[after] = min(before, key=lambda name: model.layers[name].order)
    if not found:
        raise ParameterError(
            f"no layer of {objective} in {model.id} ends with an activation function whose input "
            "is a layer: leave pre_activation unset, or name the layer before the activation",
            parameter="pre_activation",
        )
    return objective.at_layers(found).bind(model, None)
