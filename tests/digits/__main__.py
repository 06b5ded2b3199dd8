"""Trains the digits networks that are committed as test data: `make peers`.

`python -m tests.digits [NAME …]` replaces the folders below `tests/digits/networks`; without names
all of them. On one machine and with one thread, the same versions give the same bytes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.digits.images import write_digits
from tests.digits.load import NETWORKS, register

from timmscope import Training, load_model, technique
from timmscope.models.trained import CARD, WEIGHTS

EPSILON = 0.1
LICENCE = "UCI optical recognition of handwritten digits, CC BY 4.0, from scikit-learn"
COMMON: dict[str, Any] = {"epsilon": EPSILON, "learning_rate": 2e-3, "epochs": 40}
PARAMETERS: dict[str, dict[str, Any]] = {
    "standard": {"method": "standard"},
    "fast": {"method": "fast"},
    "pgd": {"method": "pgd", "steps": 7},
    "trades": {"method": "trades", "steps": 10, "epochs": 20},
    "ibp": {"epochs": 60},
}


def train(name: str, folder: Path, **other: Any) -> Training:
    """Train one of the networks into a folder.

    Args:
        name: one of `PARAMETERS`.
        folder: an empty folder for the training, in which its images are written too.
        other: parameters that differ.
    """
    register()
    trained, held_out = write_digits(folder / "images")
    chosen: Any = technique("ibp-training" if name == "ibp" else "adversarial-training")(
        **COMMON | PARAMETERS[name] | other
    )
    result: Training = chosen(
        load_model("digits:cnn?seed=0"), trained, held_out=held_out, output=folder / name,
        licence=LICENCE,
    )  # fmt: skip
    return result


def main(names: list[str]) -> None:
    """Train networks and put them into the tests' data."""
    for name in names or PARAMETERS:
        with tempfile.TemporaryDirectory() as folder:
            result = train(name, Path(folder))
            (NETWORKS / name).mkdir(parents=True, exist_ok=True)
            for file in (WEIGHTS, CARD):
                shutil.copyfile(Path(folder) / name / file, NETWORKS / name / file)
            figures = {key: round(value, 4) for key, value in result.held_out.items()}
            print(name, figures, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
