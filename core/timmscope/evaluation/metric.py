"""`Metric`: one way of judging a map, as parameters plus one method."""

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
    """One map to judge, and all that a metric may ask about it.

    Attributes:
        model: the model explained.
        image: `(3, H, W)` in [0, 1].
        objective: what was explained, bound, for this one image.
        heat: `(H, W)`, the map at image size.
        raw: `(h, w)`, the map as computed.
        explain: the same technique on the same image with another model: `(h, w)` as computed.
        inside: `(H, W)` bool, the pixels inside the image's boxes; None without boxes.
        seed: of random numbers that all images share.
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
    """What a metric found: its value, and the curve behind it, if any."""

    value: float
    curve: tuple[float, ...] = ()


class Metric(BaseModel, ABC):
    """Base of metrics. Fields are parameters; `measure` judges one map."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    """What users type."""
    better: ClassVar[Literal["higher", "lower"]]
    """Which values speak for a map."""
    x_label: ClassVar[str] = ""
    """What the curve runs over."""
    y_label: ClassVar[str] = ""
    """What the curve shows."""

    if not TYPE_CHECKING:  # the checker sees the fields' own signature instead

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
        """Judge one map; None where the image says nothing about it."""

    def axis(self, model: HookedModel, pixels: int) -> tuple[float, ...]:
        """Where each value of the curve lies, for maps of that many pixels of that model."""
        return ()
