"""The places of real images that drive a unit highest, cut out as the model saw them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from timmscope.images import open_images
from timmscope.models import Preprocessing
from timmscope_registry import ImageError, TimmscopeError

if TYPE_CHECKING:
    from timmscope.images import Images, ImageSource
    from timmscope.store import Store, StoreLayer

CELLS = 4
"""Side of a patch in cells of the layer: a glimpse of the context, not the receptive field."""
LEAST_PX = 40
"""Smallest side of a patch, so that early layers' patches can be recognised."""


class Patch(NamedTuple):
    """One of a unit's strongest images.

    Attributes:
        image_id: of the store.
        path: the image's name.
        value: the unit's maximum in that image.
        position: cell of the maximum (row, column); (-1, -1) where the layer has none.
        picture: (3, h, w) in [0, 1], cut from the model's input around that cell.
        box: where it was cut: top, left, bottom, right in input pixels.
    """

    image_id: int
    path: str
    value: float
    position: tuple[int, int]
    picture: Tensor
    box: tuple[int, int, int, int]


def top_patches(
    layer: StoreLayer, unit: int, k: int = 9, *, images: Images | None = None
) -> list[Patch]:
    """Cut out the patches of a unit's strongest images, best first.

    Args:
        layer: layer of a store.
        unit: channel of that layer.
        k: how many images.
        images: where the images are now; by default where the pass found them.

    Raises:
        StoreError: no such unit.
        ImageError: the images cannot be found, or are no longer those of the store.
    """
    store = layer.store
    source = source_of(store, images)
    prepare = preprocessing_of(store)
    stride = layer.record.stride
    patches = []
    for entry in layer.top(unit, k):
        path = store.images.paths[entry.image_id]
        picture = prepare(source.load(entry.image_id))
        box = patch_box(entry.position, stride, (picture.shape[1], picture.shape[2]))
        top, left, bottom, right = box
        patches.append(
            Patch(
                entry.image_id,
                path,
                entry.value,
                entry.position,
                picture[:, top:bottom, left:right],
                box,
            )
        )
    return patches


def patch_box(
    position: tuple[int, int], stride: tuple[float, float] | None, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (in pixels) of the square patch around a cell, inside the image.

    Without a stride (a vector layer) it is the whole image.
    """
    height, width = size
    if stride is None or min(position) < 0:
        return 0, 0, height, width
    side = min(max(LEAST_PX, round(CELLS * max(stride))), height, width)
    centre_y, centre_x = ((cell + 0.5) * step for cell, step in zip(position, stride, strict=True))
    top = min(max(round(centre_y - side / 2), 0), height - side)
    left = min(max(round(centre_x - side / 2), 0), width - side)
    return top, left, top + side, left + side


def source_of(store: Store, images: Images | None = None) -> ImageSource:
    """Open the images that a store was mined from.

    Raises:
        ImageError: they cannot be found, or are not as many as they were.
    """
    location = images if images is not None else store.manifest.images.location
    if location == "":
        raise ImageError(f"the images of {store.path.name} existed only in memory: say where now")
    try:
        source = open_images(location)
    except TimmscopeError as error:
        raise ImageError(
            f"the images of {store.path.name} cannot be opened, say where they are now: {error}"
        ) from error
    if len(source) != len(store):
        raise ImageError(
            f"{store.path.name} was mined from {len(store)} images, now there are {len(source)}"
        )
    return source


def preprocessing_of(store: Store) -> Preprocessing:
    """The resize and crop that the store's images went through."""
    recorded = store.manifest.model.preprocessing
    return Preprocessing(
        **{key: tuple(v) if isinstance(v, list) else v for key, v in recorded.items()}
    )
