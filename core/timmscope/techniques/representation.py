"""Base class of representation analyses, which study a whole store or a model's weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.results import Provenance, Result, Sheet, Table
from timmscope.store.model import store_model
from timmscope.techniques import arguments
from timmscope.techniques.base import Technique, technique_error
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.rows import Rows
from timmscope.techniques.session import own_numbers, session
from timmscope.techniques.validate_output import checked_pixels, checked_type
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.images import Images
    from timmscope.store import StoreLayer
    from timmscope.store.manifest import ModelRecord

ResultT = TypeVar("ResultT", bound=Result, covariant=True)


class _HasAnalyse(Protocol[ResultT]):
    """A technique typed by its `analyse`, so that a call has the same result type."""

    def analyse(self, source: Any, images: Any) -> ResultT: ...


@dataclass(frozen=True)
class _Call:
    """Values of the running call that `analyse` does not get as arguments."""

    seed: int = 0
    model: HookedModel | None = None
    parameters: Mapping[str, Any] | None = None


_call: ContextVar[_Call] = ContextVar("timmscope_representation_call", default=_Call())  # noqa: B039


class RepresentationTechnique(Technique):
    """Base class of analyses; a subclass implements `analyse` and declares what it `reads`."""

    family: ClassVar[str] = "representation"
    reads: ClassVar[str] = "store"
    """`store`: one layer of a store, or an array of rows; `stores`: layers of one or several
    stores, or arrays; `model`: a model."""
    one_layer: ClassVar[bool] = False
    """Whether a technique with several stores reads one layer only, the same in all stores."""

    @abstractmethod
    def analyse(self, source: Any, images: Any) -> Result:
        """Analyse the source.

        Args:
            source: `Rows`, a list of `Rows` or a `HookedModel`, depending on `reads`.
            images: query images, anything that `HookedModel.images` takes; None if there are none.
        """

    @final
    def __call__(
        self: _HasAnalyse[ResultT],
        source: arguments.Source,
        images: arguments.Queries = None,
        *,
        layer: arguments.Layers = None,
        where: arguments.Where = None,
        location: arguments.Location = None,
        model: HookedModel | None = None,
        seed: int = 0,
    ) -> ResultT:
        """Run the analysis.

        Args:
            source: a store or its folder, one of its layers, an array of rows `(N, d)`; several
                of these for techniques that read several stores; or a model, for techniques that
                read one.
            images: query images, for techniques that take some. Anything that
                `HookedModel.images` takes.
            layer: layer of the store; needed if the store holds several. Techniques that read
                several stores take several names, and by default all layers of each store; those
                that read one layer take by default the only layer that all stores share.
            where: only these images of a store: a condition, a mask (N,) or ids; see
                `ImageTable.where`.
            location: where the store's images are now, if they have moved; one for each of several
                stores.
            model: the model that the store was mined with, for techniques that take images; by
                default it is loaded by the id in the store.
            seed: seed of random numbers.

        Raises:
            ParameterError: the source is not what the technique reads, or the condition is wrong.
            StoreError: there is no store, or it cannot be read.
            StoreMismatch: `model` is not the one that the store was mined with.
            LayerNotFound: the store has no such layer.
        """
        this = cast(RepresentationTechnique, self)
        token = _call.set(_Call(seed, model, this._recorded()))
        used = source if isinstance(source, HookedModel) else model
        weights = None if used is None else used.weights_sha256
        try:
            with session(seed), own_numbers(used, seed), restore_state(this, used, weights):
                queries = images.clone() if isinstance(images, Tensor) else images
                opened = this._source(source, layer, where, location)
                result = this._checked_result(this.analyse(opened, queries))
            for rows in opened if isinstance(opened, list) else [opened]:
                if isinstance(rows, Rows):
                    rows.warn_of_lost()
            return cast(ResultT, result)
        finally:
            _call.reset(token)

    def _checked_result(self, outcome: object) -> Result:
        result = checked_type(self, outcome, Result)  # type: ignore[type-abstract]
        checked_type(self, result.provenance, Provenance)
        if isinstance(result, Table | Sheet):
            for row in checked_type(self, result.rows, list):
                if not all(isinstance(name, str) for name in checked_type(self, row, dict)):
                    raise technique_error(self, f"returned columns {list(row)}", expected="names")
        if isinstance(result, Sheet) and len(result.images):
            checked_pixels(self, result.images, ("B", 3, "H", "W"))
            if len(result.titles) != len(result.images):
                did = f"returned {len(result.titles)} titles for {len(result.images)} pictures"
                raise technique_error(self, did, expected="one each")
        return result

    def model_of(self, layer: StoreLayer) -> HookedModel:
        """Return the model that a store was mined with: the caller's, or one loaded by its id.

        Raises:
            StoreMismatch: the caller's model has other weights.
            StoreError: the caller passed none, and it cannot be loaded by its id.
        """
        return store_model(layer.store, _call.get().model)

    @property
    def seed(self) -> int:
        """Seed of the running call, for random numbers."""
        return _call.get().seed

    def provenance(self, source: HookedModel | Rows | None = None, **facts: Any) -> Provenance:
        """Return the provenance of the running call, which is needed to compute its result again.

        Args:
            source: what was analysed. For rows of a store, its model, its layer and the chosen
                images are recorded.
            facts: other facts that decide the result, such as names of the query images.
        """
        model: HookedModel | ModelRecord | None
        if isinstance(source, Rows):
            model = None if source.layer is None else source.layer.store.manifest.model
            facts = {**source.facts, **facts}
        else:
            model = source
        provenance = self._provenance(model, _call.get().seed, **facts)
        recorded = _call.get().parameters
        return provenance if recorded is None else replace(provenance, parameters=dict(recorded))

    def layer_of(self, rows: Rows) -> StoreLayer:
        """Return the store's layer from which rows come.

        Raises:
            ParameterError: they come from an array, which has no images and no statistics of units.
        """
        if rows.layer is None:
            raise ParameterError(
                f"{self.title()} needs a store, an array is not enough", parameter="source"
            )
        return rows.layer

    def _source(
        self,
        source: Any,
        layer: str | Sequence[str] | None,
        where: str | npt.ArrayLike | None,
        location: Images | Sequence[Images] | None,
    ) -> Any:
        """Return the source for `analyse`: a model, rows or a list of rows."""
        if self.reads == "model":
            if not isinstance(source, HookedModel):
                raise ParameterError(
                    f"{self.title()} reads a model, not {type(source).__name__}: "
                    "use load_model(…) or HookedModel(module)",
                    parameter="source",
                )
            return source
        names = None
        if layer is not None:
            names = list(dict.fromkeys([layer] if isinstance(layer, str) else layer))
        several = self.reads == "stores"
        listed = several and isinstance(source, list | tuple)
        sources = [self._open_source(each) for each in (source if listed else [source])]
        if not several or self.one_layer:
            names = [self._one_layer(sources, names)]
        places = _locations(location, len(sources)) if listed else [location]
        rows = [
            Rows(found, where, location=place)
            for each, place in zip(sources, places, strict=True)
            for found in _select_layers(each, names)
        ]
        if several:
            return rows
        if _call.get().model is not None and rows[0].layer is not None:
            self.model_of(rows[0].layer)  # refuse another model even if no model is needed
        return rows[0]

    def _open_source(self, source: Any) -> Any:
        """Return the source as a store, a layer of a store or an array."""
        from timmscope.store import Store, StoreLayer

        if isinstance(source, str | Path):
            return Store.open(source)
        if isinstance(source, Store | StoreLayer | np.ndarray):
            return source
        raise ParameterError(
            f"{self.title()} reads a store, its layer or an array, not {type(source).__name__}",
            parameter="source",
        )

    def _one_layer(self, sources: list[Any], names: list[str] | None) -> str:
        """Return the layer to read in all stores: the given one, or the only one they share."""
        from timmscope.store import Store

        stores = [source for source in sources if isinstance(source, Store)]
        if names is not None and len(names) != 1:
            raise ParameterError(
                f"{self.title()} reads one layer, but {len(names)} are given: {', '.join(names)}; "
                "run it once per layer",
                parameter="layer",
            )
        if names or not stores:
            return names[0] if names else ""
        common = [name for name in stores[0].layers if all(name in s.layers for s in stores)]
        if len(common) == 1:
            return common[0]
        if not common:
            held = "; ".join(f"{s.path.name} holds {', '.join(s.layers)}" for s in stores)
            raise ParameterError(f"the stores share no layer: {held}", parameter="layer")
        hold = f"{stores[0].path} holds" if len(stores) == 1 else "the stores share"
        raise ParameterError(
            f"{hold} {len(common)} layers: choose one of {', '.join(common)}",
            parameter="layer",
        )


def _select_layers(source: Any, names: list[str] | None) -> list[Any]:
    """Return layers of a store, by default all; a layer or an array is returned as it is."""
    from timmscope.store import Store

    if isinstance(source, Store):
        return [source.layer(name) for name in names or source.layers]
    return [source]


def _locations(location: Any, stores: int) -> list[Any]:
    """Return the location of each store's images."""
    if location is None:
        return [None] * stores
    places = list(location) if isinstance(location, list | tuple) else [location]
    if len(places) != stores:
        raise ParameterError(
            f"{len(places)} location{'' if len(places) == 1 else 's'} of images for {stores} "
            "stores: give one for each, with location= in Python, --images on the command line",
            parameter="location",
        )
    return places
