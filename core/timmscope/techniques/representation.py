"""Representation: what a network has learned and holds, over a whole store or its weights."""

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
from timmscope.techniques.session import session
from timmscope.techniques.validate_output import checked_pixels, checked_type
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.images import Images
    from timmscope.store import StoreLayer
    from timmscope.store.manifest import ModelRecord

ResultT = TypeVar("ResultT", bound=Result, covariant=True)


class _Analyses(Protocol[ResultT]):
    """A technique by the result of its `analyse`, so that calling it has the same type."""

    def analyse(self, source: Any, images: Any) -> ResultT: ...


@dataclass(frozen=True)
class _Call:
    """The running call: what `analyse` is not handed but may ask for, and what was given."""

    seed: int = 0
    model: HookedModel | None = None
    parameters: Mapping[str, Any] | None = None


_call: ContextVar[_Call] = ContextVar("timmscope_representation_call", default=_Call())  # noqa: B039


class RepresentationTechnique(Technique):
    """Base of analyses; a subclass writes `analyse` and says in `reads` what it looks at."""

    family: ClassVar[str] = "representation"
    reads: ClassVar[str] = "store"
    """`store`: one layer of a store, or an array of rows; `stores`: layers of one or several
    stores, or arrays; `model`: the model itself."""
    one_layer: ClassVar[bool] = False
    """Whether a technique that reads several stores looks at one layer, the same in all of them."""

    @abstractmethod
    def analyse(self, source: Any, images: Any) -> Result:
        """Analyse `Rows`, a list of `Rows` or a `HookedModel`, as `reads` says.

        Args:
            source: what to look at.
            images: query images, anything that `HookedModel.images` takes, for techniques that
                look for some; else None.
        """

    @final
    def __call__(
        self: _Analyses[ResultT],
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
            images: images to ask about, for techniques that take some. Anything that
                `HookedModel.images` takes.
            layer: which layer of a store; needed when it holds several. Techniques that read
                several stores take several names, and by default all layers of each store; those
                that look at one layer, the only one that all stores hold.
            where: only these images of a store: a condition, a mask (N,) or ids; see
                `ImageTable.where`.
            location: where the store's images are now, if they have moved since; once for each of
                several stores.
            model: the model that the store was mined with, for techniques that take images; by
                default it is loaded by the id that the store remembers.
            seed: of random numbers.

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
            with session(seed), restore_state(this, used, weights):
                given = images.clone() if isinstance(images, Tensor) else images
                read = this._source(source, layer, where, location)
                result = this._checked(this.analyse(read, given))
            for rows in read if isinstance(read, list) else [read]:
                if isinstance(rows, Rows):
                    rows.warn_of_lost()
            return cast(ResultT, result)
        finally:
            _call.reset(token)

    def _checked(self, outcome: object) -> Result:
        result = checked_type(self, outcome, Result)  # type: ignore[type-abstract]
        checked_type(self, result.provenance, Provenance)
        if isinstance(result, Table | Sheet):
            for row in checked_type(self, result.rows, list):
                if not all(isinstance(name, str) for name in checked_type(self, row, dict)):
                    raise technique_error(self, f"returned columns {list(row)}", expected="names")
        if isinstance(result, Sheet) and len(result.images):
            checked_pixels(self, result.images)
            if len(result.titles) != len(result.images):
                did = f"returned {len(result.titles)} titles for {len(result.images)} pictures"
                raise technique_error(self, did, expected="one each")
        return result

    def model_of(self, layer: StoreLayer) -> HookedModel:
        """The model that a store was mined with: the caller's, else loaded by its id.

        Raises:
            StoreMismatch: the caller's model has other weights.
            StoreError: the caller gave none, and it cannot be loaded by its id.
        """
        return store_model(layer.store, _call.get().model)

    @property
    def seed(self) -> int:
        """Seed of the running call, for whatever is drawn at random."""
        return _call.get().seed

    def provenance(self, source: HookedModel | Rows | None = None, **facts: Any) -> Provenance:
        """Return what is needed to make a result of the running call again.

        Args:
            source: what was analysed. Of the rows of a store, its model, its layer and the chosen
                images are recorded.
            facts: what else decides the result, such as names of the query images.
        """
        model: HookedModel | ModelRecord | None
        if isinstance(source, Rows):
            model = None if source.layer is None else source.layer.store.manifest.model
            facts = {**source.facts, **facts}
        else:
            model = source
        made = self._provenance(model, _call.get().seed, **facts)
        given = _call.get().parameters
        return made if given is None else replace(made, parameters=dict(given))

    def layer_of(self, rows: Rows) -> StoreLayer:
        """The layer of a store that rows are of.

        Raises:
            ParameterError: they are an array's, which has no images and no units' statistics.
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
        """What `analyse` is handed: a model, rows or a list of rows."""
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
        sources = [self._opened(each) for each in (source if listed else [source])]
        if not several or self.one_layer:
            names = [self._one_layer(sources, names)]
        places = _one_each(location, len(sources)) if listed else [location]
        rows = [
            Rows(found, where, location=place)
            for each, place in zip(sources, places, strict=True)
            for found in _layers(each, names)
        ]
        if several:
            return rows
        if _call.get().model is not None and rows[0].layer is not None:
            self.model_of(rows[0].layer)  # refuses another model, whether or not one is needed
        return rows[0]

    def _opened(self, source: Any) -> Any:
        """A store, one of its layers or an array."""
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
        """The layer to look at in all stores: the one that is named, else the only one there is."""
        from timmscope.store import Store

        stores = [source for source in sources if isinstance(source, Store)]
        if names is not None and len(names) != 1:
            raise ParameterError(
                f"{self.title()} looks at one layer, {len(names)} are named: {', '.join(names)}; "
                "run it once for each",
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
            f"{hold} {len(common)} layers: say which, one of {', '.join(common)}",
            parameter="layer",
        )


def _layers(source: Any, names: list[str] | None) -> list[Any]:
    """Layers of a store, by default all; or the source itself, one layer or an array."""
    from timmscope.store import Store

    if isinstance(source, Store):
        return [source.layer(name) for name in names or source.layers]
    return [source]


def _one_each(location: Any, stores: int) -> list[Any]:
    """Where the images of each store are now."""
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
