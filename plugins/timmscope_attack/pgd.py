"""PGD: many small gradient steps, each projected back into the ball."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from timmscope import Goal, HookedModel, Loss, image_generators
from timmscope_attack.few_classes import usable_loss
from timmscope_attack.gradient import GradientAttack


class PGD(GradientAttack):
    """PGD takes many small gradient steps, and projects each back into the ball around the image.

    `x ← clip(Π(x + α · steepest(∇ loss)))` from a random point of the ball, where Π is the
    projection and `steepest` the sign (linf), the gradient at unit length (l2), or the signs of the
    fifth of the values with the largest slopes (l1). In l1, Π projects onto the ball and [0, 1] at
    once, because clipping after it would lose most of the change. It returns the last iterate, as
    other implementations do, unless `stop_when_fooled`. Cost: `steps` forward and
    backward passes per image and restart; with several restarts one more forward pass each, to find
    the images that do not fool the model yet.

    Paper:
        Madry, Makelov, Schmidt, Tsipras & Vladu, "Towards Deep Learning Models Resistant to
        Adversarial Attacks", ICLR 2018, arXiv:1706.06083. In L1 it follows Tramèr & Boneh,
        "Adversarial Training and Robustness for Multiple Perturbations", NeurIPS 2019,
        arXiv:1904.13000, and Croce & Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on
        Image Classifiers", ICML 2021, arXiv:2103.01208.

    Inherited parameters:
        norm: norm of the change: `linf`, its largest value, `l2`, its Euclidean length, or `l1`,
            the sum of its magnitudes.
        epsilon: radius of the ball in pixel units [0, 1]; by default 8/255 for linf, at 224×224 3.0
            for l2 and 60 for l1.
        draws: number of draws of a random defence over which each gradient is averaged; by default
            10. A model without a random defence needs one.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient.
    """

    steps: int = Field(default=40, ge=1)
    """Number of steps."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of a step in the norm, in pixel units; by default 2.5 · epsilon / steps."""
    loss: Loss = "cross-entropy"
    """Loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax saturates,
    and `dlr` does not depend on the scale of the logits. With too few classes for `dlr`, it is
    `margin`."""
    random_start: bool = True
    """Start at a random point of the ball; it does not depend on how a batch is split."""
    restarts: int = Field(default=1, ge=1)
    """Number of random starts; images that already fool the model are not attacked again."""
    stop_when_fooled: bool = False
    """Stop at the first step that fools the model: cheaper, but without a margin, so that fewer
    results survive rounding to 8 bits."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> PGD:
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                "restarts without random_start are all the same: set random_start to true"
            )
        return self

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Attack from each start; keep what fools the model, else the image of the largest loss."""
        best = images.clone()
        highest = torch.full((len(images),), -torch.inf, device=images.device)
        first = torch.full((len(images),), -1, device=images.device)
        generators = image_generators(len(images))
        rows = torch.arange(len(images), device=images.device)
        loss = usable_loss(self, model, goal, self.loss)
        for restart in range(self.restarts):
            changed, reached_at = self._climb_once(model, images, rows, goal, loss, generators)
            new = (first[rows] < 0) & (reached_at >= 0)
            first[rows[new]] = reached_at[new] + restart * self.steps
            if self.restarts == 1:
                best = changed
                break
            own = goal.rows(rows)
            with self.only(rows), torch.no_grad():
                outputs = own.outputs(model, changed)
            fooled = own.reached(outputs)
            last = rows[fooled & (first[rows] < 0)]
            first[last] = (restart + 1) * self.steps
            value = own.loss(outputs, loss).float()
            better = fooled | (value > highest[rows])
            best[rows[better]] = changed[better]
            highest[rows] = torch.maximum(highest[rows], value)
            rows = rows[~fooled]
            if not len(rows):
                break
        self.note("first_success_step", [step if step >= 0 else None for step in first.tolist()])
        return best

    def _climb_once(
        self,
        model: HookedModel,
        images: Tensor,
        rows: Tensor,
        goal: Goal,
        loss: Loss,
        generators: list[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        ball = self.ball(images)
        start = images[rows]
        if self.random_start:
            start = (start + ball.sample(start, [generators[row] for row in rows.tolist()])).clamp(
                0, 1
            )
        return self.climb(
            model,
            images,
            start,
            rows,
            goal,
            ball,
            step_size=2.5 * ball.epsilon / self.steps if self.step_size is None else self.step_size,
            steps=self.steps,
            loss=loss,
            stop_when_fooled=self.stop_when_fooled,
        )
