"""``timmscope robustness`` judges a model by attacks, alone and behind defences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help

if TYPE_CHECKING:
    from timmscope.evaluation import Robustness

SHOWN = 5
"""Refusals and unreadable images that are printed; the result holds all."""
Others = Annotated[tuple[str, ...], Parameter(name=["--model"], show_default=False)]
Judged = Annotated[tuple[str, ...], Parameter(name=["--defence"], show_default=False)]


@plain_help
def robustness(
    model: parameters.Model,
    images: parameters.DataSet,
    /,
    *,
    attack: parameters.Repeated,
    defence: Judged = (),
    epsilon: parameters.Repeated = (),
    labels: str | None = None,
    other: Others = (),
    checks: parameters.Flag = False,
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    batch_size: parameters.BatchSize = None,
    device: parameters.Device = None,
    json: parameters.Json = False,
) -> None:
    """Judge how robust a model is, what defences add, and whether that can be believed.

    After an interruption, run the same command again to resume.

    Parameters
    ----------
    attack
        Attack, as in ``pgd``, optionally with parameters, as in ``"pgd steps=50"``; may be
        repeated. One of least norm, such as ``ddn``, gives the accuracy at every radius at once.
    defence
        Defence to judge, as in ``"jpeg quality=50"``; may be repeated, each is judged for itself.
        Several that act together are joined by plus: ``"jpeg + randomized-resize"``.
    epsilon
        Radii in pixel units, as in ``1/255,2/255,4/255``; for one of several norms as in
        ``l2=0.5,1``; may be repeated.
    labels
        CSV file with the columns path and label, or ``predictions`` for the model's own; by
        default the labels of the images, or the predictions if they have none.
    other
        Another model: attacks are made on each model and judged on all; may be repeated.
    checks
        Make fifteen checks that show gradients which mislead attacks.
    output_dir
        Where to write; by default ``timmscope-out/robustness-IMAGES``.
    """
    from timmscope.evaluation import robustness as run
    from timmscope.models import load_model

    folder = output_dir or Path("timmscope-out") / f"robustness-{output.slug(Path(images).stem)}"
    try:
        result = run(
            load_model(model, device=device),
            images,
            list(attack),
            defences=list(defence),
            epsilons=list(epsilon) or None,
            labels=labels,
            others=list(other),
            checks=checks,
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
                "labels": result.labels_from,
                "accuracy": result.summary(),
                "checks": [
                    check | {"model": result.models[check["model"]]} for check in result.checks
                ],
                "refused": result.refused,
                "unreadable": result.unreadable,
            }
        )
        return
    _print(result)
    files = "report.html, figure.png, images.csv (one line per image) and result.json"
    output.say(f"\n{files} are in {folder}")


def _print(result: Robustness) -> None:
    from timmscope.evaluation.under_attack import lines as text

    output.say(f"judged against {result.labels_from}; accuracy in percent, with 95 % intervals\n")
    for place in range(len(result.models)):
        for norm in result.norms:
            _print_table(result, place, norm)
    for place in dict.fromkeys(check["model"] for check in result.checks):
        rows = [
            (text.MARKS[check["status"]], check["number"], check["check"], check["evidence"])
            for check in result.checks
            if check["model"] == place
        ]
        title = f"checks, {text.shown_name(result, place)}: {text.check_counts(result, place)}"
        output.table(("", "no.", "check", "evidence"), rows, right=("no.",), title=title)
        for check in result.checks:
            if check["model"] == place and check["status"] == "fail":
                output.say(f"check {check['number']} fails: {check['advice']}")
        output.say()
    for place in range(len(result.models)):
        output.say(text.headline(result, place))
    refusals = [
        f"{each['attack']} refused {each['images']} images of {each['model']}: {each['reason']}"
        for each in result.refused
    ]
    unreadable = [f"unreadable: {each['image']}: {each['reason']}" for each in result.unreadable]
    for things in (refusals, unreadable):
        for each in things[:SHOWN]:
            output.say(each)
        if len(things) > SHOWN:
            output.say(f"… and {len(things) - SHOWN} more")


def _print_table(result: Robustness, place: int, norm: str) -> None:
    from timmscope.evaluation.under_attack.lines import amount, lines, percent, shown_name
    from timmscope.evaluation.under_attack.radii import radius_text
    from timmscope.techniques.balls import NORM_NAMES

    found = lines(result, place, norm)
    if not found:
        return
    radii = [radius_text(radius, norm) for radius in result.epsilons[norm]]
    columns = ("attack", "how", "clean", *radii, "kept in 8 bits", "passes", "queries")
    clean = percent(result.clean(place))
    rows = []
    for line in found:
        cells: list[object] = [line.attack, line.how, clean, *map(percent, line.shares)]
        if line.kept is None:
            cells += ["", "", ""]
        else:
            passes = f"{amount(line.forwards)} + {amount(line.backwards)}"
            cells += [percent(line.kept), passes, amount(line.queries)]
        rows.append(cells)
    output.table(columns, rows, right=columns[2:], keep=("attack",),
                 title=f"{shown_name(result, place)}, {NORM_NAMES[norm]}")  # fmt: skip
    for line in found:
        if line.stuck:
            output.say(
                f"{line.attack} met a zero gradient on up to {line.stuck} images that it did not "
                "break: it has not shown that they are robust"
            )
    output.say()
