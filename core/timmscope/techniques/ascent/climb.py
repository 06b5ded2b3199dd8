"""The loop of gradient ascent on images, which syntheses share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope.techniques.ascent.best_images import BestImages, GradientCheck
from timmscope.techniques.ascent.frame_steps import frame_steps
from timmscope.techniques.ascent.memory_format import memory_format
from timmscope.techniques.ascent.outcome import SynthesisOutcome
from timmscope.techniques.ascent.parameterisation import Parameterisation, resized
from timmscope.techniques.ascent.views import Views, view
from timmscope.techniques.session import images_per_pass
from timmscope_registry import TechniqueError, UnsupportedModel
from timmscope_registry.hooks import LOGITS, redirected

if TYPE_CHECKING:
    from timmscope.techniques.base import Technique

CHECK_EVERY = 16
"""Steps between two evaluations of the images without a random view."""
REDIRECTED_STEPS = 16
"""First steps in which a gradient that dead ReLUs stop is led around them (Lucid)."""
FUSED_STEPS = 32
"""Number of steps from which a loop runs on the fused copy of its model."""
_PATIENCE = 8

Recording = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Climb:
    """Gradient ascent on the variables of images, which returns the best image of each.

    `max_z E_v[S(v(x(z)))] − penalty(x(z))` with the objective S, random views v and the image x of
    the variable z. Every 16 steps, and at the end, the images are scored without a view, and minus
    the penalty; the best of these is returned. A gradient that is zero because all ReLUs of a layer
    are dead is led around them in the first 16 steps. A score that is not a finite number ends the
    loop with a warning that names the step, and the best image so far is returned.

    Attributes:
        space: from variables to images.
        steps: number of steps.
        optimiser: makes the optimiser of the variables `(B, …)`.
        views: the random views; None for the image itself.
        view_size: height and width of a view in pixels; by default the image's.
        penalty: cost `(B,)` of images `(B, C, H, W)`; None for none.
        variable_penalty: cost `(B,)` of the variables `(B, …)`; None for none.
        together: value `(B · number of views,)` of the views that is added to their objectives, of
            a recording; it may compare images of a batch. The returned image is chosen without it.
        points: hook points that `together` reads.
        beside: images `(B, C, H, W)` to compare with: `together` then gets a second recording, of
            the same views of these.
        after_step: called with the variables and the number of the step after each, to change them
            in place.
        frames: number of images to keep for an animation.
        importance: whether to add up the absolute gradients of the steps.
    """

    space: Parameterisation
    steps: int
    optimiser: Callable[[Tensor], torch.optim.Optimizer]
    views: Views | None = None
    view_size: tuple[int, int] | None = None
    penalty: Callable[[Tensor], Tensor] | None = None
    variable_penalty: Callable[[Tensor], Tensor] | None = None
    together: Callable[..., Tensor] | None = None
    points: tuple[str, ...] = ()
    beside: Tensor | None = None
    after_step: Callable[[Tensor, int], None] | None = None
    frames: int = 0
    importance: bool = False

    def run(
        self,
        technique: Technique,
        model: HookedModel,
        objective: Objective,
        variable: Tensor,
        generators: list[torch.Generator],
        *,
        first: int = 0,
        count: int | None = None,
    ) -> SynthesisOutcome:
        """Climb from variables `(B, …)`, which are changed in place.

        Args:
            technique: whose progress is shown.
            model: the model.
            objective: a bound objective for these images.
            variable: where to start, `(B, …)`.
            generators: one per image, which draw its views.
            first: number of the first image, for messages.
            count: number of images of the whole call; by default these.

        Returns:
            The best images.

        Raises:
            TechniqueError: the gradient of an image is zero, or a score is not a finite number
                before there is an image.
        """
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            image_rows(range(first, first + len(variable))),
        ):
            loop = _Loop(self, model, objective, variable.requires_grad_(), generators, first)
            alone = count is None or count <= len(variable)
            description = "optimising" if alone else f"image {first + 1} of {count}"
            with model.record(*dict.fromkeys((*objective.points, *self.points))) as recording:
                for step in technique.track(range(self.steps), description):
                    loop.step(recording, step)
                    if ((step + 1) % CHECK_EVERY == 0 or step + 1 == self.steps) and loop.check(
                        recording, step
                    ):
                        break
            return loop.outcome()


class _Loop:
    """The state of one climb."""

    def __init__(
        self,
        climb: Climb,
        model: HookedModel,
        objective: Objective,
        variable: Tensor,
        generators: list[torch.Generator],
        first: int,
    ) -> None:
        self._climb, self._model, self._objective = climb, model, objective
        self._variable, self._generators, self._first = variable, generators, first
        views = climb.views
        self._views = None if views is None or views.identity else views
        self._number = 1 if self._views is None else self._views.number
        self._maps = (
            None
            if self._views is None
            else self._views.draw(climb.steps, climb.space.size, generators).to(variable)
        )
        rows = range(len(variable))
        named = objective.num_targets is not None and self._number > 1
        repeated = [row for row in rows for _ in range(self._number)]
        self._viewed = objective.take(repeated) if named else objective
        self._optimiser = climb.optimiser(variable)
        self._best = BestImages(len(variable), variable)
        patience = REDIRECTED_STEPS + _PATIENCE
        self._gradients = GradientCheck(
            objective, len(variable), climb.steps, first, variable, patience
        )
        self._layout = memory_format(model.module)
        self._kept = frame_steps(climb.steps, climb.frames)
        self._scores: list[Tensor] = []
        self._frames: list[Tensor] = []
        self._importance: Tensor | float = 0.0

    def step(self, recording: Recording, step: int) -> None:
        """Take one step."""
        climb, variable = self._climb, self._variable
        image = climb.space.image(variable)
        leaf = image.detach().requires_grad_()
        noise = self._noise()
        score = self._gradient(recording, leaf, step, noise)
        assert leaf.grad is not None, "the backward pass has filled it"
        self._gradients.add(leaf.grad, step)
        if step < REDIRECTED_STEPS:
            self._redirect(recording, leaf, step, noise)
        assert leaf.grad is not None, "the backward pass has filled it"
        if climb.importance:
            self._importance = self._importance + leaf.grad.abs().sum(1)
        if climb.penalty is not None:
            climb.penalty(leaf).sum().backward()
        self._optimiser.zero_grad()
        image.backward(leaf.grad)
        if climb.variable_penalty is not None:
            climb.variable_penalty(variable).sum().backward()
        self._optimiser.step()
        if climb.after_step is not None:
            with torch.no_grad():
                climb.after_step(variable, step)
        self._scores.append(score)
        if step in self._kept:
            with torch.no_grad():
                self._frames.append(climb.space.image(variable).float().cpu())

    def _noise(self) -> Tensor | float:
        """The noise of the views of a step."""
        if self._views is None:
            return 0.0
        size = self._climb.view_size or self._climb.space.size
        return self._views.noise((self._climb.space.channels, *size), self._generators)

    def _gradient(
        self, recording: Recording, leaf: Tensor, step: int, noise: Tensor | float
    ) -> Tensor:
        """Add the gradient of minus the objective to the images; returns the scores `(B,)`."""
        scores = []
        seen = self._seen(leaf, step, noise)
        beside = self._climb.beside
        others = None if beside is None else self._seen(beside.to(leaf), step, noise)
        size = max(images_per_pass(self._model, seen), 1) if self._number > 1 else len(seen)
        if self._climb.together is not None and beside is None:
            size = len(seen)  # it may compare all of them
        for start in range(0, len(seen), size):
            further: tuple[Recording, ...] = ()
            if others is not None:
                further = (self._features(recording, others[start : start + size]),)
            part = seen[start : start + size]
            self._model(part.contiguous(memory_format=self._layout))
            score = self._viewed.rows(start, start + size)(recording)
            scores.append(score.detach())
            total = score
            if self._climb.together is not None:
                total = total + self._climb.together(recording, *further)
            (-total.sum() / self._number).backward(retain_graph=start + size < len(seen))
        return torch.cat(scores).reshape(len(leaf), self._number).mean(1)

    def _features(self, recording: Recording, seen: Tensor) -> dict[str, Tensor]:
        """The activations of images at the points of `together`, without a graph."""
        with torch.no_grad():
            self._model(seen.contiguous(memory_format=self._layout))
            return {point: recording[point].detach().clone() for point in self._climb.points}

    def _seen(self, images: Tensor, step: int, noise: Tensor | float) -> Tensor:
        """The views of images at a step, those of an image behind each other."""
        if self._views is None or self._maps is None:
            return images.clone()
        maps = self._maps[step].flatten(0, 1)
        if self._number > 1:
            images = images.repeat_interleave(self._number, dim=0)
        seen = view(images, maps, self._climb.view_size)
        return seen + noise.to(seen) if isinstance(noise, Tensor) else seen

    def _redirect(
        self, recording: Recording, leaf: Tensor, step: int, noise: Tensor | float
    ) -> None:
        """Lead the gradient of images that have none around dead ReLUs."""
        assert leaf.grad is not None, "the backward pass has filled it"
        dead = leaf.grad.flatten(1).abs().amax(1) == 0
        if not bool(dead.any()):
            return
        twin = leaf.detach().requires_grad_()
        try:
            with self._model.backward_rule(redirected):
                self._gradient(recording, twin, step, noise)
        except UnsupportedModel:  # there is no activation to lead it around
            return
        assert twin.grad is not None, "the backward pass has filled it"
        leaf.grad = torch.where(dead[:, None, None, None], twin.grad, leaf.grad)

    def check(self, recording: Recording, step: int) -> bool:
        """Score the images without views; returns whether the loop has to end."""
        bad = ~torch.stack(self._scores).isfinite().all(1)
        if bool(bad.any()):
            self._end_at(int(bad.nonzero()[0]))
            return True
        with torch.no_grad():
            image = self._climb.space.image(self._variable)
            seen = resized(image, self._climb.view_size or self._climb.space.size)
            self._model(seen.contiguous(memory_format=self._layout))
            score = self._objective(recording)
            if self._climb.penalty is not None:
                score = score - self._climb.penalty(image)
            if self._climb.variable_penalty is not None:
                score = score - self._climb.variable_penalty(self._variable)
            self._best.offer(image, score, step)
        return False

    def _end_at(self, step: int) -> None:
        """Keep what was found before a step whose score is not finite."""
        rows = self._first + int((~self._scores[step].isfinite()).nonzero()[0])
        problem = (
            f"the score of {self._objective.label} is not finite at step {step} of image {rows}"
        )
        if not len(self._best.images):
            raise TechniqueError(f"{problem}: lower the learning rate")
        warnings.warn(
            f"{problem}: the best image of the steps before is kept; lower the learning rate",
            stacklevel=2,
        )
        del self._scores[step:]
        while len(self._scores) < self._climb.steps:
            self._scores.append(self._scores[-1])
        sound = [frame for frame in self._frames if bool(frame.isfinite().all())]
        lacking = len(self._kept) - len(sound)
        self._frames = sound + [self._best.images.float().cpu()] * lacking

    def outcome(self) -> SynthesisOutcome:
        """Return the best images."""
        return SynthesisOutcome(
            images=self._best.images,
            scores=torch.stack(self._scores),
            best_step=self._best.steps,
            frames=torch.stack(self._frames) if self._frames else None,
            importance=self._importance if isinstance(self._importance, Tensor) else None,
        )


def loop_model(model: HookedModel, points: Iterable[str], steps: int) -> HookedModel:
    """Return the model that a loop of so many steps should run: the fused copy, or the model.

    The copy is for long loops that read no layer that is folded in it; see `HookedModel.fused`.

    Args:
        model: the model.
        points: hook points that the loop reads.
        steps: number of steps.
    """
    if steps < FUSED_STEPS:
        return model
    copy = model.fused()
    return copy if all(point in copy.layers for point in points if point != LOGITS) else model
