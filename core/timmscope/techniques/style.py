"""Base class and result of style techniques, which match an image's statistics inside a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from PIL import Image
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.results.result import Result
from timmscope.techniques import arguments
from timmscope.techniques.base import Technique, require_model, technique_error
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import own_numbers, session
from timmscope.techniques.validate_output import checked_numbers, checked_pixels, checked_type
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StyleOutcome:
    """Return value of `stylize`.

    Attributes:
        images: `(1, 3, H, W)` in [0, 1].
        losses: name → `(steps + 1,)` value at each step and, last, of the returned image; `total`
            is the minimised loss.
    """

    images: Tensor
    losses: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Stylization(Result):
    """A content image in the style of one or more style images.

    Attributes:
        images: `(1, 3, H, W)` in [0, 1].
        content: `(1, 3, H, W)`; None for a texture.
        styles: style images as the model sees them, stacked at a common size for display.
        losses: `(terms, steps + 1)`, in the order of `loss_names`; the last values are of `images`.
        loss_names: names of the terms; `total` is the minimised loss.
        weights: weight of each style image; the sum is 1.
    """

    images: Tensor
    content: Tensor | None
    styles: Tensor
    losses: Tensor
    loss_names: list[str]
    weights: list[float]

    def figure(self) -> Figure:
        """Draw content, styles, result and the loss curves."""
        from timmscope.drawing import curves_figure

        content = [] if self.content is None else [("content", self.content[0])]
        several = len(self.styles) > 1
        styles = [
            (f"style {number}" if several else "style", picture)
            for number, picture in enumerate(self.styles, 1)
        ]
        made = [("result" if content else "texture", picture) for picture in self.images]
        shown = [*content, *styles, *made]
        return curves_figure(
            [picture for _, picture in shown],
            [(caption, "") for caption, _ in shown],
            self.loss_curves(),
            "loss",
            log=True,
        )

    def loss_curves(self) -> dict[str, Tensor]:
        """Return the losses by name, each `(steps + 1,)`."""
        return dict(zip(self.loss_names, self.losses, strict=True))

    def pictures(self) -> dict[str, Any]:
        """Return the image."""
        return {"image-000": self.images[0]}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row: each loss at the first step and of the returned image."""
        row: dict[str, Any] = {"steps": self.losses.shape[1] - 1}
        for name, values in self.loss_curves().items():
            row[f"first_{name}"] = float(values[0])
            row[f"final_{name}"] = float(values[-1])
        return [row]


class StyleTechnique(Technique):
    """Base class of style techniques; a subclass implements `stylize`."""

    family: ClassVar[str] = "style"
    base: ClassVar[str] = "style"

    @abstractmethod
    def stylize(
        self,
        model: HookedModel,
        content: Tensor | None,
        styles: list[Tensor],
        weights: list[float],
    ) -> StyleOutcome:
        """Make the image.

        Args:
            model: the encoder.
            content: `(1, 3, H, W)` in [0, 1], or None to make a texture.
            styles: each `(1, 3, h, w)` in [0, 1].
            weights: one weight per style; the sum is 1.
        """

    @final
    def __call__(
        self,
        model: arguments.Model,
        content: arguments.Image | None,
        styles: arguments.OtherImages,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> Stylization:
        """Render content in the style of the style images.

        Args:
            model: the model whose layers define style and content.
            content: image to render; without one, a texture of the style. None in Python.
            styles: image whose style to take; may be repeated. In Python one image or a list.
            weights: share of each style, in their order; equal by default. Any positive scale.
            seed: seed of the initial noise.

        Raises:
            ImageError: an image cannot be read or is not RGB in [0, 1].
            ParameterError: there is no style image, or the weights do not fit the style images.
        """
        require_model(model)
        scene = model.images(content).detach() if content is not None else None
        if scene is not None and len(scene) != 1:
            raise ParameterError(
                f"style takes one content image, not {len(scene)}", parameter="content"
            )
        pictures = [model.images(item).detach() for item in _as_list(styles)]
        pictures = [row[None] for picture in pictures for row in picture]
        shares = _normalised(weights, len(pictures))
        facts = self._provenance(model, seed, weights=shares)
        with (
            session(seed),
            own_numbers(model, seed),
            restore_state(self, model, facts.weights_sha256),
        ):
            given = None if scene is None else scene.clone()
            outcome = self.stylize(model, given, [each.clone() for each in pictures], [*shares])
        losses = _losses(self, checked_type(self, outcome, StyleOutcome))
        size = pictures[0].shape[2:]
        shown = [
            picture
            if picture.shape[2:] == size
            else torch.nn.functional.interpolate(picture, size, mode="area")
            for picture in pictures
        ]
        return Stylization(
            provenance=facts,
            images=checked_pixels(self, outcome.images, (1, model.input_size[0], "H", "W")),
            content=scene.cpu() if scene is not None else None,
            styles=torch.cat(shown).cpu(),
            losses=torch.stack(list(losses.values())).float().cpu(),
            loss_names=list(losses),
            weights=shares,
        )


def _losses(technique: StyleTechnique, outcome: StyleOutcome) -> dict[str, Tensor]:
    """Return the losses by name after checking that all have the same number of steps."""
    values = checked_type(technique, outcome.losses, dict)
    if not values:
        raise technique_error(technique, "returned no losses", expected="at least 'total'")
    if not all(isinstance(name, str) for name in values):
        raise technique_error(technique, f"returned losses {list(values)}", expected="names")
    steps: int | str = "steps + 1"
    losses: dict[str, Tensor] = {}
    for name, value in values.items():
        advice = "lower the learning rate"
        losses[name] = checked_numbers(technique, value, f"losses {name!r}", (steps,), advice)
        steps = len(losses[name])
    return losses


def _as_list(styles: Any) -> list[Any]:
    if isinstance(styles, list | tuple):
        return list(styles)
    if isinstance(styles, str | Path | Image.Image | Tensor) or hasattr(styles, "shape"):
        return [styles]
    raise ParameterError(f"styles are images, not {type(styles).__name__}", parameter="styles")


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    if not count:
        raise ParameterError("style needs at least one style image", parameter="styles")
    if weights is None:
        return [1 / count] * count
    values = [float(weight) for weight in weights]
    if len(values) != count:
        raise ParameterError(
            f"{len(values)} weights for {count} style images: give one each", parameter="weights"
        )
    if min(values) < 0 or sum(values) <= 0:
        raise ParameterError(
            f"style weights are {values}: expected positive numbers", parameter="weights"
        )
    return [value / sum(values) for value in values]
