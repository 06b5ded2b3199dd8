"""`Metric` is the base class of metrics: fields are parameters, and one method measures a map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from timmscope.models import HookedModel
from timmscope.objectives import Objective
from timmscope_registry import ParameterError


@dataclass(frozen=True, kw_only=True)
class Case:
    """One map to measure, and everything that a metric may need for it.

    Attributes:
        model: the model that was explained.
        image: `(3, H, W)` in [0, 1].
        objective: the objective that was explained, bound to this one image.
        heat: `(H, W)`, the map at image size.
        raw: `(h, w)`, the map at the size at which it was computed.
        explain: runs the same technique on the same image with another model; returns `(h, w)`.
        inside: `(H, W)` bool, the pixels inside the image's boxes; None without boxes.
        seed: seed of random numbers that all images share.
    """

    model: HookedModel
    image: Tensor
    objective: Objective
    heat: Tensor
    raw: Tensor
    explain: Callable[[HookedModel], Tensor]
    inside: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True)
class Measurement:
    """A metric's value for one map, and the curve that it is computed from, if any."""

    value: float
    curve: tuple[float, ...] = ()


class Metric(BaseModel, ABC):
    """Base of metrics. Fields are parameters; `measure` evaluates one map.

    Raises:
        ParameterError: a parameter is unknown or has an impossible value.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )

    name: ClassVar[str]
    """The name that users type."""
    better: ClassVar[Literal["higher", "lower"]]
    """Whether higher or lower values mean a better map."""
    x_label: ClassVar[str] = ""
    """The quantity on the curve's x axis."""
    y_label: ClassVar[str] = ""
    """The quantity on the curve's y axis."""

    if not TYPE_CHECKING:  # so that type checkers use the signature of the fields

        def __init__(self, **parameters: Any) -> None:
            try:
                super().__init__(**parameters)
            except ValidationError as error:
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"])
                raise ParameterError(
                    f"parameter {name!r} of {type(self).name} is {first.get('input')!r}: "
                    f"{first['msg']}",
                    parameter=name,
                ) from None

    @abstractmethod
    def measure(self, case: Case) -> Measurement | None:
        """Measure one map; return None if the metric does not apply to the image."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """Return the x values of the curve, for a model and the number of pixels of its maps."""
        return ()
