"""``timmscope compare``: several explanations of the same images, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import output
from timmscope.cli.text import plain_help
from timmscope_registry import ParameterError


@plain_help
def compare(
    model: str,
    /,
    *images: Path,
    technique: Annotated[tuple[str, ...], Parameter(show_default=False)],
    layer: Annotated[tuple[str, ...], Parameter(name=["--layer", "-l"], show_default=False)] = (),
    target: Annotated[str, Parameter(name=["--target", "-t"])] = "top",
    output_dir: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Explain images by several techniques, and write their maps side by side on one sheet.

    Class activation maps share one forward and one backward, whatever their number and layers.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    images
        Image files.
    technique
        Attribution, as in ``grad-cam``, with parameters behind it if need be, as in
        ``"occlusion patch_px=56 baseline=blur"``; may be repeated.
    layer
        Layer for the techniques that have one and name none; may be repeated, for a map at each.
    target
        What to explain: ``tiger cat``, ``class:282``, a unit ``blocks.4[17]``, or ``top``, the
        model's own prediction.
    output_dir
        Where to write; by default ``timmscope-out/compare-IMAGE``.
    seed
        Of random numbers.
    batch_size
        Images a pass; by default what fits memory.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print what was written to ``result.json``.
    """
    if not images:
        raise ParameterError("no image given: name at least one file", parameter="images")
    from timmscope import compare as run
    from timmscope import load_model
    from timmscope.cli.deliver import default_folder, deliver

    result = run(
        technique,
        load_model(model, device=device),
        list(images),
        target,
        layers=layer,
        seed=seed,
        batch_size=batch_size,
    )
    deliver(result, output_dir or default_folder("compare", images[0].stem), as_json=json)
