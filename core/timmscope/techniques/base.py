"""`Technique` is the base class of all techniques: a frozen set of parameters with help texts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

from timmscope.images import ImageSource
from timmscope.models import HookedModel
from timmscope.models.pass_counter import counting_part
from timmscope.parameters import Digests, Parameters, technique_error
from timmscope.progress import track
from timmscope.results.result import Provenance, to_json
from timmscope.store import Store
from timmscope.techniques.image_set import ImageSet
from timmscope.techniques.names import TechniqueT
from timmscope.techniques.opening import find_opened, main_model, openings_of
from timmscope.techniques.pictures import pictures_of
from timmscope.techniques.session import session_part
from timmscope.techniques.trained_weights import TrainedT, TrainedWeights
from timmscope_registry import ImageError, ModelError, ParameterError

if TYPE_CHECKING:
    from timmscope.store.manifest import ModelRecord

T = TypeVar("T")

noting: ContextVar[Callable[[Technique, str, Any], None] | None] = ContextVar(
    "timmscope_noting", default=None
)
"""Takes what techniques note in the running call; `Notes` sets it."""


class Technique(Parameters):
    """Base class of all techniques: parameters are fields, and a call is `technique(model, …)`.

    Subclass the base class of a family, not this class.
    """

    @classmethod
    def takes_argument(cls, parameter: inspect.Parameter) -> inspect.Parameter | None:
        """Return an argument of the base's call as this class takes it; None if it does not."""
        return parameter

    def track(
        self, steps: Iterable[T], description: str = "", total: int | None = None
    ) -> Iterable[T]:
        """Iterate and report progress; use it for every long loop."""
        return track(steps, description or self.title(), total=total)

    def note(self, name: str, values: Any) -> None:
        """Note a fact about the images, which the result keeps and shows; a later one replaces it.

        Results have it in `notes`, in `summary()` and in `result.json`; captions show it where
        there is room. Notes of chunks of a batch are joined in image order. Outside a call, nothing
        happens, nor in a training, whose `loss` returns its terms.

        Args:
            name: name of the column, as in `step_of_success`.
            values: one value per image of the running chunk (a list, tensor or array), or one value
                for all. Numbers, booleans, text, or None for images without a value; numbers that
                are not finite become None.

        Raises:
            TechniqueError: there are fewer or more values than images, or they are something else.
        """
        add = noting.get()
        if add is not None:
            add(self, name, values)

    # What parameters name

    def open_model(self, name: str | HookedModel | nn.Module) -> HookedModel:
        """Return the model that a parameter of the type `ModelName` names.

        It is on the device of the main model, opened once for the call. Like the main model, it is
        afterwards as it was, and changed weights are an error. Its passes are counted apart.

        Args:
            name: value of the parameter, as in `self.open_model(self.surrogate)`.

        Raises:
            TechniqueError: no call runs, or the value is none of a parameter.
        """
        return cast(HookedModel, find_opened(self, "model", name).value)

    def open_store(self, name: str | os.PathLike[str] | Store) -> Store:
        """Return the store that a parameter of the type `StoreName` names.

        Args:
            name: value of the parameter.

        Raises:
            TechniqueError: no call runs, or the value is none of a parameter.
        """
        return cast(Store, find_opened(self, "store", name).value)

    def open_images(
        self,
        name: str | os.PathLike[str] | ImageSource | Tensor,
        *,
        labels: bool = False,
        model: HookedModel | None = None,
    ) -> ImageSet:
        """Return the images that a parameter of the type `ImageSetName` names.

        `images.load(number).image` is one of them, `(C, H, W)` in [0, 1], as the model takes it.

        Args:
            name: value of the parameter.
            labels: refuse images without labels.
            model: model whose preprocessing is used; by default the main model.

        Raises:
            ImageError: a tensor has no images that the model takes.
            ParameterError: an image has no label, although `labels`.
            TechniqueError: no call runs, the value is none of a parameter, or there is no model.
        """
        images = find_opened(self, "image set", name).value
        whose = model if model is not None else main_model()
        if whose is None:
            did = "opened images without a model, whose preprocessing they need"
            raise technique_error(self, did, expected="self.open_images(…, model=…)")
        found = ImageSet(whose, images)
        known = found.labels or [None] * len(found)
        if labels and None in known:
            without = known.count(None)
            raise ParameterError(
                f"{without} of {len(known)} images of {found.location or 'the image set'} have no "
                f"label, which {self.title()} needs: put them into a folder per class, or name an "
                "array with labels"
            )
        return found

    def open_image(
        self,
        name: str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor,
        *,
        model: HookedModel | None = None,
    ) -> Tensor:
        """Return the image that a parameter of the type `ImageName` names, `(1, C, H, W)`.

        Args:
            name: value of the parameter.
            model: model whose preprocessing is used; by default the main model. Without one, the
                image keeps its size.

        Raises:
            ImageError: the image cannot be read, or is not in [0, 1].
            TechniqueError: no call runs, or the value is none of a parameter.
        """
        image = find_opened(self, "image", name).value
        pictures = pictures_of(model if model is not None else main_model(), image).detach()
        if len(pictures) != 1:
            raise ImageError(f"{self.title()} needs one image here, not {len(pictures)}")
        return pictures.clone()

    def open_weights(
        self, name: str | os.PathLike[str] | TrainedWeights[TrainedT]
    ) -> TrainedWeights[TrainedT]:
        """Return what a parameter of the type `WeightsName` names: a trained network.

        `weights.model` is under the same guarantees as what `open_model` returns.

        Args:
            name: value of the parameter.

        Raises:
            TechniqueError: no call runs, or the value is none of a parameter.
        """
        return cast("TrainedWeights[TrainedT]", find_opened(self, "weights", name).value)

    def open_network(
        self, name: str | os.PathLike[str] | TrainedWeights[TrainedT] | nn.Module
    ) -> HookedModel:
        """Return what a parameter of the type `NetworkName` names: a trained network or a module.

        `network.hooks(x)` runs it in eval mode and with fixed weights on whatever it takes, such as
        codes. It is under the same guarantees as what `open_model` returns.

        Args:
            name: value of the parameter.

        Raises:
            TechniqueError: no call runs, or the value is none of a parameter.
        """
        opened = find_opened(self, "weights", name)
        assert opened.model is not None, "weights are those of a model"
        return opened.model

    def open_technique(self, name: str | TechniqueT) -> TechniqueT:
        """Return the technique that a parameter of the type `TechniqueName` names.

        Its method (`perturb`, `attribute` …) then runs in this call: nothing is hashed, restored or
        judged for it. What its parameters name is opened by this call too. For a part of the batch,
        call the method inside `self.part(rows)`.

        Args:
            name: value of the parameter.

        Raises:
            TechniqueError: the value is none of a parameter.
        """
        if isinstance(name, str):
            did = f"opens the technique {name!r}, which is the value of no parameter"
            raise technique_error(self, did)
        return name

    @contextmanager
    def part(self, rows: Tensor) -> Iterator[None]:
        """Let the methods of other techniques work on a part of the batch inside the context.

        They draw the random numbers of these images, and count passes for them.

        Args:
            rows: `(n,)` int64, the rows of this technique's batch that make the part.
        """
        with session_part(rows.tolist()), counting_part(rows):
            yield

    # Records

    def _recorded_in_call(self) -> dict[str, Any]:
        """Return the parameters as JSON values, with digests of what the call has opened."""
        opened = openings_of(self)
        digests: Digests = {} if opened is None else opened.digests
        return self._recorded(digests)

    def _named_in_call(self) -> dict[str, Any]:
        """Return kind, id and SHA-256 of what the parameters name."""
        opened = openings_of(self)
        return {} if opened is None else opened.record(self)

    def _provenance(
        self, model: HookedModel | ModelRecord | None, seed: int, **facts: Any
    ) -> Provenance:
        return Provenance.now(
            technique=self.technique_id(),
            family=self.family,
            parameters=self._recorded_in_call(),
            named=self._named_in_call(),
            model=model.id if model is not None else None,
            weights_sha256=model.weights_sha256 if model is not None else None,
            seed=seed,
            call=to_json(facts),
        )


def require_model(model: HookedModel) -> None:
    """Refuse anything but a `HookedModel`.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(model, HookedModel):
        raise ModelError(
            f"a technique takes a HookedModel, not {type(model).__name__}: "
            "use load_model(...) or HookedModel(module)"
        )
