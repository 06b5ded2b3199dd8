"""Neural style transfer: an image optimised to match feature statistics of other images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from timmscope import (
    HookedModel,
    LayerName,
    ParameterError,
    StyleOutcome,
    StyleTechnique,
    frame_steps,
    noise_like,
)
from timmscope_style.default_layers import content_layers, style_layers
from timmscope_style.gram import gram, relative_error, total_variation

LEVELS = 4
"""Number of levels of the optimised pyramid; each halves the resolution."""

Weight = Annotated[float, Field(ge=0)]


class NeuralStyle(StyleTechnique):
    """Neural style transfer gives an image the content of one image and the style of others.

    It minimises `content_weight · content + style_weight · style + tv_weight · variation` over the
    pixels, with any timm model as the encoder. `style = Σ_l w_l · |G_l − G₀_l|² / |G₀_l|²` with the
    Gram matrix `G = F Fᵀ / (h·w)` of the features F of layer l, and
    `content = mean_l |F_l − F₀_l|² / |F₀_l|²`: relative errors, where the paper divides by sizes.
    Without a content image only the style counts, which gives a texture.

    Paper:
        - Gatys, Ecker & Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR
          2016; first as "A Neural Algorithm of Artistic Style", 2015, arXiv:1508.06576.
        - Gatys, Ecker & Bethge, "Texture Synthesis Using Convolutional Neural Networks", NIPS 2015,
          arXiv:1505.07376: without a content image.

    Raises:
        ImageError: the images do not have the model's channels, or are not in [0, 1].
        LayerNotFound: there is no such layer.
        ParameterError: a parameter is out of range, or parameters do not fit together.
        TechniqueError: the outcome is not finite.
        UnsupportedModel: the model has no layer with a grid, or does not take the size.
    """

    style_layers: tuple[LayerName, ...] | None = None
    """Layers whose Gram matrices are matched; by default about five, from fine to coarse."""
    content_layers: tuple[LayerName, ...] | None = None
    """Layers whose features are kept; by default the last but one of the default style layers."""
    layer_weights: tuple[Weight, ...] | None = None
    """Weight of each style layer, on any scale; equal by default."""
    content_weight: Weight = 1.0
    """Weight of the content loss."""
    style_weight: Weight = 20.0
    """Weight of the style loss."""
    tv_weight: Weight = 0.0
    """Weight of the mean squared difference of neighbouring pixels."""
    steps: int = Field(150, ge=1)
    """Number of evaluations of the loss and its gradient."""
    optimizer: Literal["adam", "lbfgs"] = "lbfgs"
    """`lbfgs`, whose loss is mostly two to three times lower for the same cost, or `adam`."""
    learning_rate: float = Field(0.2, gt=0)
    """Initial step size of Adam on the logits of the pixels at the coarsest level: half as much at
    each finer level, and a cosine schedule down to 0. L-BFGS uses a line search instead."""
    init: Literal["auto", "noise", "content", "style"] = "auto"
    """Image to start from; `auto` is the content if there is one, else noise."""
    size: int | None = Field(None, ge=16)
    """Height and width of the result in pixels; by default the content's, or the model's input."""
    frames: int = Field(0, ge=0, le=64)
    """Number of images to keep for an animation, at equal distances: the first is the start, the
    last is the result."""

    def stylize(
        self,
        model: HookedModel,
        content: Tensor | None,
        styles: list[Tensor],
        weights: list[float],
    ) -> StyleOutcome:
        """Optimise the image; the losses are `total`, `style`, `content` and one per style layer.

        Each has `steps + 1` values: of the images evaluated, and of the one returned.

        Raises:
            LayerNotFound: a layer does not exist.
            UnsupportedModel: the model has no layer with a grid, or does not take the size.
            ParameterError: a layer has no grid, or parameters do not fit together.
        """
        style_names = _checked(model, self.style_layers or style_layers(model), "style_layers")
        chosen = self.content_layers or content_layers(model)
        content_names = _checked(model, chosen, "content_layers")
        shares = self._shares(len(style_names))
        content_image = None if content is None else self._sized(model, content)
        with torch.inference_mode(False), torch.no_grad():
            grams = [
                [gram(one) for one in _features(model, self._sized(model, style), style_names)]
                for style in styles
            ]
            style_targets = [_mix(list(rows), weights) for rows in zip(*grams, strict=True)]
            content_targets = []
            if content_image is not None:
                content_targets = _features(model, content_image, content_names)
        names = list(dict.fromkeys([*style_names, *(content_names if content_targets else ())]))
        history: list[Tensor] = []
        frames: dict[int, Tensor] = {}
        kept = frame_steps(self.steps + 1, self.frames)

        def loss(pixels: Tensor) -> Tensor:
            features = dict(zip(names, _features(model, pixels, names), strict=True))
            errors = [
                relative_error(gram(features[name]), goal)
                for name, goal in zip(style_names, style_targets, strict=True)
            ]
            style = _mix(errors, shares)
            total = self.style_weight * style
            terms = [style]
            if content_targets:
                distances = [
                    relative_error(features[name], goal)
                    for name, goal in zip(content_names, content_targets, strict=True)
                ]
                terms.append(torch.stack(distances).mean())
                total = total + self.content_weight * terms[-1]
            if self.tv_weight:
                total = total + self.tv_weight * total_variation(pixels)
            if len(history) in kept:
                frames[len(history)] = pixels.detach().float().cpu()
            history.append(torch.stack([total, *terms, *errors]).detach())
            return total

        image = self._descend(self._start(model, content_image, styles), loss)
        del history[self.steps :]  # a line search may take a few evaluations more
        with torch.inference_mode(False), torch.no_grad():
            loss(image)
        kinds = ["total", "style", *(["content"] if content_targets else [])]
        kinds += [f"style {name}" for name in style_names]
        losses = torch.stack(history, 1)
        if kept:  # also where the optimiser stopped early
            frames[self.steps] = image.detach().float().cpu()
        return StyleOutcome(
            images=image,
            losses=dict(zip(kinds, losses, strict=True)),
            frames=torch.stack(list(frames.values())) if frames else None,
        )

    def _descend(self, start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Minimise over a pyramid of corrections to the logits of the start image.

        Logits keep every pixel in [0, 1]. The coarse levels change whole regions at once, so that
        colours change early and single pixels seldom become noise.
        """
        with torch.inference_mode(False), torch.enable_grad():
            base = start.clone().clamp(0.02, 0.98).logit()
            height, width = base.shape[2:]
            levels = [
                torch.zeros_like(base[..., : max(height >> level, 1), : max(width >> level, 1)])
                for level in range(LEVELS)
            ]
            for level in levels:
                level.requires_grad_()
            steps = iter(self.track(range(self.steps), "stylising"))

            def pixels() -> Tensor:
                upsampled = [
                    functional.interpolate(level, (height, width), mode="bilinear")
                    for level in levels[1:]
                ]
                return sum(upsampled, base + levels[0]).sigmoid()

            def closure() -> Tensor:
                next(steps, None)
                total = loss(pixels())
                gradients = torch.autograd.grad(total, levels)
                for level, gradient in zip(levels, gradients, strict=True):
                    level.grad = gradient.contiguous()  # L-BFGS needs this layout
                return total

            if self.optimizer == "lbfgs":
                torch.optim.LBFGS(
                    levels,
                    max_iter=self.steps,
                    max_eval=self.steps,
                    history_size=20,
                    tolerance_grad=0,
                    tolerance_change=0,
                    line_search_fn="strong_wolfe",
                ).step(closure)
            else:
                rates = [self.learning_rate / 2 ** (LEVELS - 1 - row) for row in range(LEVELS)]
                adam = torch.optim.Adam(
                    [{"params": [level], "lr": lr} for level, lr in zip(levels, rates, strict=True)]
                )
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps)
                for _ in range(self.steps):
                    closure()
                    adam.step()
                    schedule.step()
            next(steps, None)
            return pixels().detach()

    def _start(
        self, model: HookedModel, content_image: Tensor | None, styles: list[Tensor]
    ) -> Tensor:
        kind = self.init
        if kind == "auto":
            kind = "noise" if content_image is None else "content"
        if kind == "content":
            if content_image is None:
                raise ParameterError(
                    "init is 'content', but there is no content image: use 'noise'",
                    parameter="init",
                )
            return content_image
        like = content_image if content_image is not None else self._sized(model, styles[0])
        if kind == "style":
            return functional.interpolate(styles[0], like.shape[2:], mode="area")
        return (0.5 + 0.1 * noise_like(like)).clamp(0, 1)

    def _sized(self, model: HookedModel, image: Tensor) -> Tensor:
        if self.size is None or image.shape[2:] == (self.size, self.size):
            return image
        scaled = functional.interpolate(
            image, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        )
        return scaled.clamp(0, 1)

    def _shares(self, count: int) -> list[float]:
        values = list(self.layer_weights or [1.0] * count)
        if len(values) != count or sum(values) <= 0:
            raise ParameterError(
                f"layer_weights are {values} for {count} style layers: give one each, not all 0",
                parameter="layer_weights",
            )
        return [value / sum(values) for value in values]


def _checked(model: HookedModel, names: Sequence[str], parameter: str) -> list[str]:
    """Full names of layers, each of which must have a grid."""
    layers = [model.layers[name] for name in dict.fromkeys(names)]
    for layer in layers:
        if layer.grid is None:
            raise ParameterError(
                f"{parameter} has {layer.name!r}, which has no grid: choose some of "
                f"{', '.join(style_layers(model))}",
                parameter=parameter,
            )
    return [layer.name for layer in layers]


def _features(model: HookedModel, images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Features `(1, C, h, w)` of the layers, float32."""
    model = model.for_images(images)
    with model.record(*names) as recording:
        model(images)
    return [model.layers[name].spatial(recording[name]).float() for name in names]


def _mix(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
    return torch.stack(weighted).sum(0)
