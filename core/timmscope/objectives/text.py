"""The text form of objectives, which command lines, file names and result files use.

============================  =====================================================
``top``                       the model's own prediction
``class:281``, ``281``        a class by index
``class:tiger cat``           a class by name; ``class:3|7|7`` is one per image
``class:road@12,40``          a class at row 12, column 40 of an output (B, K, H, W)
``blocks.4[17]``              channel 17 of a layer
``blocks.4[17,3,5]``          its neuron at row 3, column 5; or ``[17,centre]``
``out[1][3]``                 channel 3 of one of several tensors that a module returns
``blocks.4``                  energy of the layer
``blocks.4[3|7|10-12]``       several channels, an image each
``blocks.4@[0.1, 0.3]``       a direction; ``@vector.npy`` on the command line
``cosine(blocks.4@[0.1])``    cosine with a direction; ``cosine(…, 2)`` is a weighted dot product
``p(class:281)``              softmax probability of a class; ``logp(class:281)`` its logarithm
``match(blocks.4@cat.jpg)``   nearness of a layer's activation to that of an image, or to a vector
``match(a|b@cat.jpg)``        the same of several layers, an image each
``guide(blocks.4@cat.jpg)``   what each position resembles most in another image
``0.5*blocks.4[17] - top``    sums and multiples, with spaces around + and -
``each(top; blocks.4[17])``   an objective for each image
``interpolate(A; B; 5)``      five images from objective A to objective B
``class:"Apple - scab"``      a name in quotes, in which no sign has a meaning
============================  =====================================================

Names of classes and layers may hold the signs of this grammar, and only the model knows them. So a
text with signs becomes an `ObjectiveText`, which is read when it is bound to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from timmscope.objectives.algebra import Objective
from timmscope.objectives.class_objectives import LayerOrClass, class_logit
from timmscope.objectives.parser import Parser, RowReader
from timmscope_registry import ObjectiveError

if TYPE_CHECKING:
    from .model import ModelLike


def parse_objective(text: str, *, files: bool = False, rows: RowReader | None = None) -> Objective:
    """Parse the text form of an objective; names are resolved when it is bound to a model.

    Args:
        text: one of the forms above.
        files: whether ``LAYER@FILE`` may open a file; only for what a user types, because the text
            of a result or a store is from whoever made it.
        rows: reads the rows of ``match(LAYER@STORE[ID])`` if the text may open files.

    Raises:
        ObjectiveError: the text has none of the forms above.
    """
    if not text.strip():
        raise ObjectiveError("the objective is empty: try 'top', 'class:NAME' or 'LAYER[UNIT]'")
    parser = Parser(text, files, rows)
    error = None
    try:
        usual = parser.usual()
    except ObjectiveError as caught:
        if not parser.may_be_a_name:
            raise
        usual, error = LayerOrClass(text.strip()), caught
    return ObjectiveText(text, usual, error, files, rows) if parser.has_signs else usual


@dataclass(frozen=True)
class ObjectiveText(Objective):
    """A text with signs, which may be parts of names; it equals its usual reading.

    Attributes:
        text: the text.
        usual: the reading in which no name holds a sign.
        error: why there is no such reading; None if there is.
        files: whether the text may open files.
        rows_of_store: reads rows of a store.
    """

    text: str
    usual: Objective
    error: ObjectiveError | None = field(default=None, compare=False, repr=False)
    files: bool = field(default=False, compare=False, repr=False)
    rows_of_store: RowReader | None = field(default=None, compare=False, repr=False)

    def __eq__(self, other: object) -> bool:
        mine = self.usual
        return mine == (other.usual if isinstance(other, ObjectiveText) else other)

    def __hash__(self) -> int:
        return hash(self.usual)

    def resolve(self, model: ModelLike) -> Objective:
        """Return the one reading whose names the model has.

        `class:` followed by the name of a class always means that class. Without any reading that
        fits, it is the usual one, whose error then says what is missing.

        Raises:
            ObjectiveError: several readings fit.
        """
        found = Parser(self.text, self.files, self.rows_of_store).fitting(model)
        if len(found) > 1:
            one, other, *_ = found
            raise ObjectiveError(
                f"{self.text!r} has several meanings for {model.id}, {one} and {other}: put names "
                "in quotes"
            )
        if found:
            return found[0]
        if self.error is not None:
            raise self.error
        return self.usual

    def bind(self, model: ModelLike, images: Tensor | None) -> Objective:
        """Bind the reading that fits the model."""
        return self.resolve(model).bind(model, images)

    @property
    def points(self) -> tuple[str, ...]:
        """The hook points of the usual reading."""
        return self.usual.points

    def __call__(self, recording: Mapping[str, Tensor]) -> Tensor:
        """Raise `ObjectiveError`: only the bound objective has a value."""
        raise ObjectiveError(f"{self.text!r} must be bound to a model before it has a value")

    @property
    def num_targets(self) -> int | None:
        """The number of targets of the usual reading."""
        return self.usual.num_targets

    def __str__(self) -> str:
        return self.text


def as_objective(value: Objective | str | int) -> Objective:
    """Convert a text form or a class index to an objective; an objective is returned unchanged.

    Raises:
        ObjectiveError: the value is none of these, or the text cannot be parsed.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, int | np.integer):
        return class_logit(int(value))
    if not isinstance(value, str):
        raise ObjectiveError(
            f"{value!r} is not an objective: expected one, its text form or a class index "
            "(use class_logit([...]) for one class per image)"
        )
    return parse_objective(value)
