"""Training of networks whose layers stretch no change, so that a margin is a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from timmscope import (
    Ball,
    Goal,
    HookedModel,
    TrainingBatch,
    TrainingProgress,
    UnsupportedModel,
    evaluating,
)
from timmscope_defence.judged_training import JudgedTraining
from timmscope_defence.lipschitz import lipschitz_of

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Weighted = nn.Linear | _Convolution
_FIRST_STEPS, _STEPS = 30, 3
"""Steps of power iteration at first, and in each step of a training."""
_TINY = 1e-12


class LipschitzTraining(JudgedTraining):
    """Lipschitz-margin training makes a network whose layers stretch no change of their input.

    `min_θ CE(s · (z(x) + √2 · ε · (1 − e_y)), y)`, where the weights W of each layer are replaced
    by `W / ‖W‖₂`, through PyTorch's parametrizations. The logits of such a network change by no
    more than the image, and the loss raises the label's logit above all others by √2·ε and more:
    then no change of L2 norm below ε changes the prediction. `lipschitz-bound` proves it again.

    - `spectral`: by steps of power iteration in each step of training, of a convolution on the
      convolution itself at the size of its input, not on its kernel as a matrix.
    - `orthogonal`: linear layers have orthonormal rows or columns, so that they shrink no change
      either, and the matrices of kernels as well, which are then divided as above.

    The network takes images without the normalisation of the model, so that a change of a pixel
    counts as it is. Its weights start from those of the model, each divided by its norm. Factors of
    batch normalisation are limited to a slope of 1. A residual connection adds the changes of both
    branches, so that a network with many of them has no useful bound. Networks that
    `lipschitz-bound` refuses, as for softmax or layer normalisation, are refused here as well.

    `certified` in the card is the share of held-out images whose label is proved at `epsilon`.
    Cost: that of standard training, and seven passes of each convolution for one image per step;
    `orthogonal` is slower by the computation of its matrices, three times for small networks.

    Paper:
        - Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training: Scalable Certification of
          Perturbation Invariance for Deep Neural Networks", NeurIPS 2018, arXiv:1802.04034.
        - Miyato, Kataoka, Koyama & Yoshida, "Spectral Normalization for Generative Adversarial
          Networks", ICLR 2018, arXiv:1802.05957.

    Inherited parameters:
        judge_steps: steps of the PGD that judges the trained network on held-out images.
        judged_by: further attacks that judge it, such as `square epsilon=0.1`.
        beside: model whose accuracy the card compares, such as that of a standard training.
        epochs: how often every image is seen.
        batch_size: images per step; the last images of an epoch that fill no batch are left out.
        optimizer: adam, adamw or sgd.
        learning_rate: largest learning rate.
        momentum: momentum of sgd.
        weight_decay: weight decay; of adamw decoupled from the gradient.
        schedule: course of the learning rate after the warm-up: constant, or down to 0.
        warmup: share of the steps in which the learning rate rises.
        max_gradient_norm: longer gradients of all weights together are scaled to this length.
        held_out_share: share of the images that are held out, if no held-out images are given.

    Raises:
        ImageError: the images cannot be opened or read.
        ParameterError: labels are missing or are no classes, a parameter is out of range, or
            `beside` has other classes.
        StoreError: the folder holds something else or cannot be written.
        StoreMismatch: the folder holds a training with other settings.
        StoreCorrupted: the checkpoint was damaged.
        TechniqueError: the loss is not finite.
        UnsupportedModel: the model is not in float32 or float64, cannot be copied, has no linear or
            convolutional layer, or has a layer that has no Lipschitz bound.
    """

    normalised = False

    layers: Literal["spectral", "orthogonal"] = "orthogonal"
    """How the weights of a layer are limited."""
    epsilon: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    """Radius ε in L2 and pixel units [0, 1] for which the margin is trained."""
    scale: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Factor s of the logits in the loss, because they cannot grow."""

    def judged_ball(self, images: Tensor) -> Ball:
        """Return the L2 ball of radius epsilon."""
        return Ball(norm="l2", epsilon=self.epsilon)

    def build(self, model: HookedModel) -> nn.Module:
        """Return a copy of the model's network, whose weights are limited.

        Raises:
            UnsupportedModel: it has no linear or convolutional layer, or a layer that has no
                Lipschitz bound.
        """
        network = model.trainable_copy()
        example = torch.zeros(1, *model.input_size, device=model.device, dtype=model.dtype)
        with evaluating(network):
            lipschitz_of(network, network, example, measured=False)  # refuse it before a training
            sizes = _input_sizes(network, example)
        if not sizes:
            raise UnsupportedModel(
                f"{model.id} runs no linear or convolutional layer, whose weights this training "
                "limits: choose another training"
            )
        for layer, size in sizes.items():
            _limit(layer, size, self.layers)
        for part in network.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and _has_slopes(part):
                slope = _LimitedSlope(part)
                parametrize.register_parametrization(part, "weight", slope, unsafe=True)
        return network

    def loss(
        self, network: nn.Module, batch: TrainingBatch, progress: TrainingProgress
    ) -> dict[str, Tensor]:
        """Return the cross-entropy with the margin, and the share of images that is wrong."""
        logits = network(batch.images)
        label = functional.one_hot(batch.labels, logits.shape[1])
        shifted = logits + math.sqrt(2) * self.epsilon * (1 - label)
        wrong = (logits.argmax(1) != batch.labels).float().mean()
        return {
            "total": functional.cross_entropy(self.scale * shifted, batch.labels), "error": wrong
        }  # fmt: skip

    def evaluate(self, network: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return whether each image is right as it is, under each attack, and for certain."""
        found = super().evaluate(network, batch)
        with torch.no_grad():
            logits = network(batch.images)
        bound = lipschitz_of(network, network, batch.images).constant
        margin = -Goal(labels=batch.labels).margin(logits)
        return {**found, "certified": margin > math.sqrt(2) * bound * self.epsilon}


def _input_sizes(network: nn.Module, example: Tensor) -> dict[_Weighted, tuple[int, ...]]:
    """Return the shape `(1, …)` of what each linear or convolutional layer gets, in order."""
    found: dict[_Weighted, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _Weighted)
        found.setdefault(layer, (1, *inputs[0].shape[1:]))

    layers = [each for each in network.modules() if isinstance(each, _Weighted)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _limit(layer: _Weighted, size: tuple[int, ...], how: str) -> None:
    """Parametrise the weight of a layer so that its norm is 1."""
    if isinstance(layer, nn.Linear):
        if how == "orthogonal":
            parametrizations.orthogonal(layer, "weight")
        else:
            parametrizations.spectral_norm(layer, "weight", n_power_iterations=_STEPS)
        return
    shape = tuple(layer.weight.shape)
    if how == "orthogonal":
        rows = layer.weight.detach().view(layer.groups, shape[0] // layer.groups, -1)
        layer.weight = nn.Parameter(rows.clone())
        parametrizations.orthogonal(layer, "weight")
        parametrize.register_parametrization(layer, "weight", _Kernel(shape), unsafe=True)
    unit = _UnitConvolution(layer, layer.weight.detach(), size)
    parametrize.register_parametrization(layer, "weight", unit, unsafe=True)


class _Kernel(nn.Module):
    """Gives matrices of rows `(groups, out, in)` the shape of a kernel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, rows: Tensor) -> Tensor:
        """Return the kernel."""
        return rows.reshape(self.shape)


class _UnitConvolution(nn.Module):
    """Divides a kernel by the norm of its convolution, by steps of power iteration."""

    direction: Tensor

    def __init__(self, layer: _Convolution, kernel: Tensor, size: tuple[int, ...]) -> None:
        super().__init__()
        self.convolve = _convolution(layer)
        start = torch.randn(size).to(kernel)
        self.register_buffer("direction", start / start.norm())
        for _ in range(_FIRST_STEPS):
            self._improve(kernel)

    def forward(self, kernel: Tensor) -> Tensor:
        """Return the kernel divided by the norm."""
        if self.training:
            for _ in range(_STEPS):
                self._improve(kernel.detach())
        stretched = self.convolve(self.direction.clone(), kernel)
        unit: Tensor = kernel / stretched.norm().clamp(min=_TINY)
        return unit

    def _improve(self, kernel: Tensor) -> None:
        """Turn the direction towards the one that the convolution stretches most."""
        with torch.enable_grad():
            leaf = self.direction.clone().requires_grad_()
            image = self.convolve(leaf, kernel)
            (back,) = torch.autograd.grad(image, leaf, image.detach())
        with torch.no_grad():
            self.direction.copy_(back / back.norm().clamp(min=_TINY))


def _convolution(layer: _Convolution) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the convolution of a layer without its bias, as a function of image and kernel."""
    function: Callable[..., Tensor] = functional.conv3d
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        function = functional.conv1d if isinstance(layer, nn.Conv1d) else functional.conv2d
    return partial(
        function, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        groups=layer.groups,
    )  # fmt: skip


def _has_slopes(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.affine and norm.running_var is not None


class _LimitedSlope(nn.Module):
    """Limits the factors of batch normalisation, so that none stretches a change."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.norm = (norm,)  # a tuple, because it is no part of this module

    def forward(self, weight: Tensor) -> Tensor:
        """Return the factors, none above the root of its variance."""
        (norm,) = self.norm
        assert norm.running_var is not None
        largest = (norm.running_var + norm.eps).sqrt()
        return weight.clamp(-largest, largest)
