"""Base classes of analyses that read one store, or several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, final

import numpy as np

from timmscope.models import HookedModel
from timmscope.results import Result
from timmscope.store.model import store_model
from timmscope.techniques import arguments
from timmscope.techniques.analysis import AnalysisTechnique, ResultT, copied, running_call
from timmscope.techniques.rows import Rows
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.store import StoreLayer


class _ReadsStores(AnalysisTechnique):
    """What analyses of one store and of several share."""

    def model_of(self, layer: StoreLayer) -> HookedModel:
        """Return the model that a store was mined with: the caller's, or one loaded by its id.

        Raises:
            StoreMismatch: the caller's model has other weights.
            StoreError: the caller passed none, and it cannot be loaded by its id.
        """
        return store_model(layer.store, running_call().model)

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


class _ReadsStore(Protocol[ResultT]):
    """A technique typed by its `analyse`, so that a call has the same result type."""

    def analyse(self, source: Rows, images: Any) -> ResultT: ...


class StoreTechnique(_ReadsStores):
    """Base class of analyses of one layer of a store; a subclass implements `analyse`."""

    base: ClassVar[str] = "store"

    @abstractmethod
    def analyse(self, source: Rows, images: Any) -> Result:
        """Analyse a layer.

        Args:
            source: rows of the layer, or of an array.
            images: query images, anything that `HookedModel.images` takes; None if there are none.
        """

    @final
    def __call__(
        self: _ReadsStore[ResultT],
        source: arguments.Store,
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
            source: a store or its folder, one of its layers, or an array of rows `(N, d)`.
            images: query images, for techniques that take some. Anything that
                `HookedModel.images` takes.
            layer: layer of the store; needed if the store holds several.
            where: only these images of a store: a condition, a mask (N,) or ids; see
                `ImageTable.where`.
            location: where the store's images are now, if they have moved.
            model: the model that the store was mined with, for techniques that take images; by
                default it is loaded by the id in the store.
            seed: seed of random numbers.

        Raises:
            ParameterError: the source is not what the technique reads, or the condition is wrong.
            StoreError: there is no store, or it cannot be read.
            StoreMismatch: `model` is not the one that the store was mined with.
            LayerNotFound: the store has no such layer.
        """
        this = cast(StoreTechnique, self)
        with this._running(seed, model) as named:
            queries = copied(images)
            opened = this._open_source(source)
            name = this._one_layer([opened], _names(layer))
            (found,) = _select_layers(opened, [name])
            rows = Rows(found, where, location=location)
            if model is not None and rows.layer is not None:
                this.model_of(rows.layer)  # refuse another model even if no model is needed
            result = this._checked_result(this.analyse(rows, queries))
        rows.warn_of_lost()
        return cast(ResultT, named.reported(result))


class _ReadsSeveral(Protocol[ResultT]):
    """A technique typed by its `analyse`, so that a call has the same result type."""

    def analyse(self, sources: list[Rows]) -> ResultT: ...


class StoresTechnique(_ReadsStores):
    """Base class of analyses of layers of several stores; a subclass implements `analyse`."""

    base: ClassVar[str] = "stores"
    one_layer: ClassVar[bool] = False
    """Whether the technique reads one layer only, the same in all stores."""

    @abstractmethod
    def analyse(self, sources: list[Rows]) -> Result:
        """Analyse layers.

        Args:
            sources: rows of each layer, store by store, or of each array.
        """

    @final
    def __call__(
        self: _ReadsSeveral[ResultT],
        sources: arguments.Stores,
        *,
        layer: arguments.Layers = None,
        where: arguments.Where = None,
        location: arguments.Locations = None,
        model: HookedModel | None = None,
        seed: int = 0,
    ) -> ResultT:
        """Run the analysis.

        Args:
            sources: a store or its folder, one of its layers, an array of rows `(N, d)`, or a list
                of these.
            layer: name of a layer, or several; by default all layers of each store. Techniques that
                read one layer take by default the only layer that all stores share.
            where: only these images of each store: a condition, a mask (N,) or ids; see
                `ImageTable.where`.
            location: where the stores' images are now, if they have moved; one for each store.
            model: the model that the stores were mined with, for techniques that need it; by
                default it is loaded by the id in the store.
            seed: seed of random numbers.

        Raises:
            ParameterError: a source is not what the technique reads, or the condition is wrong.
            StoreError: there is no store, or it cannot be read.
            StoreMismatch: `model` is not the one that the store was mined with.
            LayerNotFound: a store has no such layer.
        """
        this = cast(StoresTechnique, self)
        with this._running(seed, model) as named:
            listed = isinstance(sources, list | tuple)
            opened = [this._open_source(each) for each in (sources if listed else [sources])]
            names = _names(layer)
            if this.one_layer:
                names = [this._one_layer(opened, names)]
            places = _locations(location, len(opened)) if listed else [location]
            rows = [
                Rows(found, where, location=place)
                for each, place in zip(opened, places, strict=True)
                for found in _select_layers(each, names)
            ]
            result = this._checked_result(this.analyse(rows))
        for each in rows:
            each.warn_of_lost()
        return cast(ResultT, named.reported(result))


def _names(layer: str | Sequence[str] | None) -> list[str] | None:
    """Return the names of layers, each once; None if none is given."""
    if layer is None:
        return None
    return list(dict.fromkeys([layer] if isinstance(layer, str) else layer))


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
