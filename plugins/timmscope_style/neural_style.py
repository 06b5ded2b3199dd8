"""Style transfer by optimising an image's feature statistics."""

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
    UnsupportedModel,
    noise_like,
)
from timmscope_style.default_layers import content_layers, style_layers
from timmscope_style.gram import gram, relative_error, total_variation

LEVELS = 4
"""Levels of the pyramid that is optimised; each halves the resolution."""

Weight = Annotated[float, Field(ge=0)]


class NeuralStyle(StyleTechnique):
    """Neural style transfer (Gatys et al., CVPR 2016), with any timm model as the encoder.

    Minimises `content_weight · content + style_weight · style + tv_weight · variation` over the
    pixels. Style is the weighted mean over layers of `|G − G₀|² / |G₀|²`, G the Gram matrix of the
    layer's features; content is `|F − F₀|² / |F₀|²` of the features themselves. Without a content
    image only style counts, which makes a texture (Gatys et al., NIPS 2015).
    """

    style_layers: tuple[LayerName, ...] | None = None
    """Layers whose Gram matrices are matched; by default about five, from fine to coarse."""
    content_layers: tuple[LayerName, ...] | None = None
    """Layers whose features are kept; by default the last but one of the default style layers."""
    layer_weights: tuple[Weight, ...] | None = None
    """How much each style layer counts, any scale; equal by default."""
    content_weight: Weight = 1.0
    """How much the content's features count."""
    style_weight: Weight = 20.0
    """How much the style's statistics count."""
    tv_weight: Weight = 0.0
    """How much roughness between neighbouring pixels counts."""
    steps: int = Field(150, ge=1)
    """Evaluations of the loss and its gradient."""
    optimizer: Literal["adam", "lbfgs"] = "lbfgs"
    """`lbfgs`, which mostly goes two to three times lower for the same cost, or `adam`."""
    learning_rate: float = Field(0.2, gt=0)
    """First step of Adam at the coarsest level, on the logits of the pixels: half as much at each
    finer level, and down to 0 along a cosine. L-BFGS finds its own."""
    init: Literal["auto", "noise", "content", "style"] = "auto"
    """Where to start; `auto` is the content where there is one, else noise."""
    size: int | None = Field(None, ge=16)
    """Height and width of the result in pixels; by default the content's, or the model's input."""

    def stylize(
        self,
        model: HookedModel,
        content: Tensor | None,
        styles: list[Tensor],
        weights: list[float],
    ) -> StyleOutcome:
        """Optimise the image; losses are `total`, `style`, `content` and one a style layer.

        They have `steps + 1` values: of each image evaluated, and of the one returned.

        Raises:
            LayerNotFound: a layer does not exist.
            UnsupportedModel: a layer has no grid, or the model refuses the size.
            ParameterError: parameters that do not fit together.
        """
        textures = _checked(model, self.style_layers or style_layers(model), "style_layers")
        scenes = _checked(model, self.content_layers or content_layers(model), "content_layers")
        shares = self._shares(len(textures))
        scene = None if content is None else self._sized(model, content)
        with torch.inference_mode(False), torch.no_grad():
            grams = [
                [gram(one) for one in _features(model, self._sized(model, style), textures)]
                for style in styles
            ]
            goals = [_mix(list(rows), weights) for rows in zip(*grams, strict=True)]
            kept = [] if scene is None else _features(model, scene, scenes)
        names = list(dict.fromkeys([*textures, *(scenes if kept else ())]))
        course: list[Tensor] = []

        def loss(pixels: Tensor) -> Tensor:
            seen = dict(zip(names, _features(model, pixels, names), strict=True))
            errors = [
                relative_error(gram(seen[name]), goal)
                for name, goal in zip(textures, goals, strict=True)
            ]
            style = _mix(errors, shares)
            total = self.style_weight * style
            terms = [style]
            if kept:
                distances = [
                    relative_error(seen[name], goal)
                    for name, goal in zip(scenes, kept, strict=True)
                ]
                terms.append(torch.stack(distances).mean())
                total = total + self.content_weight * terms[-1]
            if self.tv_weight:
                total = total + self.tv_weight * total_variation(pixels)
            course.append(torch.stack([total, *terms, *errors]).detach())
            return total

        image = self._descend(self._start(model, scene, styles), loss)
        del course[self.steps :]  # a line search may end a few evaluations late
        with torch.inference_mode(False), torch.no_grad():
            loss(image)
        kinds = ["total", "style", *(["content"] if kept else [])]
        kinds += [f"style {name}" for name in textures]
        losses = torch.stack(course, 1)
        return StyleOutcome(images=image, losses=dict(zip(kinds, losses, strict=True)))

    def _descend(self, start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Minimise over a pyramid of corrections to the start's logits.

        Logits keep every pixel in [0, 1]. The coarse levels move whole regions at once, so that
        colours arrive early and a single pixel has little reason to become noise.
        """
        with torch.inference_mode(False), torch.enable_grad():
            base = start.clone().clamp(0.02, 0.98).logit()
            height, width = base.shape[2:]
            levels = [
                torch.zeros(1, 3, max(height >> level, 1), max(width >> level, 1)).to(base)
                for level in range(LEVELS)
            ]
            for level in levels:
                level.requires_grad_()
            steps = iter(self.track(range(self.steps), "stylising"))

            def pixels() -> Tensor:
                raised = [
                    functional.interpolate(level, (height, width), mode="bilinear")
                    for level in levels[1:]
                ]
                return sum(raised, base + levels[0]).sigmoid()

            def closure() -> Tensor:
                next(steps, None)
                total = loss(pixels())
                gradients = torch.autograd.grad(total, levels)
                for level, gradient in zip(levels, gradients, strict=True):
                    level.grad = gradient.contiguous()  # L-BFGS takes no other layout
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

    def _start(self, model: HookedModel, scene: Tensor | None, styles: list[Tensor]) -> Tensor:
        kind = self.init
        if kind == "auto":
            kind = "noise" if scene is None else "content"
        if kind == "content":
            if scene is None:
                raise ParameterError(
                    "init is 'content' and there is no content image: use 'noise'", parameter="init"
                )
            return scene
        like = scene if scene is not None else self._sized(model, styles[0])
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
    """Names in the catalogue's spelling, each with a grid."""
    layers = [model.layers[name] for name in dict.fromkeys(names)]
    for layer in layers:
        if layer.grid is None:
            raise ParameterError(
                f"{parameter} has {layer.name!r}, which has no grid: choose one of "
                f"{', '.join(style_layers(model))}",
                parameter=parameter,
            )
    return [layer.name for layer in layers]


def _features(model: HookedModel, images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Features `(1, C, h, w)` of the layers, float32."""
    with model.record(*names) as recording:
        try:
            model(images)
        except (RuntimeError, AssertionError) as error:
            height, width = images.shape[2:]
            if (height, width) == model.input_size[1:]:
                raise
            raise UnsupportedModel(
                f"{model.id} does not take {height}×{width} px images: leave size out, or use "
                f"{model.input_size[1]}"
            ) from error
    return [model.layers[name].spatial(recording[name]).float() for name in names]


def _mix(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
    return torch.stack(weighted).sum(0)
