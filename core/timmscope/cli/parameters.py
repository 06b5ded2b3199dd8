"""What several commands take: one name, one flag and one sentence of help for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Model = Annotated[
    str, Parameter(help="Model, as in timm:resnet50, pip:efficientnet-lite0 or random:resnet18.")
]
ImageFile = Annotated[Path, Parameter(help="Image files.")]
DataSet = Annotated[
    str, Parameter(help="A folder, a text file of paths, an .npz or HDF5 file, a webdataset .tar.")
]
Target = Annotated[
    str,
    Parameter(
        name=["--target", "-t"],
        help="What to explain: tiger cat, class:282, a unit blocks.4[17], or top, the model's own "
        "prediction for each image.",
    ),
]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
"""Where to write; each command says what happens without it."""
Repeated = Annotated[tuple[str, ...], Parameter(show_default=False)]
Layers = Annotated[tuple[str, ...], Parameter(name=["--layer", "-l"], show_default=False)]
Count = Annotated[int, Parameter(name=["--count", "-k"])]
Seed = Annotated[int, Parameter(help="Of random numbers.")]
BatchSize = Annotated[int | None, Parameter(help="Images a pass; by default what fits memory.")]
Device = Annotated[
    str | None, Parameter(help="Where to run the model, as in cpu or cuda:0; by default the CPU.")
]

StorePath = Annotated[Path, Parameter(help="Store that timmscope mine made.")]
Where = Annotated[
    str | None,
    Parameter(help="Only images that meet a condition, as in \"label == 'dog' and width > 300\"."),
]
Metadata = Annotated[
    Path | None,
    Parameter(help="CSV file whose columns --where may name; joined by path, name or id."),
]
Moved = Annotated[
    str | None, Parameter(help="Where the store's images are now, if they have moved since.")
]

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""A switch that is off unless given."""
Json = Annotated[Flag, Parameter(help="Print JSON.")]
Record = Annotated[Flag, Parameter(help="Print what was written to result.json.")]
