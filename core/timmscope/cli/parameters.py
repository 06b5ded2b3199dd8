"""Parameters that several commands share, each with its flag and its help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token, convert

from timmscope.number_list import number


def whole(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert to whole numbers; cyclopts itself rounds 1.5 to 2.

    Raises:
        ValueError: a number is not whole.
    """
    for token in tokens:
        if "." in token.value and not float(token.value).is_integer():
            raise ValueError(f"{token.value} is not a whole number")
    return convert(kind, tokens)


def real(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert to numbers, also `8/255`.

    Raises:
        ValueError: it is no number.
    """
    read = [
        token.evolve(value=repr(number(token.value))) if "/" in token.value else token
        for token in tokens
    ]
    return convert(kind, read)


Whole = Annotated[int, Parameter(converter=whole)]
OptionalWhole = Annotated[int | None, Parameter(converter=whole)]
Text = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
"""Text that may begin with a minus, as an objective may."""
Model = Annotated[
    str, Parameter(help="Model, as in timm:resnet50, pip:efficientnet-lite0 or random:resnet18.")
]
ImageFile = Annotated[Path, Parameter(help="Image files.")]
DataSet = Annotated[
    str,
    Parameter(help="A folder, a text file of paths, an .npz or HDF5 file, or a WebDataset .tar."),
]
Target = Annotated[
    str,
    Parameter(
        name=["--target", "-t"],
        allow_leading_hyphen=True,
        help="What to explain: a class (tiger cat, class:282), a unit (blocks.4[17]), or top, the "
        "model's prediction for each image.",
    ),
]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
"""Where to write; each command documents its default."""
Repeated = Annotated[tuple[str, ...], Parameter(show_default=False)]
Layers = Annotated[tuple[str, ...], Parameter(name=["--layer", "-l"], show_default=False)]
Count = Annotated[Whole, Parameter(name=["--count", "-k"])]
Seed = Annotated[Whole, Parameter(help="Seed of all random numbers.")]
BatchSize = Annotated[
    OptionalWhole, Parameter(help="Images per forward pass; by default as many as fit.")
]
Device = Annotated[
    str | None, Parameter(help="Where to run the model, as in cpu or cuda:0; by default the CPU.")
]
Defences = Annotated[
    tuple[str, ...],
    Parameter(
        name=["--defence"],
        show_default=False,
        help="Defence before the model, as in jpeg or 'jpeg quality=50'; may be repeated, in the "
        "order in which images meet them.",
    ),
]

_TRUST = "--trust lets one that you have not made open the model and the images that it records."
StorePath = Annotated[Path, Parameter(help=f"Store that timmscope mine wrote. {_TRUST}")]
StorePaths = Annotated[Path, Parameter(help=f"Stores that timmscope mine wrote. {_TRUST}")]
Where = Annotated[
    Text,
    Parameter(help="Only images that meet a condition, as in \"label == 'dog' and width > 300\"."),
]
Metadata = Annotated[
    Path | None,
    Parameter(help="CSV file with more columns for --where; joined by path, name or id."),
]
Moved = Annotated[
    str | None, Parameter(help="Where the store's images are now, if they have been moved.")
]

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""A switch that is off by default."""
Json = Annotated[Flag, Parameter(help="Print JSON.")]
Record = Annotated[Flag, Parameter(help="Print the contents of result.json.")]


def split_names(given: Sequence[str]) -> list[str]:
    """Return the names of a repeated flag, each of which may hold several: ``["a,b", "c"]``."""
    return [name for text in given for name in text.split(",") if name]
