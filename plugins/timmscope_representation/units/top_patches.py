"""Top patches: the patches of real images that activate a unit most."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from timmscope import (
    HookedModel,
    ParameterError,
    Rows,
    StoreError,
    StoreMismatch,
    StoreTechnique,
    UnitNumbers,
    UnitPatches,
    chosen_units,
    unit_patches,
)


def _view(given: str | None) -> str | None:
    return None if given is not None and given.strip().lower() in ("", "none") else given


class TopPatches(StoreTechnique):
    """Shows the patches of real images that activate units most, and what activated them there.

    For unit u the k images of the largest `score = max_ij A_uij`, where A is the activation of the
    layer, each cut to the receptive field of cell (i, j); with `per_image` off, the k largest
    `A_uij` over all cells of all images. That ranking is exact: images of the largest maxima are
    run through the model again. Beside each patch stands an explanation of this unit at this cell,
    by default guided backpropagation in place of the paper's deconvnet.

    One unit gives a sheet of large pictures, with the position of each patch in its image; several
    units give one row each, on as many pages as needed.

    Paper:
        - Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
          arXiv:1311.2901, figure 2.
        - Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for Simplicity: The All
          Convolutional Net", ICLR workshop 2015, arXiv:1412.6806: guided backpropagation.

    Raises:
        ImageError: the store's images are gone.
        LayerNotFound: the store has no such layer.
        ParameterError: a parameter is out of range, or the source is an array.
        StoreError: the store cannot be read, or its model cannot be loaded.
        StoreMismatch: the given model has other weights than the store's.
    """

    units: UnitNumbers | None = None
    """Units to show, as in `17` or `3,5,8-15`; by default the whole layer."""
    k: int = Field(default=9, ge=1)
    """Number of patches per unit."""
    field: Literal["exact", "spatial", "effective"] = "spatial"
    """Receptive field to cut out: all pixels that can matter, those that matter locally (without
    global gates), or those with 95 % of the gradient's energy on these images."""
    view: Annotated[str | None, AfterValidator(_view)] = "guided-backprop"
    """Explanation beside each patch, as in `saliency` or `grad-cam layer=blocks.4`; `none` for
    patches only. If it does not fit the model, the figure says so."""
    per_image: bool = True
    """One patch per image; off, the strongest of all positions of all images."""

    def analyse(self, source: Rows, images: Any) -> UnitPatches:
        """Patches of a store's layer; it takes no query images.

        Raises:
            ParameterError: query images are given, or the source is an array.
            StoreError: the store's model cannot be loaded.
            StoreMismatch: the given model has other weights than the store's.
        """
        if images is not None:
            raise ParameterError(f"{self.title()} takes no query images", parameter="images")
        layer = self.layer_of(source)
        units = chosen_units(self.units, layer.name, layer.channels)

        def load() -> HookedModel:
            try:
                return self.model_of(layer)
            except StoreMismatch:
                raise
            except StoreError as error:
                if self.view is None:
                    raise
                raise StoreError(f"{error}; patches alone (view none) may do without it") from error

        return unit_patches(
            layer,
            load,
            units,
            self.k,
            self.provenance(source),
            pictures=source.pictures,
            field=self.field,
            view=self.view,
            per_image=self.per_image,
            where=source.chosen,
        )
