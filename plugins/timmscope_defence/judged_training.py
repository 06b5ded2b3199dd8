"""Trainings whose card says what attacks leave of the accuracy, also those not trained on."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor, nn

from timmscope import (
    AttackTechnique,
    Ball,
    Goal,
    HookedModel,
    Loss,
    ModelName,
    Norm,
    ParameterError,
    TechniqueName,
    TrainingBatch,
    TrainingTechnique,
)
from timmscope_defence.attacked_images import attacked_images

_OTHER: dict[Norm, Norm] = {"linf": "l2", "l2": "linf"}
_MOST_STEPS = 20
"""Steps of the attacks beside that of the ball itself, unless that has fewer."""
_WIDER = 2.0
"""The other radius at which a network is judged, beside its own."""


class JudgedTraining(TrainingTechnique):
    """Base of trainings of classifiers that are judged by attacks on held-out images.

    A subclass says with `judged_ball` in which ball PGD judges the network. The card then has the
    accuracy there, and under what the network was not trained on: a loss that does not vanish where
    the softmax saturates, twice the radius, and another norm. That of L2 for L∞, and the other way
    round, has the radius with the same ratio to the norm's usual one (see `Ball.of`).
    """

    judge_steps: int = Field(default=50, ge=1)
    """Steps of the PGD that judges the trained network on held-out images; further ones have at
    most 20."""
    judged_by: tuple[TechniqueName[AttackTechnique], ...] = ()
    """Further attacks that judge it, such as `square epsilon=0.1`."""
    beside: ModelName | None = None
    """Model whose accuracy on held-out images the card compares, such as `file:standard`."""

    @abstractmethod
    def judged_ball(self, images: Tensor) -> Ball:
        """Return the ball in which the trained network is judged, of L∞ or L2.

        Args:
            images: `(B, C, H, W)`, of which the size matters.
        """

    def build(self, model: HookedModel) -> nn.Module:
        """Return a copy of the model's network."""
        return model.trainable_copy()

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return whether each image is classified right, as it is and under each attack.

        `accuracy lost` is 1 where `beside` alone is right, and -1 where the network alone is.

        Raises:
            ParameterError: `beside` has other classes.
        """
        own = self.judged_ball(batch.images)
        with torch.no_grad():
            logits = network(batch.images)
            right = logits.argmax(1) == batch.labels
        figures = {"accuracy": right}
        if self.beside is not None:
            figures["accuracy lost"] = self._others(logits, batch).int() - right.int()
        wider, other = _wider(own), _in_another_norm(own, batch.images)
        steps = min(self.judge_steps, _MOST_STEPS)
        attacks: tuple[tuple[str, Ball, int, Loss], ...] = (
            ("PGD-{}", own, self.judge_steps, "cross-entropy"),
            ("margin PGD-{}", own, steps, "margin"),
            (f"PGD-{{}}, {_text(wider)}", wider, steps, "cross-entropy"),
            (f"PGD-{{}}, {_text(other)}", other, steps, "cross-entropy"),
        )
        for name, ball, count, loss in attacks:
            changed = attacked_images(network, batch, ball, count, 2.5 * ball.epsilon / count, loss)
            held = self._held(network, changed, batch)
            figures[f"accuracy under {name.format(count)}"] = right & held
        return figures | self._under_named_attacks(network, batch, right)

    def _others(self, logits: Tensor, batch: TrainingBatch) -> Tensor:
        """Whether the model beside the network is right."""
        model = self.open_model(self.beside)  # type: ignore[arg-type]
        with torch.no_grad():
            found = model(batch.images)
        if found.shape != logits.shape:
            raise ParameterError(
                f"beside is {model.id}, which has {found.shape[1]} classes, and the trained "
                f"network has {logits.shape[1]}: name a model of the same classes",
                parameter="beside",
            )
        return found.argmax(1) == batch.labels

    def _under_named_attacks(
        self, network: nn.Module, batch: TrainingBatch, right: Tensor
    ) -> dict[str, Tensor]:
        """Whether each image is right after each attack of `judged_by`, inside its own ball."""
        figures = {}
        for attack in self.judged_by:
            chosen = self.open_technique(attack)
            model = self.model_of(network, batch)
            goal = Goal(labels=batch.labels, classes=model.num_classes)
            changed = chosen.perturb(model, batch.images.clone(), goal).detach().clamp(0, 1)
            inside = chosen.ball(batch.images).holds(changed - batch.images)
            held = self._held(network, changed, batch) | ~inside
            figures[f"accuracy under {chosen.text().rpartition(':')[2]}"] = right & held
        return figures

    def _held(self, network: nn.Module, changed: Tensor, batch: TrainingBatch) -> Tensor:
        with torch.no_grad():
            held: Tensor = network(changed).argmax(1) == batch.labels
        return held


def _wider(ball: Ball) -> Ball:
    epsilon = _WIDER * ball.epsilon
    return Ball(norm=ball.norm, epsilon=min(1.0, epsilon) if ball.norm == "linf" else epsilon)


def _in_another_norm(ball: Ball, images: Tensor) -> Ball:
    norm = _OTHER[ball.norm]
    usual, there = Ball.of(ball.norm, None, images), Ball.of(norm, None, images)
    epsilon = there.epsilon * ball.epsilon / usual.epsilon
    return Ball(norm=norm, epsilon=min(1.0, epsilon) if norm == "linf" else epsilon)


def _text(ball: Ball) -> str:
    return f"{ball.norm} {ball.epsilon:.3g}"
