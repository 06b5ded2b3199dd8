"""`BoundedTechnique` owns the norm and the radius of attacks, and checks the changes they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from timmscope.number_list import number
from timmscope.parameters import technique_error
from timmscope.techniques.balls import NORM_NAMES, RADII, Ball, Norm
from timmscope.techniques.base import Technique


class BoundedTechnique(Technique):
    """What attacks share: a change whose norm is at most `epsilon`.

    A subclass declares the norms that it can keep, as in `norm: Literal["linf"] = "linf"`.
    """

    radii: ClassVar[Mapping[Norm, float]] = RADII
    """Default of `epsilon` by norm: L∞ at any size, the others at 224×224."""

    norm: Norm = "linf"
    """Norm of the change: `linf`, its largest value, `l2`, its Euclidean length, `l1`, the sum of
    its magnitudes, or `l0`, the number of changed pixels."""
    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Radius in pixel units [0, 1]; by default 8/255 for linf, at 224×224 3.0 for l2, 60 for l1 and
    150 pixels for l0."""

    @field_validator("epsilon", mode="before", check_fields=False)
    @classmethod
    def _as_number(cls, value: Any) -> Any:
        """Read `8/255`."""
        return number(value) if isinstance(value, str) and "/" in value else value

    @model_validator(mode="after")
    def _known_norm(self) -> Self:
        if self.norm not in NORM_NAMES:
            did = f"has the norm {self.norm!r}"
            raise technique_error(self, did, expected=f"one of {', '.join(NORM_NAMES)}")
        return self

    @model_validator(mode="after")
    def _pixel_units(self) -> Self:
        if self.norm == "linf" and self.epsilon is not None and self.epsilon > 1:
            raise ValueError(
                f"epsilon is {self.epsilon:g}, but pixel values are in [0, 1]: "
                f"{self.epsilon:g}/255 is {self.epsilon / 255:.4g}"
            )
        return self

    def ball(self, images: Tensor) -> Ball:
        """Return the ball of changes that are allowed for images `(B, C, H, W)`."""
        return Ball.of(self.norm, self.epsilon, images, self.radii)

    def _require_inside(self, change: Tensor, what: str) -> None:
        """Refuse a change `(B, C, H, W)` outside the ball; `Ball.holds` says what is tolerated.

        Raises:
            TechniqueError: it is outside.
        """
        ball = self.ball(change)
        outside = (~ball.holds(change)).nonzero().flatten()
        if len(outside):
            size = float(ball.size(change)[outside[0]])
            raise technique_error(
                self,
                f"returned {what} of {NORM_NAMES[ball.norm]} norm {size:.6g}",
                expected=f"at most epsilon, {ball.epsilon:.6g}",
            )
