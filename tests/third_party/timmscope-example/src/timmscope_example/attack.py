"""An attack that a cloud could make."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from timmscope import AttackTechnique, Goal, HookedModel


class Brightness(AttackTechnique):
    """Tries brighter and darker images, from little to much, and keeps the first that fools."""

    uses_gradients = False

    norm: Literal["linf"] = "linf"
    """The norm of the change: its largest value."""
    epsilon: float = Field(default=0.5, gt=0, le=1)
    """The largest change of every value, in pixel units [0, 1]."""
    levels: int = Field(default=8, ge=1)
    """How many changes to try in each direction."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1]; those that nothing fools are unchanged."""
        changed, todo = images.clone(), torch.arange(len(images), device=images.device)
        steps = [self.epsilon * (level + 1) / self.levels for level in range(self.levels)]
        for change in self.track([sign * step for step in steps for sign in (1, -1)]):
            if len(todo):
                tried = (images[todo] + change).clamp(0, 1)
                own = goal.rows(todo)
                with torch.no_grad(), self.only(todo):
                    fooled = own.reached(own.outputs(model, tried))
                changed[todo[fooled]] = tried[fooled]
                todo = todo[~fooled]
        return changed
