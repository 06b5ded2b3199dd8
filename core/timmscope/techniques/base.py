"""`Technique` is the base class of all techniques: a frozen set of parameters with help texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from timmscope.models import HookedModel
from timmscope.parameters import Parameters
from timmscope.progress import track
from timmscope.results.result import Provenance, to_json
from timmscope_registry import ModelError

if TYPE_CHECKING:
    from timmscope.store.manifest import ModelRecord

LayerName = Annotated[str, Field(json_schema_extra={"kind": "layer"}, min_length=1)]
"""Name of a layer; the command line completes it and checks it against the model."""

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

    def _provenance(
        self, model: HookedModel | ModelRecord | None, seed: int, **facts: Any
    ) -> Provenance:
        return Provenance.now(
            technique=self.technique_id(),
            family=self.family,
            parameters=self._recorded(),
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
