"""`guide` lets each position of an image be excited by what it resembles most in another image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from timmscope.objectives.algebra import Objective
from timmscope.objectives.match import Match, match_images
from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from timmscope_registry.hooks import Layer


def guide(layer: str, *, images: Any) -> Objective:
    """Mean over positions of the largest dot product with a position of another image.

    With activations `a_p` of the image and `g_q` of the guide at a layer, the value is
    `mean_p max_q a_p · g_q`. Its gradient draws each position towards the guide's feature that it
    resembles most, which is how DeepDream is guided. The two images may have different sizes.

    Args:
        layer: name of the layer.
        images: one or several guides, as `model.images` takes them; one for all images, or one per
            image.

    Raises:
        ObjectiveError: there is no image, or a file cannot be read.
    """
    return match_images(Guide, layer, images)


@dataclass(frozen=True)
class Guide(Match):
    """Mean over positions of the largest dot product with a position of a guide."""

    function: ClassVar[str] = "guide"

    def _check_shape(self, values: Tensor, layer: Layer, images: Tensor | None) -> None:
        """Refuse a guide of another number of channels; its grid may be any."""
        if values.shape[1] != layer.channels:
            raise self._wrong_shape(tuple(values.shape[1:]), (layer.channels,))

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """The mean of the largest dot products."""
        activation = self._compared(self._bound_layer(), recording[self.layer])
        assert self._values is not None, "binding sets it with the layer"
        features = self._values.to(activation).flatten(2)  # (T, C, Q)
        products = activation.flatten(2).transpose(1, 2) @ features  # (B, P, Q)
        return products.amax(2).mean(1)

    @property
    def reference_images(self) -> Tensor | None:
        """None: an image that follows a guide does not become it."""
        return None

    def _wrong_shape(self, target: Sequence[int], activation: Sequence[int]) -> ObjectiveError:
        return ObjectiveError(
            f"the guide of {self.label} has {target[0]} channels, and {self.layer!r} has "
            f"{activation[0]}: give a guide of this layer"
        )
