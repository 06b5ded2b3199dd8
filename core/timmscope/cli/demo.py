"""``timmscope demo`` runs every kind of technique on photographs and writes an HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import output
from timmscope.cli.text import plain_help


@plain_help
def demo(
    *,
    images: Path | None = None,
    output_dir: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo"),
) -> None:
    """Mine about 300 photographs and write a report of every kind of technique.

    Parameters
    ----------
    images
        A folder of your own images; by default the photographs of scikit-image and scikit-learn.
    output_dir
        Where to write; a second run reuses the store in it.
    """
    from timmscope.demo import run_demo

    report = run_demo(output_dir, images)
    output.say(f"report: {report}")
