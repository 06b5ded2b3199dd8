"""The loss that an attack raises, and the test whether the model is fooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["cross-entropy", "margin"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The aim of an attack: away from labels, or towards targets.

    Attributes:
        labels: `(B,)` classes to leave.
        targets: `(B,)` classes to reach, or None for any other than the label.
        loss: the loss that the attack raises.
    """

    labels: Tensor
    targets: Tensor | None
    loss: Loss

    def rows(self, index: Tensor) -> Goal:
        """The goal for some of the images."""
        targets = self.targets[index] if self.targets is not None else None
        return Goal(labels=self.labels[index], targets=targets, loss=self.loss)

    def fooled(self, logits: Tensor) -> Tensor:
        """Whether each image fools the model, `(B,)`."""
        predicted = logits.argmax(1)
        return predicted != self.labels if self.targets is None else predicted == self.targets

    def value(self, logits: Tensor) -> Tensor:
        """The loss `(B,)` to raise, one value per image, so that images do not affect each other.

        `cross-entropy`: of the label, or minus that of the target. `margin`: the largest other
        logit minus the label's, or the target's minus the largest other; its gradient does not
        vanish where the softmax saturates.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        classes = self.labels if self.targets is None else self.targets
        if self.loss == "cross-entropy":
            loss = functional.cross_entropy(logits, classes, reduction="none")
        else:
            own = logits.gather(1, classes[:, None])
            others = logits.scatter(1, classes[:, None], -torch.inf)
            loss = others.amax(1) - own[:, 0]
        return loss if self.targets is None else -loss
