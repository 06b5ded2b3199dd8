"""The parts of images that drive a unit highest, cut out.

A patch is a window around the cell of the maximum. Its size is a multiple of the layer's stride,
`CONTEXT` cells each way: a readable neighbourhood, not the layer's receptive field, which in the
deep layers of most models is the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from timmscope.images import Images
from timmscope.store import Store, TopEntry

if TYPE_CHECKING:
    from timmscope.models import HookedModel

CONTEXT = 3.0
"""Default side of a patch, in cells."""


class HasStride(Protocol):
    """A layer of a model's catalogue or of a store."""

    @property
    def stride(self) -> tuple[float, float] | None:
        """Vertical and horizontal size of a cell in input pixels."""


@dataclass(frozen=True)
class Patch:
    """A patch of one of a unit's strongest images.

    Attributes:
        image: the cut-out, RGB.
        box: left, upper, right, lower edge in pixels of the preprocessed image.
        entry: image id, value and cell.
        path: the image's name.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    entry: TopEntry
    path: str


def patch_box(
    layer: HasStride,
    position: tuple[int, int],
    image_size: tuple[int, int],
    *,
    context: float = CONTEXT,
) -> tuple[int, int, int, int]:
    """Return the window around a cell: left, upper, right, lower edge in pixels.

    It is `context` strides wide and high, centred on the cell, and shifted inwards at the borders
    of the image, so that all patches of a layer have the same size. A layer without a stride (a
    vector) gives the whole image.

    Args:
        layer: the layer, for its stride.
        position: row and column of the cell.
        image_size: height and width of the preprocessed image in pixels.
        context: side of the window in cells.
    """
    height, width = image_size
    if layer.stride is None or min(position) < 0:
        return (0, 0, width, height)
    upper, lower = _edges(position[0], layer.stride[0], height, context)
    left, right = _edges(position[1], layer.stride[1], width, context)
    return (left, upper, right, lower)


def _edges(cell: int, stride: float, size: int, context: float) -> tuple[int, int]:
    side = max(1, min(size, round(context * stride)))
    start = round((cell + 0.5) * stride - side / 2)
    start = max(0, min(size - side, start))
    return start, start + side


def top_patches(
    store: Store,
    model: HookedModel,
    layer: str,
    unit: int,
    k: int = 9,
    *,
    context: float = CONTEXT,
    images: Images | None = None,
) -> list[Patch]:
    """Cut the patches of a unit's `k` strongest images, best first; reads those images only.

    Args:
        store: the store.
        model: its model, for the preprocessing.
        layer: name of a mined layer.
        unit: channel.
        k: how many.
        context: side of a patch in cells.
        images: the store's images; by default opened where they were.

    Raises:
        ImageError: the images are no longer there.
        StoreError: the store's images were in memory and `images` is missing.
    """
    source = store.source(images)
    found = store.layer(layer)
    entries = found.top(unit, k)
    patches = []
    for entry in entries:
        pixels = model.preprocess(source.load(entry.image_id))  # (C, H, W) in [0, 1]
        array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        whole = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
        size = (whole.height, whole.width)
        box = patch_box(found.record, entry.position, size, context=context)
        patches.append(Patch(whole.crop(box), box, entry, source.paths[entry.image_id]))
    return patches
