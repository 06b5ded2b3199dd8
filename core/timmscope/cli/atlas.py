"""``timmscope atlas`` shows what the units of a layer look for, made and in photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help


@plain_help
def atlas(
    store: parameters.StorePath,
    layer: str,
    /,
    *,
    units: str | None = None,
    technique: str = "activation-maximization",
    count: parameters.Count = 9,
    field: Literal["exact", "spatial", "effective"] = "spatial",
    images: parameters.Moved = None,
    model: str | None = None,
    defence: parameters.Defences = (),
    per_page: parameters.Whole = 15,
    output_dir: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    seed: parameters.Seed = 0,
    device: parameters.Device = None,
    json: parameters.Json = False,
) -> None:
    """Synthesise an image for every unit of a layer, and put it beside the unit's top patches.

    After an interruption, run the same command again to resume.

    Parameters
    ----------
    layer
        Layer of the store.
    units
        Units to show, as in ``0,5,7-12``; by default the whole layer. Later calls add more.
    technique
        Synthesis, optionally with parameters, as in ``"activation-maximization steps=64"``.
    count
        How many patches per unit; 0 for none.
    field
        Receptive field that is cut out, as in ``timmscope top``.
    model
        Where to load the model that the store was mined with; by default as the store records it.
    per_page
        Units per sheet.
    output_dir
        Where to write; by default ``STORE.atlas/LAYER``, beside the store.
    """
    from timmscope.atlas import atlas_folder, make_atlas
    from timmscope.models import load_model
    from timmscope.store import Store
    from timmscope_registry import ParameterError

    if not 0 <= count <= 100:
        raise ParameterError(f"--count is {count}, expected 0 to 100", parameter="count")
    if per_page < 1:
        raise ParameterError(f"--per-page is {per_page}, expected at least 1", parameter="per_page")
    if defence and model is None:
        raise ParameterError(
            "--defence needs --model: without it the model is loaded as the store records it, with "
            "its defences",
            parameter="defence",
        )
    opened = Store.open(store)
    folder = output_dir or atlas_folder(opened, layer)
    try:
        made = make_atlas(
            opened,
            layer,
            units=units,
            technique=technique,
            k=count,
            field=field,
            images=images,
            model=None if model is None else load_model(model, device=device, defences=defence),
            out=folder,
            per_page=per_page,
            seed=seed,
            device=device,
        )
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"(run the same command again to resume; units so far are in {folder})")
        raise
    pages = [f"page-{number:03d}.png" for number in range(made.pages)]
    if json:
        output.print_json(
            {
                "output": str(folder),
                "store": str(store),
                "layer": layer,
                "technique": made.technique,
                "units": made.summary(),
                "files": made.digests,
                "sheets": pages,
                "lost": made.lost,
            }
        )
        return
    total = len(made.units)
    output.say(f"{total - len(made.refused)} of {total} units of {layer} have a synthesised image")
    for unit, reason in list(made.refused.items())[:1]:
        output.say(f"without an image: {len(made.refused)}, the first is unit {unit}: {reason}")
    sheets = f"{pages[0]} to {pages[-1]}" if pages[1:] else pages[0]
    output.say(f"\n{sheets}, figure.png, units.csv and units/ are in {folder}")
