"""Draws several results of one kind side by side, as ten explanations of one image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from timmscope_registry import ImageError, ParameterError, TimmscopeError

from .loading import load_result
from .result import Provenance, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_RESULTS = 256
"""Largest number of results in a sheet."""
MOST_IN_A_ROW = 8
"""Largest number of pictures of a result in a sheet; a note says how many it has."""
_FIGURE_IN = 4.5  # width of a whole figure in a sheet, in inches
_FIGURE_DPI = 150
_MOST_LINES = 5  # of a caption
_MOST_LETTERS = 200  # of a line
_ITSELF = ("technique", "model", "objective")  # shown without their names
_BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def sheet_of_results(
    results: Sequence[Result | str | Path], *, columns: int | None = None
) -> Figure:
    """Draw the pictures of several results of one kind in one figure.

    If each result has one picture, they make a grid; otherwise each result has a row. The title
    says what is the same in all results: model, objective, parameters. The captions say what
    differs. Overlays stand for attributions, the images made for syntheses, styles, attacks and
    defences, a universal attack's perturbation, and whole figures for all other results.

    Args:
        results: results, or folders that `save` has written; of a folder, nothing but the result is
            opened.
        columns: pictures per row of a grid; by default nearly a square, at most 8.

    Raises:
        ParameterError: there are no results, more than 256, or results of several kinds.
        TimmscopeError: a folder holds no result, or one whose pictures cannot be drawn.
    """
    from timmscope.drawing import sheet_figure

    if isinstance(results, Result | str | Path):
        results = [results]
    if not 0 < len(results) <= MOST_RESULTS:
        raise ParameterError(
            f"{len(results)} results: a sheet needs 1 to {MOST_RESULTS}", parameter="results"
        )
    if columns is not None and columns < 1:
        raise ParameterError(f"columns is {columns}: expected 1 or more", parameter="columns")
    opened = [each if isinstance(each, Result) else load_result(each) for each in results]
    kinds = dict.fromkeys(type(each).__name__ for each in opened)
    if len(kinds) > 1:
        raise ParameterError(
            f"the results are of {len(kinds)} kinds, {', '.join(kinds)}: a sheet shows one kind; "
            "make a sheet of each",
            parameter="results",
        )
    pictures = [_pictures(each, given) for each, given in zip(opened, results, strict=True)]
    title, captions = _captions([each.provenance for each in opened])
    heading = ", ".join([next(iter(kinds)), *title])
    if all(len(own) == 1 for own in pictures):
        figures = not opened[0].sheet_pictures
        return sheet_figure(
            [own[0] for own in pictures],
            captions,
            columns=columns or (2 if figures else None),
            title=heading,
            cell_in=_FIGURE_IN if figures else None,
        )
    most = max(map(len, pictures))
    return sheet_figure(
        [picture for own in pictures for picture in own[:MOST_IN_A_ROW]],
        row_lengths=[min(len(own), MOST_IN_A_ROW) for own in pictures],
        row_labels=captions,
        title=heading,
        note=f"the first {MOST_IN_A_ROW} of up to {most} pictures" if most > MOST_IN_A_ROW else "",
    )


def _pictures(result: Result, given: Result | str | Path) -> list[NDArray[np.float64]]:
    """Return the pictures that stand for a result, or its whole figure, `(3, H, W)` in [0, 1].

    Raises:
        TimmscopeError: a result of a file, whose arrays may have any shapes, cannot be drawn.
    """
    from timmscope.drawing import to_array

    try:
        if start := result.sheet_pictures:
            found = result.pictures()
            shown = [to_array(each) for name, each in found.items() if name.startswith(start)]
        else:
            shown = [_drawn(result)]
        if not shown or any(0 in each.shape for each in shown):
            raise ValueError("it has no pictures")
    except (*_BROKEN, ImageError) as error:
        if isinstance(given, Result):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TimmscopeError(
            f"the result in {given} cannot be drawn: {reason}; make it again"
        ) from error
    return [each.transpose(2, 0, 1) / 255 for each in shown]


def _drawn(result: Result) -> NDArray[np.uint8]:
    """Return the figure of a result, `(H, W, 3)`."""
    from PIL import Image

    buffer = io.BytesIO()
    result.figure().savefig(buffer, format="png", dpi=_FIGURE_DPI)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _captions(origins: list[Provenance]) -> tuple[list[str], list[str]]:
    """Return what is the same in all results, and a caption of each: what differs.

    Parameters are compared among the results of one technique, because others have others.
    """
    facts = [_facts(each) for each in origins]
    names = dict.fromkeys(name for own in facts for name in own)
    shared = [name for name in names if all(own.get(name) == facts[0].get(name) for own in facts)]
    captions = []
    for origin, own in zip(origins, facts, strict=True):
        parts = [_text(name, value) for name, value in own.items() if name not in shared]
        peers = [each.parameters for each in origins if each.technique == origin.technique]
        parts += [
            _text(name, value)
            for name, value in origin.parameters.items()
            if any(each.get(name) != value for each in peers)
        ]
        captions.append("\n".join(parts[:_MOST_LINES]) or _text("technique", own["technique"]))
    title = [_text(name, facts[0][name]) for name in _ITSELF if name in shared and facts[0][name]]
    return title, captions


def _facts(origin: Provenance) -> dict[str, Any]:
    itself = {"technique": origin.technique.rpartition(":")[2], "model": origin.model}
    return itself | origin.call | {"seed": origin.seed} | itself


def _text(name: str, value: Any) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = shown if name in _ITSELF else f"{name} {shown}"
    return " ".join(text[:_MOST_LETTERS].split())
