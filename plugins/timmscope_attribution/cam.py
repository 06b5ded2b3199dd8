"""CAM: a feature map weighted by the weights of the linear classifier that reads it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from timmscope import CamTechnique, HookedModel, Objective, TechniqueError, direction

_feeds_classifier: WeakKeyDictionary[HookedModel, dict[str, bool]] = WeakKeyDictionary()


class CAM(CamTechnique):
    """CAM weighs the last feature map by the class's own weights in the linear classifier.

    `Σ_k w_k^c · A_k` at the layer that goes through global average pooling and a linear classifier.
    The mean of the map plus the class's bias is the logit. CAM is defined only for such models and
    for classes or sums of classes; anything else is refused. The weights are read from the
    gradient, so that an affine head of several modules (batch norm and linear layer) counts as one.

    Paper:
        Zhou, Khosla, Lapedriza, Oliva & Torralba, "Learning Deep Features for Discriminative
        Localization", CVPR 2016, arXiv:1512.04150.

    Inherited parameters:
        layer: layer to weigh; by default the last one whose grid the objective still depends on.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        ObjectiveError: the objective does not fit the model.
        LayerNotFound: there is no such layer.
        ParameterError: `batch_size` is less than 1.
        TechniqueError: the objective is no class, the layer does not feed global average pooling
            and a linear classifier, or the map is zero everywhere, the same in all cells or not
            finite.
    """

    relu: bool = False
    """Keep only evidence for the class."""

    def weigh(self, cells: Tensor, slopes: Tensor) -> Tensor:
        """`Σ_k w_k · A_k`, where `w_k` is the gradient summed over the cells."""
        return torch.einsum("bk,bkhw->bhw", slopes.sum((2, 3)), cells)

    def attribute(
        self, model: HookedModel, images: Tensor, objective: Objective
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Maps `(B, h, w)` and scores `(B,)`.

        Raises:
            LayerNotFound: there is no such layer.
            TechniqueError: the objective is no class, or the layer does not feed global average
                pooling and a linear classifier.
        """
        layer = self.mapped_layer(model, objective)
        if not _is_linear_in_logits(objective, len(images), model.num_classes):
            raise TechniqueError(
                f"CAM is defined for classes and their sums, and {objective} is none; use grad-cam"
            )
        known = _feeds_classifier.setdefault(model, {})
        if layer.name not in known:
            known[layer.name] = _feeds_pool_and_linear(model, layer.name)
        if not known[layer.name]:
            raise TechniqueError(
                f"CAM needs a layer that goes through global average pooling and one linear layer "
                f"to the classes; {layer.name!r} of {model.id} does not; use grad-cam"
            )
        return super().attribute(model, images, objective)


def _is_linear_in_logits(objective: Objective, count: int, classes: int) -> bool:
    if objective.points != ("logits",):
        return False
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, count, classes, generator=draw, dtype=torch.float64)
    scores = [objective({"logits": logits}) for logits in (one, other, one + other)]
    return torch.allclose(scores[0] + scores[1], scores[2])


def _feeds_pool_and_linear(model: HookedModel, layer: str) -> bool:
    """Whether the logits' gradient at the layer is the same in all cells and for all images."""
    draw = torch.Generator().manual_seed(0)
    bright = torch.rand(1, *model.input_size, generator=draw)
    dark = 0.3 * torch.rand(1, *model.input_size, generator=draw)
    mixture = direction("logits", torch.randn(model.num_classes, generator=draw))
    images = torch.cat([bright, dark]).to(model.device)
    if model.dtype == torch.float64:
        images = images.double()
    _, found = model.layer_gradients(images, mixture, (layer,))
    if layer not in found:
        return False
    slopes = model.layers[layer].spatial(found[layer][1])  # (2, C, h, w)
    if slopes.shape[2] * slopes.shape[3] < 2:
        return False
    expected = slopes[:1].mean((2, 3), keepdim=True)
    precise = slopes.dtype in (torch.float32, torch.float64)
    tolerance = (1e-4 if precise else 0.03) * float(slopes.abs().max())
    return bool(((slopes - expected).abs() <= tolerance).all()) and tolerance > 0
