"""Base classes of analyses: what those of models and of stores share, and those of models.

The family of analyses is called representation, because they study how a model represents images.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast, final

from torch import Tensor

from timmscope.models import HookedModel
from timmscope.parameters import technique_error
from timmscope.results import Provenance, Result, Sheet, Table
from timmscope.techniques import arguments
from timmscope.techniques.base import Technique
from timmscope.techniques.notes import Notes
from timmscope.techniques.opening import Openings, opening
from timmscope.techniques.restore_state import restore_state
from timmscope.techniques.rows import Rows
from timmscope.techniques.session import own_numbers, session
from timmscope.techniques.validate_output import checked_pixels, checked_type
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.store.manifest import ModelRecord

ResultT = TypeVar("ResultT", bound=Result, covariant=True)


@dataclass(frozen=True)
class Call:
    """Values of the running call that `analyse` does not get as arguments."""

    seed: int = 0
    model: HookedModel | None = None
    parameters: Mapping[str, Any] | None = None
    notes: Notes | None = None


_call: ContextVar[Call] = ContextVar("timmscope_analysis_call", default=Call())  # noqa: B039


class AnalysisTechnique(Technique):
    """What all analyses share; subclass `StoreTechnique`, `StoresTechnique` or `ModelTechnique`."""

    family: ClassVar[str] = "representation"

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

    @contextmanager
    def _running(self, seed: int, model: HookedModel | None) -> Iterator[Openings]:
        """Open a call, after which the caller's model is as it was before."""
        with opening([self], model, seed) as opened:
            notes = Notes(self)
            token = _call.set(Call(seed, model, self._recorded_in_call(), notes))
            weights = None if model is None else model.weights_sha256
            try:
                with (
                    notes.of(),
                    session(seed),
                    own_numbers(model, seed),
                    restore_state(self, model, weights),
                ):
                    yield opened
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
        notes = _call.get().notes
        noted = {} if notes is None else notes.joined()
        return replace(result, notes=noted) if noted else result


def running_call() -> Call:
    """Return the values of the running call."""
    return _call.get()


def copied(images: Any) -> Any:
    """Return a tensor's copy, so that `analyse` cannot change the caller's; else the object."""
    return images.clone() if isinstance(images, Tensor) else images


class _ReadsModel(Protocol[ResultT]):
    """A technique typed by its `analyse`, so that a call has the same result type."""

    def analyse(self, model: HookedModel, images: Any) -> ResultT: ...


class ModelTechnique(AnalysisTechnique):
    """Base class of analyses of a model; a subclass implements `analyse`."""

    base: ClassVar[str] = "model"

    @abstractmethod
    def analyse(self, model: HookedModel, images: Any) -> Result:
        """Analyse the model.

        Args:
            model: the model.
            images: images, as `HookedModel.images` takes them; None if there are none.
        """

    @final
    def __call__(
        self: _ReadsModel[ResultT],
        model: arguments.Model,
        images: arguments.OptionalImages = None,
        *,
        seed: int = 0,
    ) -> ResultT:
        """Run the analysis.

        Args:
            model: the model.
            images: images, for techniques that take some. Anything that `HookedModel.images` takes.
            seed: seed of random numbers.

        Raises:
            ParameterError: the source is no model, or the technique takes no images or needs some.
        """
        this = cast(ModelTechnique, self)
        if not isinstance(model, HookedModel):
            raise ParameterError(
                f"{this.title()} reads a model, not {type(model).__name__}: "
                "use load_model(…) or HookedModel(module)",
                parameter="model",
            )
        with this._running(seed, model) as opened:
            result = this._checked_result(this.analyse(model, copied(images)))
        return cast(ResultT, opened.reported(result))
