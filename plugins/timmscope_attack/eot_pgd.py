"""EOT-PGD: gradient steps averaged over random views, so that an image fools from every side."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from timmscope import Goal, HookedModel, Loss, another_draw, image_generators
from timmscope_attack.gradient import GradientAttack
from timmscope_attack.physical_views import Views, draw_views
from timmscope_attack.view_gradient import view_gradient

_UNSEEN_DRAWS = 1_000_000
"""First draw of a random defence that no step meets."""


class EOTPGD(GradientAttack):
    """EOT-PGD changes an image so that it fools the model in most views of it.

    `x ← clip(Π(x + α · steepest(mean_i ∇ loss(f(tᵢ(x))))))`, from a random point of the ball, over
    `samples` views t that are drawn anew at each step: expectation over transformation. The views
    are those of a camera (turned, zoomed, shifted, lit), or of a print that is photographed; with
    `identity` it is PGD, bit for bit.

    The result is judged on the image itself, as for every attack. The notes say how it fares in
    `scored` other views: `fooled_share`, the share of the views in which the changed image reaches
    the goal, and `clean_fooled_share` of the same views of the clean image, which a model that errs
    on turned images anyway makes large too. Cost: `steps · samples` forward and backward passes per
    image, and 2 · `scored` forward passes.

    Paper:
        - Athalye, Engstrom, Ilyas & Kwok, "Synthesizing Robust Adversarial Examples", ICML 2018,
          arXiv:1707.07397.
        - Kurakin, Goodfellow & Bengio, "Adversarial Examples in the Physical World", ICLR Workshop
          2017, arXiv:1607.02533.

    Inherited parameters:
        norm: norm of the change: `linf`, its largest value, or `l2`, its Euclidean length.
        epsilon: radius of the ball in pixel units [0, 1]; by default 8/255 for linf, 3.0 (at
            224×224) for l2.
        draws: number of draws of a random defence over which each gradient is averaged, for the
            views `identity`; by default 10. With other views each of them meets another draw.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: a label or target is no class of the model, or the model has no classes.
        ParameterError: a parameter or `batch_size` is out of range, or a target equals its label.
        TechniqueError: the gradient is not finite.
        UnsupportedModel: the model has a defence without a gradient, or the views `print` are of
            images that JPEG does not take.
    """

    views: Views = "camera"
    """Views over which gradients are averaged: `camera` (turned, zoomed, shifted, lit), `print`
    (printed and photographed) or `identity`."""
    samples: int = Field(default=8, ge=1)
    """Views per step."""
    steps: int = Field(default=40, ge=1)
    """Number of steps."""
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Length of a step in the norm, in pixel units; by default 2.5 · epsilon / steps."""
    loss: Loss = "cross-entropy"
    """Loss to raise; the gradients of `margin` and `dlr` do not vanish where the softmax
    saturates."""
    random_start: bool = True
    """Start at a random point of the ball."""
    scored: int = Field(default=100, ge=0)
    """Number of unseen views in which the result is judged for the notes."""

    def perturb(self, model: HookedModel, images: Tensor, goal: Goal) -> Tensor:
        """Climb the mean loss over views, then judge unseen ones."""
        ball, generators = self.ball(images), image_generators(len(images))
        rows = torch.arange(len(images), device=images.device)
        size = 2.5 * ball.epsilon / self.steps if self.step_size is None else self.step_size
        changed = images
        if self.random_start:
            changed = (images + ball.sample(images, generators)).clamp(0, 1)
        for step in self.track(range(self.steps), f"{self.title()} steps"):
            if self.views == "identity":
                found = self.outputs_and_gradient(
                    model, changed, rows, goal, step=step, loss=self.loss
                )
                gradient = found[1]
            else:
                with self.only(rows):
                    gradient = self._gradient(model, changed, goal, generators, step)
                self.note_gradient(gradient, rows)
            changed = ball.step(images, changed, gradient, size)
        if self.scored:
            shares = self._fooled(model, [changed, images], goal, generators)
            for name, share in zip(("fooled_share", "clean_fooled_share"), shares, strict=True):
                self.note(name, share)
        return changed

    def _gradient(
        self,
        model: HookedModel,
        images: Tensor,
        goal: Goal,
        generators: list[torch.Generator],
        step: int,
    ) -> Tensor:
        """Return the mean gradient `(B, C, H, W)` over the views of a step."""
        total = torch.zeros_like(images)
        for number in range(self.samples):
            view = draw_views(self.views, images, generators)
            with another_draw(step * self.samples + number):
                total += view_gradient(model, images, goal, self.loss, view)[1]
        return total / self.samples

    def _fooled(
        self,
        model: HookedModel,
        judged: list[Tensor],
        goal: Goal,
        generators: list[torch.Generator],
    ) -> list[list[float]]:
        """Return for each batch the share of unseen views in which each image reaches the goal."""
        images = judged[0]
        rows = torch.arange(len(images), device=images.device)
        counts = [torch.zeros(len(images)) for _ in judged]
        for number in self.track(range(self.scored), "unseen views"):
            view = draw_views(self.views, images, generators)
            for batch, count in zip(judged, counts, strict=True):
                with self.only(rows), another_draw(_UNSEEN_DRAWS + number), torch.no_grad():
                    count += goal.reached(goal.outputs(model, view(batch))).cpu()
        return [(count / self.scored).tolist() for count in counts]
