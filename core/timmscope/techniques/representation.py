"""Representation: what a network has learned and holds, over a whole store or its weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from timmscope.models import HookedModel
from timmscope.techniques.base import Technique
from timmscope.techniques.result import Result
from timmscope.techniques.session import session
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Table(Result):
    """Plain rows, for analyses whose outcome is a table.

    Attributes:
        rows: dictionaries with the same keys.
    """

    rows: list[dict[str, Any]]

    def figure(self) -> Figure:
        """The rows as a table."""
        from timmscope.figures import table_figure

        return table_figure(self.rows)

    def summary(self) -> list[dict[str, Any]]:
        """The rows."""
        return self.rows


class RepresentationTechnique(Technique):
    """Base of analyses; a subclass writes `analyse` and says in `reads` what it looks at."""

    family: ClassVar[str] = "representation"
    reads: ClassVar[str] = "store"
    """`store`: a layer of a store (or an array of rows); `model`: the model itself."""

    @abstractmethod
    def analyse(self, source: Any, images: Any) -> Result:
        """Analyse a `StoreLayer`, an array `(N, d)` or a `HookedModel`, as `reads` says.

        Args:
            source: what to look at.
            images: query images `(Q, 3, H, W)` or paths, for techniques that take some; else None.
        """

    @final
    def __call__(
        self, source: Any, images: Any = None, *, layer: str | None = None, seed: int = 0
    ) -> Result:
        """Run the analysis.

        Args:
            source: a store, one of its layers, an array of rows `(N, d)`, or a model.
            images: query images, for techniques that take some.
            layer: which layer of a store; needed when it holds several.
            seed: of techniques that draw random numbers.

        Raises:
            ParameterError: the source is not what the technique reads.
        """
        if (self.reads == "model") != isinstance(source, HookedModel):
            expected = "a model" if self.reads == "model" else "a store, its layer or an array"
            raise ParameterError(
                f"{self.title()} reads {expected}, not {type(source).__name__}", parameter="source"
            )
        if hasattr(source, "layer") and hasattr(source, "layers"):
            source = _layer_of(source, layer)
        with session(seed):
            return self.analyse(source, images)


def _layer_of(store: Any, layer: str | None) -> Any:
    names = list(store.layers)
    if layer is None and len(names) != 1:
        raise ParameterError(
            f"the store holds {len(names)} layers: say which, one of {', '.join(names)}",
            parameter="layer",
        )
    return store.layer(layer if layer is not None else names[0])
