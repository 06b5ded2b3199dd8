"""An attack by proxy."""

from typing import Literal

from torch import Tensor

from timmscope import AttackTechnique, Goal, HookedModel, ModelName


class BorrowedGradient(AttackTechnique):
    """One step along the gradient of another model."""

    norm: Literal["linf", "l2"] = "linf"
    """The norm of the change: its largest value, or its Euclidean length."""
    surrogate: ModelName
    """The model whose gradient is followed."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """The attacked model itself is not asked."""
        gradient = goal.gradient(self.open_model(self.surrogate), images)[1]
        ball = self.ball(images)
        return ball.step(images, images, gradient, ball.epsilon)
