"""The gradient of an attack's loss through a change of the images, such as a random view."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from timmscope import Goal, HookedModel, Loss, ObjectiveError

View = Callable[[Tensor], Tensor]
"""Changes images `(B, C, H, W)` before a model sees them; differentiable."""


def view_gradient(
    model: HookedModel, images: Tensor, goal: Goal, loss: Loss, view: View
) -> tuple[Tensor, Tensor]:
    """Compute the outputs of changed images, and the gradient of their loss in the images.

    Args:
        model: the model.
        images: `(n, C, H, W)` in [0, 1].
        goal: the goal of these images.
        loss: the loss to raise.
        view: what happens to the images before the model.

    Raises:
        ObjectiveError: the objective does not depend on the images.
    """
    leaf = images.detach().clone().requires_grad_()
    outputs = goal.outputs(model, view(leaf))
    raised = goal.loss(outputs, loss)
    if not raised.requires_grad:
        raise ObjectiveError("the objective does not depend on the images: choose another one")
    (gradient,) = torch.autograd.grad(raised.sum(), leaf)
    return outputs.detach(), gradient
