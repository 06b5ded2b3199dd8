"""``timmscope evaluate``: which explanations to believe, over a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help

if TYPE_CHECKING:
    from timmscope.evaluation import Evaluation

SHOWN = 5
"""Refused maps and unreadable images named one by one; all are in the records."""


@plain_help
def evaluate(
    model: parameters.Model,
    images: parameters.DataSet,
    /,
    *,
    technique: parameters.Repeated,
    metric: parameters.Repeated = (),
    target: parameters.Target = "top",
    boxes: Path | None = None,
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    batch_size: parameters.BatchSize = None,
    device: parameters.Device = None,
    json: parameters.Json = False,
) -> None:
    """Judge explanations of many images: techniques side by side, by several metrics.

    An evaluation that was interrupted goes on where it stopped when the same command is given
    again.

    Parameters
    ----------
    technique
        Attribution to judge, as in ``grad-cam``, with parameters behind it if need be, as in
        ``"occlusion patch_px=56 baseline=blur"``; may be repeated.
    metric
        ``insertion``, ``deletion``, ``pointing-game``, ``sensitivity-n`` or ``randomisation``; may
        be repeated. By default all, the pointing game where there are boxes.
    boxes
        CSV file with the columns path, left, upper, right and lower, in pixels of the image file:
        the objects, for the pointing game.
    output_dir
        Where to write; by default ``timmscope-out/evaluate-IMAGES``.
    """
    from timmscope.evaluation import evaluate as run
    from timmscope.models import load_model

    folder = output_dir or Path("timmscope-out") / f"evaluate-{output.slug(Path(images).stem)}"
    try:
        result = run(
            load_model(model, device=device),
            images,
            list(technique),
            objective=target,
            metrics=list(metric) or None,
            boxes=boxes,
            out=folder,
            seed=seed,
            batch_size=batch_size,
        )
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"(the same command goes on where it stopped; so far is in {folder})")
        raise
    if json:
        output.print_json(
            {
                "output": str(folder),
                "images": len(result.images),
                "techniques": result.summary(),
                "refused": result.refused,
                "unreadable": result.unreadable,
            }
        )
        return
    _print(result)
    output.say(
        f"\nmeans over images with their 95 % confidence intervals; figure.png, records.jsonl (a "
        f"line a map) and result.json are in {folder}"
    )


def _print(result: Evaluation) -> None:
    from timmscope.drawing.style import number

    arrows = {"higher": "↑", "lower": "↓"}
    heads = [f"{m} {arrows[b]}" for m, b in zip(result.metrics, result.better, strict=True)]
    rows = []
    for row, facts in enumerate(result.summary()):
        cells: list[object] = [facts["technique"], facts["maps"]]
        for column in range(len(result.metrics)):
            mean, low, high = (
                float(values[row, column]) for values in (result.mean, result.low, result.high)
            )
            if mean != mean:
                cells.append("–")
            elif low != low:
                cells.append(number(mean))
            else:
                cells.append(f"{number(mean)} [{number(low)}, {number(high)}]")
        rows.append(cells)
    output.table(("technique", "maps", *heads), rows, right=("maps",), keep=("technique",))
    for things, what in (
        ([f"{r['technique']} of {r['image']}: {r['reason']}" for r in result.refused], "no map"),
        ([f"{r['image']}: {r['reason']}" for r in result.unreadable], "unreadable"),
    ):
        if things:
            output.say()
            for text in things[:SHOWN]:
                output.say(f"{what}: {text}")
            if len(things) > SHOWN:
                output.say(f"… and {len(things) - SHOWN} more")
