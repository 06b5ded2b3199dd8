"""`TopPatches` shows what units look for: the patches of real images that drive them highest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from timmscope import (
    HookedModel,
    ParameterError,
    RepresentationTechnique,
    Rows,
    StoreError,
    StoreMismatch,
    UnitNumbers,
    UnitPatches,
    chosen_units,
    unit_patches,
)


def _view(given: str | None) -> str | None:
    return None if given is not None and given.strip().lower() in ("", "none") else given


class TopPatches(RepresentationTechnique):
    """Patches that drive units highest, each beside what activated the unit in it.

    After Zeiler & Fergus (ECCV 2014, figure 2), with guided backpropagation (Springenberg et al.,
    2015) of the unit at that cell in place of their deconvnet. One patch per image by default, at
    the image's maximum, as the store has it. Over all positions (`per_image` off) the ranking is
    exact: the images of the highest maxima are run through the model once more.

    One unit is a sheet of large pictures, with the place of every patch in its image; several are
    rows, on as many pages as it takes.
    """

    units: UnitNumbers | None = None
    """Units to show, as in `17` or `3,5,8-15`; by default the whole layer."""
    k: int = Field(default=9, ge=1)
    """Patches of each unit."""
    field: Literal["exact", "spatial", "effective"] = "spatial"
    """Which receptive field is cut out: all pixels that can matter, those that matter locally
    (global gates left aside), or those with 95 % of the gradient's energy on these images."""
    view: Annotated[str | None, AfterValidator(_view)] = "guided-backprop"
    """Explanation beside each patch, as in `saliency` or `grad-cam layer=blocks.4`; `none` for
    patches alone. Where it does not fit the model, the figure says so."""
    per_image: bool = True
    """One patch per image; off, the strongest of all positions of all images."""

    def analyse(self, source: Rows, images: Any) -> UnitPatches:
        """Patches of a store's layer; takes no query images."""
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
            lambda model: self.provenance(model, **source.facts),
            pictures=source.pictures,
            field=self.field,
            view=self.view,
            per_image=self.per_image,
            where=source.chosen,
        )
