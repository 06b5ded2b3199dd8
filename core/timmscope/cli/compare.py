"""``timmscope compare`` explains the same images by several techniques, side by side."""

from __future__ import annotations

from timmscope.cli import parameters
from timmscope.cli.text import plain_help
from timmscope.cli.typed_objective import typed_objective
from timmscope_registry import ParameterError


@plain_help
def compare(
    model: parameters.Model,
    /,
    *images: parameters.ImageFile,
    technique: parameters.Repeated,
    layer: parameters.Layers = (),
    target: parameters.Target = "top",
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    batch_size: parameters.BatchSize = None,
    device: parameters.Device = None,
    defence: parameters.Defences = (),
    json: parameters.Record = False,
) -> None:
    """Explain images by several techniques and write their maps side by side in one figure.

    All class activation maps share one forward and one backward pass.

    Parameters
    ----------
    technique
        Attribution technique, as in ``grad-cam``, optionally with parameters, as in
        ``"occlusion patch_px=56 baseline=blur"``; may be repeated.
    layer
        Layer for techniques that have a layer and do not set it; may be repeated, for one map per
        layer.
    output_dir
        Where to write; by default ``timmscope-out/compare-IMAGE``.
    """
    if not images:
        raise ParameterError("no image given: name at least one file", parameter="images")
    from timmscope.cli.save_result import default_folder, save_and_print
    from timmscope.evaluation import compare as run
    from timmscope.models import load_model

    result = run(
        technique,
        load_model(model, device=device, defences=defence),
        list(images),
        typed_objective(target),
        layers=layer,
        seed=seed,
        batch_size=batch_size,
    )
    save_and_print(result, output_dir or default_folder("compare", images[0].stem), as_json=json)
