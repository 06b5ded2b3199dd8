"""Base class and result of style techniques, which give an image the style of others.

A technique says what it takes: a model, a content image, style images. Without a model, images keep
their own size, since nothing says which size is wanted.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from PIL import Image
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.parameters import technique_error
from timmscope.results.result import Result
from timmscope.techniques import arguments
from timmscope.techniques.base import require_model
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import opening
from timmscope.techniques.over.base import PerImageTechnique
from timmscope.techniques.pictures import pictures_of
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.session import own_numbers, session
from timmscope.techniques.validate_output import (
    checked_frames,
    checked_numbers,
    checked_pixels,
    checked_type,
)
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StyleOutcome:
    """Return value of `stylize`.

    Attributes:
        images: `(1, 3, H, W)` in [0, 1].
        losses: name → `(steps + 1,)` value at each step and, last, of the returned image; `total`
            is the minimised loss. Empty for a technique that minimises nothing.
        copied_from: `(1, 3, H, W)` whole numbers, for a technique that copies pixels: the number of
            the style image, the row and the column that each pixel comes from.
        frames: `(F, 1, 3, H, W)` in [0, 1], the image at some steps, in order.
    """

    images: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    copied_from: Tensor | None = None
    frames: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Stylization(Result):
    """A content image in the style of one or more style images.

    Attributes:
        images: `(1, 3, H, W)` in [0, 1].
        content: `(1, 3, H, W)`; None for a texture.
        styles: style images as the technique sees them, stacked at a common size for display.
        losses: `(terms, steps + 1)`, in the order of `loss_names`; the last values are of `images`.
            `(0, 0)` for a technique that minimises nothing.
        loss_names: names of the terms; `total` is the minimised loss.
        weights: weight of each style image; the sum is 1.
        copied_from: `(1, 3, H, W)` int32: the number of the style image, the row and the column
            that each pixel comes from; None for a technique that does not copy pixels.
        frames: `(F, 1, 3, H, W)` uint8, the image at some steps, if the technique keeps them.
    """

    images: Tensor
    content: Tensor | None
    styles: Tensor
    losses: Tensor
    loss_names: list[str]
    weights: list[float]
    copied_from: Tensor | None = None
    frames: Tensor | None = None

    sheet_pictures: ClassVar[str] = "image-"

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
        origin = self._origin()
        copied = [] if origin is None else [("where each pixel comes from", origin)]
        shown = [*content, *styles, *made, *copied]
        return curves_figure(
            [picture for _, picture in shown],
            [(caption, "") for caption, _ in shown[:-1]] + [(shown[-1][0], self.note_text(0))],
            self.loss_curves(),
            "loss",
            log=True,
        )

    def _origin(self) -> Tensor | None:
        """Return `(3, H, W)`: the row of each pixel's source as red, its column as green.

        Blue tells the style images apart.
        """
        if self.copied_from is None:
            return None
        number, row, column = self.copied_from[0].float()
        return torch.stack(
            [
                row / row.max().clamp_min(1),
                column / column.max().clamp_min(1),
                0.5 + 0.5 * number / max(len(self.styles) - 1, 1) * (len(self.styles) > 1),
            ]
        )

    def loss_curves(self) -> dict[str, Tensor]:
        """Return the losses by name, each `(steps + 1,)`."""
        return dict(zip(self.loss_names, self.losses, strict=True))

    def pictures(self) -> dict[str, Any]:
        """Return the image, and the map of where its pixels come from, if there is one."""
        origin = self._origin()
        return {
            "image-000": self.images[0],
            **({} if origin is None else {"copied-from": origin}),
        }

    def animation_frames(self) -> Tensor | None:
        """Return the frames."""
        return self.frames

    def summary(self) -> list[dict[str, Any]]:
        """Return one row: each loss at the first step and of the returned image, and notes."""
        height, width = self.images.shape[2:]
        row: dict[str, Any] = {"height_px": height, "width_px": width}
        if self.loss_names:
            row["steps"] = self.losses.shape[1] - 1
        for name, values in self.loss_curves().items():
            row[f"first_{name}"] = float(values[0])
            row[f"final_{name}"] = float(values[-1])
        return self.with_notes([row])


class StyleTechnique(PerImageTechnique):
    """Base class of style techniques; a subclass implements `stylize` and says what it takes."""

    family: ClassVar[str] = "style"
    base: ClassVar[str] = "style"
    over_argument: ClassVar[str] = "content"
    takes: ClassVar[frozenset[str]] = frozenset({"model", "content", "styles"})
    """What the technique takes, of `model`, `content` and `styles`; the call refuses the others,
    and the command does not have them."""

    @classmethod
    def takes_argument(cls, parameter: inspect.Parameter) -> inspect.Parameter | None:
        """Return an argument of the call; content may be left out, a model and styles may not."""
        if parameter.name in _INPUTS - cls.takes:
            return None
        required = parameter.name in ("model", "styles")
        return parameter.replace(default=parameter.empty) if required else parameter

    @abstractmethod
    def stylize(
        self,
        model: Any,
        content: Tensor | None,
        styles: list[Tensor],
        weights: list[float],
    ) -> StyleOutcome:
        """Make the image.

        Args:
            model: the encoder, a `HookedModel`; None for a technique that takes no model.
            content: `(1, 3, H, W)` in [0, 1], or None to make a texture.
            styles: each `(1, 3, h, w)` in [0, 1]; empty for a technique that takes none.
            weights: one weight per style; the sum is 1.
        """

    @final
    def __call__(
        self,
        model: arguments.Model | None = None,
        content: arguments.Image | None = None,
        styles: arguments.OtherImages = None,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> Stylization:
        """Render content in the style of the style images.

        Args:
            model: the model whose layers define style and content. Not for a technique that takes
                none.
            content: image to render; without one, a texture of the style. None in Python.
            styles: image whose style to take; may be repeated. In Python one image or a list.
            weights: share of each style, in their order; equal by default. Any positive scale.
            seed: seed of the random numbers.

        Raises:
            ImageError: an image cannot be read or is not RGB in [0, 1].
            ParameterError: there is no style image, the weights do not fit the style images, or the
                technique does not take what is given.
        """
        self._check_inputs({"model": model, "content": content, "styles": styles})
        with opening([self], model, seed) as opened:
            result = self._stylized(model, content, styles, weights, seed)
        return opened.reported(result)

    def _stylized(
        self,
        model: HookedModel | None,
        content: Any,
        styles: Any,
        weights: Sequence[float] | None,
        seed: int,
    ) -> Stylization:
        scene = pictures_of(model, content) if content is not None else None
        if scene is not None and len(scene) != 1:
            raise ParameterError(
                f"style takes one content image, not {len(scene)}", parameter="content"
            )
        pictures = opened_styles(model, styles) if "styles" in self.takes else []
        shares = _normalised(weights, len(pictures)) if "styles" in self.takes else []
        facts = self._provenance(model, seed, weights=shares)
        weights_sha256 = None if model is None else model.weights_sha256
        notes = Notes(self, 1)
        with (
            notes.of([0]),
            session(seed),
            own_numbers(model, seed),
            restore_state(self, model, weights_sha256),
        ):
            own = None if scene is None else scene.clone()
            outcome = self.stylize(model, own, [each.clone() for each in pictures], [*shares])
        losses = _losses(self, checked_type(self, outcome, StyleOutcome))
        channels = 3 if model is None else model.input_size[0]
        images = checked_pixels(self, outcome.images, (1, channels, "H", "W"))
        return Stylization(
            provenance=facts,
            notes=notes.joined(),
            images=images,
            content=scene.cpu() if scene is not None else None,
            styles=_stacked(pictures, images),
            losses=torch.stack(list(losses.values())).float().cpu() if losses else _NO_LOSSES,
            loss_names=list(losses),
            weights=shares,
            copied_from=_checked_origin(self, outcome.copied_from, images, pictures),
            frames=checked_frames(self, outcome.frames, images),
        )

    @classmethod
    def works_over_sets(cls) -> bool:
        """Return whether the technique takes a content image."""
        return "content" in cls.takes

    def _require_over(self, model: HookedModel | None, arguments: dict[str, Any]) -> None:
        """Refuse a technique that takes no content image, and what else a call refuses."""
        if not self.works_over_sets():
            raise ParameterError(
                f"{self.title()} takes no content image, so it cannot work through an image set",
                parameter="images",
            )
        self._check_inputs({"model": model, "styles": arguments.get("styles")})

    def _check_inputs(self, given: dict[str, Any]) -> None:
        """Refuse what the technique does not take, and a call without the model that it needs."""
        for name, value in given.items():
            if value is not None and name not in self.takes:
                what = {"model": "model", "content": "content image", "styles": "style images"}
                raise ParameterError(f"{self.title()} takes no {what[name]}", parameter=name)
        if "model" in self.takes:
            if given["model"] is None:
                raise ParameterError(
                    f"{self.title()} needs a model: give one, as in load_model(…)",
                    parameter="model",
                )
            require_model(given["model"])


_INPUTS = frozenset({"model", "content", "styles"})
_NO_LOSSES = torch.zeros(0, 0)


def opened_styles(model: HookedModel | None, styles: Any) -> list[Tensor]:
    """Return style images as the technique gets them, each `(1, 3, h, w)` in [0, 1].

    Raises:
        ImageError: an image cannot be read, or is not RGB in [0, 1].
    """
    batches = [pictures_of(model, item) for item in _as_list(styles)]
    return [picture[None] for batch in batches for picture in batch]


def _stacked(pictures: list[Tensor], images: Tensor) -> Tensor:
    """Return the style images `(n, C, h, w)` at the size of the first."""
    if not pictures:
        return images.new_zeros(0, *images.shape[1:])
    size = pictures[0].shape[2:]
    shown = [
        picture
        if picture.shape[2:] == size
        else torch.nn.functional.interpolate(picture, size, mode="area")
        for picture in pictures
    ]
    return torch.cat(shown).cpu()


def _checked_origin(
    technique: StyleTechnique, copied_from: object, images: Tensor, pictures: list[Tensor]
) -> Tensor | None:
    """Return where pixels come from as int32, after comparing each pixel with its source.

    Raises:
        TechniqueError: it has another shape, is outside the style images, or a pixel differs.
    """
    if copied_from is None:
        return None
    height, width = images.shape[2:]
    shape = (1, 3, height, width)
    origin = checked_numbers(technique, copied_from, "sources of pixels", shape).long().cpu()
    number, row, column = origin[0]
    for index, picture in enumerate(pictures):
        here = number == index
        rows, columns = row[here], column[here]
        inside = (rows >= 0) & (rows < picture.shape[2])
        inside &= (columns >= 0) & (columns < picture.shape[3])
        if not bool(inside.all()):
            raise technique_error(technique, f"copied pixels from outside style image {index + 1}")
        if not torch.equal(images[0][:, here], picture.cpu()[0][:, rows, columns]):
            raise technique_error(
                technique, f"returned pixels that differ from their source in style {index + 1}"
            )
    if not bool(((number >= 0) & (number < len(pictures))).all()):
        raise technique_error(technique, "copied pixels from a style image that is not there")
    return origin.int()


def _losses(technique: StyleTechnique, outcome: StyleOutcome) -> dict[str, Tensor]:
    """Return the losses by name after checking that all have the same number of steps."""
    values = checked_type(technique, outcome.losses, dict)
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
    if styles is None:
        return []
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
