"""``timmscope layers`` lists the layers of a model that can be recorded and explained."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help


@plain_help
def layers(
    model: parameters.Model,
    /,
    *,
    all: Annotated[parameters.Flag, Parameter(name=["--all", "-a"])] = False,
    defence: parameters.Defences = (),
    json: parameters.Flag = False,
) -> None:
    """List a model's layers in execution order, with layout, grid and channels.

    Parameters
    ----------
    all
        Show all layers, not only stages and blocks.
    json
        Print JSON, always with all layers.
    """
    from timmscope.models import load_model

    loaded = load_model(model, defences=defence)
    catalogue = loaded.layers
    if json:
        output.print_json(
            {
                "model": loaded.id,
                "input_size": list(loaded.input_size),
                "layers": [
                    {
                        "name": layer.name,
                        "type": layer.module_type,
                        "layout": layer.layout,
                        "shape": list(layer.shape),
                        "channels": layer.channels,
                        "grid": list(layer.grid) if layer.grid else None,
                        "prefix_tokens": layer.prefix_tokens,
                        "stride_px": list(layer.stride) if layer.stride else None,
                    }
                    for layer in catalogue.values()
                ],
            }
        )
        return
    shown = [layer for layer in catalogue.values() if all or layer.name.count(".") <= 1]
    output.table(
        ("layer", "type", "layout", "shape", "grid", "channels", "stride px"),
        [
            (
                layer.name,
                layer.module_type,
                layer.layout + (f" ({layer.prefix_tokens} prefix)" if layer.prefix_tokens else ""),
                "×".join(map(str, layer.shape)),
                f"{layer.grid[0]}×{layer.grid[1]}" if layer.grid else "",
                layer.channels,
                f"{layer.stride[0]:g}×{layer.stride[1]:g}" if layer.stride else "",
            )
            for layer in shown
        ],
        right=("channels",),
        keep=("layer",),
    )
    hidden = len(catalogue) - len(shown)
    size = "×".join(map(str, loaded.input_size))
    more = f"; {hidden} more with --all" if hidden else ""
    output.say(f"\n{loaded.id}, input {size}: {len(shown)} layers{more}")
