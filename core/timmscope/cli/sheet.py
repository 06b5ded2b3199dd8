"""``timmscope sheet`` draws several saved results of one kind side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope_registry import ParameterError


@plain_help
def sheet(
    *results: Annotated[Path, Parameter(negative="")],
    output_file: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    columns: parameters.OptionalWhole = None,
) -> None:
    """Draw several results of one kind in one figure, with what differs as captions.

    Parameters
    ----------
    results
        Folders of results, such as ten explanations of one image.
    output_file
        Figure to write, in the format of its name; by default ``timmscope-out/sheet.png``.
    columns
        Pictures per row; by default nearly a square.
    """
    if not results:
        raise ParameterError("no result given: name at least one folder", parameter="results")
    from timmscope.results import sheet_of_results

    file = output_file or Path("timmscope-out") / "sheet.png"
    output.write_figure(sheet_of_results(results, columns=columns), file)
    output.say(f"wrote {file}")
