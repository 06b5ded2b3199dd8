"""Makes docs/images/robustness.webp.

`make gallery` runs `python docs/_robustness.py`, which takes two minutes; the result is seeded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _samples import keep
from tests.digits.images import write_digits
from tests.digits.load import digits_network

from timmscope import robustness


def main() -> None:
    """Judge the standard digits network, alone and behind a defence."""
    with tempfile.TemporaryDirectory() as folder:
        _, digits = write_digits(Path(folder), trained=1, held_out=24)
        model = digits_network("standard")
        model.id = "digits:standard"  # not a path of this machine
        result = robustness(
            model,
            digits,
            ["fgsm", "pgd steps=20", "fmn norm=linf"],
            defences=["bit-depth bits=2"],
            epsilons=[0.02, 0.05, 0.1],
            checks=True,
        )
    print("robustness", keep(result, Path(__file__).parent / "images" / "robustness.webp"), "KB")


if __name__ == "__main__":
    main()
