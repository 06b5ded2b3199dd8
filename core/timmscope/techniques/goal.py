"""`Goal` is what an attack should reach; it decides in one place what counts as success."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope_registry import ObjectiveError, ParameterError, UnsupportedModel

Loss = Literal["cross-entropy", "margin", "dlr", "logit"]
"""What an attack raises; see `Goal.loss`."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The aim of an attack: away from labels, towards targets, or an objective of some value.

    Attributes:
        labels: `(B,)` classes to leave; empty for a model without classes.
        targets: `(B,)` classes to reach, or None for any other than the label.
        objective: objective to raise, bound to the model and the images; None to change the class.
            To lower an objective below v, raise `-objective` to `-v`.
        value: the value that the objective should reach.
        classes: number of classes that labels and targets are of; 0 if it is not known.
    """

    labels: Tensor
    targets: Tensor | None = None
    objective: Objective | None = None
    value: float = 0.0
    classes: int = 0

    def rows(self, index: Tensor) -> Goal:
        """Return the goal for some of the images, `index` `(n,)` int64."""
        aims = self.objective
        return replace(
            self,
            labels=self.labels[index] if len(self.labels) else self.labels,
            targets=self.targets[index] if self.targets is not None else None,
            objective=aims.take(index.tolist()) if aims is not None and aims.num_targets else aims,
        )

    def outputs(self, model: HookedModel, images: Tensor) -> Tensor:
        """Compute what success depends on: logits `(n, K)`, or the objective's values `(n,)`.

        Raises:
            ObjectiveError: the model, such as a surrogate, has another number of classes.
        """
        if self.objective is not None:
            return model.score(images, self.objective)
        outputs = model(images)
        if self.classes and outputs.shape[1] != self.classes:
            raise ObjectiveError(
                f"{model.id} has {outputs.shape[1]} classes, and the goal is a class of "
                f"{self.classes}: take a model of the same classes"
            )
        return outputs

    def reached(self, outputs: Tensor) -> Tensor:
        """Whether each image reaches the goal, `(n,)`.

        The prediction is another than the label, or is the target; or the objective is at least
        `value`.
        """
        if self.objective is not None:
            return outputs >= self.value
        predicted = outputs.argmax(1)
        return predicted != self.labels if self.targets is None else predicted == self.targets

    def margin(self, outputs: Tensor) -> Tensor:
        """Return by how much each image reaches the goal, `(n,)`; negative where it does not.

        For classes it is the loss `margin`; for an objective its value minus the value to reach.
        """
        if self.objective is not None:
            return outputs - self.value
        return self.loss(outputs, "margin")

    def loss(self, outputs: Tensor, kind: Loss = "cross-entropy") -> Tensor:
        """Return the value `(n,)` to raise, one per image, so that images do not affect each other.

        With logits z, label y and target t:

        - `cross-entropy`: of the label, or minus that of the target.
        - `margin`: `max_{i≠y} z_i − z_y`, or `z_t − max_{i≠t} z_i` (Carlini & Wagner, S&P 2017).
          Its gradient does not vanish where the softmax saturates.
        - `dlr`: the margin divided by `z_(1) − z_(3)`, or `z_t − z_y` divided by
          `z_(1) − ½(z_(3) + z_(4))`, where `z_(k)` is the k-th largest (Croce & Hein, ICML 2020).
          It does not change with the scale of the logits.
        - `logit`: `−z_y`, or `z_t` (Zhao, Liu & Larson, NeurIPS 2021); other logits do not matter.

        For an objective it is the objective's value, whatever the kind.

        Raises:
            ParameterError: there are too few classes for `dlr`: it needs three, with targets four.
        """
        if self.objective is not None:
            return outputs
        logits = outputs if outputs.dtype == torch.float64 else outputs.float()
        classes = self.labels if self.targets is None else self.targets
        if kind == "cross-entropy":
            loss = functional.cross_entropy(logits, classes, reduction="none")
            return loss if self.targets is None else -loss
        if kind == "dlr":
            return self._dlr(logits)
        own = logits.gather(1, classes[:, None])[:, 0]
        if kind == "margin":
            own = own - logits.scatter(1, classes[:, None], -torch.inf).amax(1)
        return -own if self.targets is None else own

    def _dlr(self, logits: Tensor) -> Tensor:
        needed = 3 if self.targets is None else 4
        if logits.shape[1] < needed:
            raise ParameterError(
                f"the loss dlr needs {needed} classes, the model has {logits.shape[1]}: use margin",
                parameter="loss",
            )
        ordered = logits.sort(1, descending=True).values
        own = logits.gather(1, self.labels[:, None])[:, 0]
        if self.targets is None:
            others = logits.scatter(1, self.labels[:, None], -torch.inf).amax(1)
            return (others - own) / (ordered[:, 0] - ordered[:, 2] + 1e-12)
        aimed = logits.gather(1, self.targets[:, None])[:, 0]
        scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
        return (aimed - own) / (scale + 1e-12)

    def gradient(
        self, model: HookedModel, images: Tensor, kind: Loss = "cross-entropy"
    ) -> tuple[Tensor, Tensor]:
        """Compute the outputs and the gradient `(n, C, H, W)` of the loss in the images.

        It works under `no_grad` and `inference_mode`, and changes no `.grad`.

        Raises:
            ObjectiveError: the objective does not depend on the images, or the model, such as a
                surrogate, has another number of classes.
            ParameterError: there are too few classes for the loss.
            UnsupportedModel: the logits do not depend on the images by a gradient.
        """
        if self.objective is not None:
            return model.gradient(images, self.objective)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            outputs = self.outputs(model, leaf)
            loss = self.loss(outputs, kind).sum()
            if not loss.requires_grad:
                raise UnsupportedModel(
                    f"no gradient of {model.id} reaches the images: use an attack that needs none, "
                    "or a module that does not detach them"
                )
            (gradient,) = torch.autograd.grad(loss, leaf)
        return outputs.detach(), gradient
