"""Decision boundaries of a model's linearisation, for attacks that step to the nearest one."""

from __future__ import annotations

import torch
from torch import Tensor

from timmscope import Goal, HookedModel
from timmscope_attack.minimum import TINY


def likely_others(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the classes with the largest logits besides the label, `(n, count)` int64."""
    others = logits.float().scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :count]


def boundaries(
    model: HookedModel, images: Tensor, goal: Goal, classes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, how far beyond each boundary the images are, `(n, K)`, and the slopes.

    The goal is reached where one of the values is positive. Slopes are `(n, K, C, H, W)`.

    Args:
        model: the model to fool.
        images: `(n, C, H, W)`.
        goal: the goal of these images.
        classes: `(n, K)` classes whose boundaries to the label they are; None for the goal's own.
    """
    if classes is None:
        outputs, slope = goal.gradient(model, images, "margin")
        return outputs, goal.margin(outputs)[:, None], slope[:, None]
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        outputs = goal.outputs(model, leaf)
        logits = outputs if outputs.dtype == torch.float64 else outputs.float()
        values = logits.gather(1, classes) - logits.gather(1, goal.labels[:, None])
        last = values.shape[1] - 1
        slopes = [
            torch.autograd.grad(values[:, each].sum(), leaf, retain_graph=each < last)[0]
            for each in range(values.shape[1])
        ]
    return outputs.detach(), values.detach(), torch.stack(slopes, 1)


def nearest_plane(values: Tensor, slopes: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return value `(n,)`, slope and the slope's dual norm `(n,)` of the nearest plane.

    It is nearest in the norm, without the limits of pixels.

    Args:
        values: `(n, K)`, as `boundaries` returns them.
        slopes: `(n, K, C, H, W)`.
        norm: `linf`, `l2` or `l1`.
    """
    sizes = slopes.abs().flatten(2)
    dual = {"linf": sizes.sum(2), "l1": sizes.amax(2)}
    steep = (dual[norm] if norm in dual else (sizes**2).sum(2).sqrt()).clamp(min=TINY)
    pick = (values.abs() / steep).argmin(1)
    each = torch.arange(len(values), device=values.device)
    return values[each, pick], slopes[each, pick], steep[each, pick]
