"""Types of parameters that name something: a layer, model, image set, store, weights, technique.

A parameter takes the text of a name, or the live object. `Technique` has a method that opens each.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, TypeVar

import numpy.typing as npt
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from timmscope.images import ImageSource
from timmscope.models import HookedModel
from timmscope.parameters import Names, Parameters
from timmscope.store import Store
from timmscope.techniques.trained_weights import TrainedT, TrainedWeights

TechniqueT = TypeVar("TechniqueT", bound=Parameters)

LayerName = Annotated[str, Field(json_schema_extra={"kind": "layer"}, min_length=1)]
"""Name of a layer; the command line completes it and checks it against the model."""
ModelName = Annotated[str | HookedModel | nn.Module, Names("model")]
"""A model, by its id or itself; `open_model` opens it."""
ImageSetName = Annotated[str | os.PathLike[str] | ImageSource | Tensor, Names("image set")]
"""Images, by their location or themselves; `open_images` opens them."""
ImageName = Annotated[
    str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor, Names("image")
]
"""An image, by its file or itself; `open_image` opens it."""
StoreName = Annotated[str | os.PathLike[str] | Store, Names("store")]
"""A store, by its folder or itself; `open_store` opens it."""
WeightsName = Annotated[str | os.PathLike[str] | TrainedWeights[TrainedT], Names("weights")]
"""What a training left, as in `WeightsName[MyTraining]`; `open_weights` opens it."""
NetworkName = Annotated[
    str | os.PathLike[str] | TrainedWeights[TrainedT] | nn.Module, Names("weights")
]
"""What a training left, or any module; `open_network` opens it."""
TechniqueName = Annotated[str | TechniqueT, Names("technique")]
"""A technique of a base, as in `TechniqueName[AttackTechnique]`; `open_technique` returns it."""
