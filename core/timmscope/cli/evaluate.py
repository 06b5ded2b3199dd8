"""``timmscope evaluate`` measures how faithful attribution techniques are on many images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope.cli.typed_objective import typed_objective

if TYPE_CHECKING:
    from timmscope.evaluation import Evaluation

SHOWN = 5
"""Refused maps and unreadable images that are printed; the records hold all."""


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
    defence: parameters.Defences = (),
    json: parameters.Json = False,
) -> None:
    """Compare attribution techniques on many images by several metrics.

    After an interruption, run the same command again to resume.

    Parameters
    ----------
    technique
        Attribution technique, as in ``grad-cam``, optionally with parameters, as in
        ``"occlusion patch_px=56 baseline=blur"``; may be repeated.
    metric
        ``insertion``, ``deletion``, ``pointing-game``, ``sensitivity-n`` or ``randomisation``; may
        be repeated. By default all; the pointing game only with --boxes.
    boxes
        CSV file of the objects' boxes for the pointing game, with the columns path, left, upper,
        right and lower, in pixels of the image file.
    output_dir
        Where to write; by default ``timmscope-out/evaluate-IMAGES``.
    """
    from timmscope.evaluation import evaluate as run
    from timmscope.models import load_model

    folder = output_dir or Path("timmscope-out") / f"evaluate-{output.slug(Path(images).stem)}"
    try:
        result = run(
            load_model(model, device=device, defences=defence),
            images,
            list(technique),
            objective=typed_objective(target),
            metrics=list(metric) or None,
            boxes=boxes,
            out=folder,
            seed=seed,
            batch_size=batch_size,
        )
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"(run the same command again to resume; results so far are in {folder})")
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
        "\nmeans over images with 95 % confidence intervals; figure.png, records.jsonl (one line "
        f"per map) and result.json are in {folder}"
    )


def _print(result: Evaluation) -> None:
    from timmscope.drawing.style import format_number

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
                cells.append(format_number(mean))
            else:
                cells.append(f"{format_number(mean)} [{format_number(low)}, {format_number(high)}]")
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
