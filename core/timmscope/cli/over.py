"""``timmscope run TECHNIQUE MODEL --over IMAGES`` works through an image set and can be resumed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.save_result import default_folder
from timmscope.results.result import RECORD
from timmscope.store.run_images import Run
from timmscope.techniques.over.base import PerImageTechnique
from timmscope_registry import ParameterError, TimmscopeError

if TYPE_CHECKING:
    from timmscope.techniques import ImageSetRun, Technique

_SHOWN = 5
"""Unreadable and refused images that are printed; the result has all."""
FLAGS: dict[str, Any] = {
    "over": Annotated[
        str | None,
        Parameter(
            help="Work through a whole image set instead: a folder, a text file of paths, an .npz "
            "or HDF5 file, a .tar, or the output of another --over. Run the same command again to "
            "resume."
        ),
    ],
    "use_labels": Annotated[
        parameters.Flag, Parameter(help="With --over: take --label from the labels of the images.")
    ],
    "workers": Annotated[
        parameters.OptionalWhole,
        Parameter(help="With --over: processes that read images; by default one per CPU, up to 2."),
    ],
}
"""Flags of a command whose technique can work through an image set, with their types."""


def over_flags(technique: type[Technique]) -> list[inspect.Parameter]:
    """Return the flags with which a technique works through an image set; none if it cannot."""
    if not (issubclass(technique, PerImageTechnique) and technique.works_over_sets()):
        return []
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "use_labels" else None,
            annotation=kind,
        )
        for name, kind in FLAGS.items()
        if name != "use_labels" or "labels" in inspect.signature(technique.__call__).parameters
    ]


def require_one_input(given: Mapping[str, Any], name: str) -> None:
    """Refuse single images beside an image set, and flags of image sets without one.

    Raises:
        ParameterError: both are given, or a flag has no effect.
    """
    if given.get("over") is not None:
        if given.get(name):
            raise ParameterError(
                f"--over takes the place of {name}: leave {name} out, or --over", parameter="over"
            )
        return
    for flag in ("use_labels", "workers"):
        if given.get(flag):
            raise ParameterError(
                f"--{flag.replace('_', '-')} is for an image set: give --over IMAGES too",
                parameter=flag,
            )


def run_over(
    technique: PerImageTechnique, given: Mapping[str, Any], values: dict[str, Any]
) -> None:
    """Run a technique over an image set, and print what it has done.

    Args:
        technique: the technique.
        given: the values of the command line.
        values: the arguments of the call, without the images.
    """
    images = given["over"]
    folder = given.get("output_dir") or default_folder(technique.title(), Path(images).stem)
    model = values.pop("model", None)
    extra = {name: given[name] for name in ("use_labels", "workers") if name in given}
    try:
        result = technique.over(model, images, folder, **extra, **values)
    except KeyboardInterrupt as stopped:
        stopped.add_note(_resume_hint(folder))
        raise
    if given.get("json", False):
        output.print_json(json.loads((folder / RECORD).read_text(encoding="utf-8")))
        return
    _print(result, folder)


def _print(result: ImageSetRun, folder: Path) -> None:
    from timmscope.drawing.style import format_number, format_share

    rows = []
    for row, is_share in zip(result.summary(), result.shares, strict=True):
        text = format_share if is_share else format_number
        cells: list[object] = [str(row["fact"]).replace("_", " "), row["images"]]
        for name in ("mean", "median"):
            value, ends = row.get(name), row.get(f"{name} 95%")
            cells.append("" if value is None else text(value))
            known = ends is not None and ends[0] < ends[1]
            cells.append(" to ".join(map(text, ends or ())) if known else "")
        rows.append(cells)
    columns = ("fact", "images", "mean", "95 %", "median", "95 % ")
    output.table(columns, rows, right=columns[1:], keep=("fact",))
    for name, counts in result.texts.items():
        most = sorted(counts.items(), key=lambda each: -each[1])[:3]
        if len(counts) > 1:
            shown = ", ".join(f"{text} {number}" for text, number in most)
            output.say(f"most frequent {name.replace('_', ' ')}: {shown}")
    for what, found in (("unreadable", result.unreadable), ("refused", result.refused)):
        for each in found[:_SHOWN]:
            output.say(f"{what}: {each['image']}: {each['reason']}")
        if len(found) > _SHOWN:
            output.say(f"… and {len(found) - _SHOWN:,} more {what}")
    kept = f"{result.kept}.npy (float32, one row per image), " if result.kept else ""
    output.say(
        f"\n{result.made:,} of {result.count:,} images; {kept}images.csv (one line per image), "
        f"figure.png and {RECORD} are in {folder}"
    )


def _resume_hint(folder: Path) -> str:
    try:
        run = Run.read(folder)
    except TimmscopeError:
        return "before the first chunk: run the same command again to start over"
    return f"with {run.done:,} of {run.count:,} images done: run the same command again to resume"
