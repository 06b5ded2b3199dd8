"""Lists the style techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the style techniques."""
    yield TechniqueSpec(
        name="neural-style",
        family="style",
        summary="An image with the content of one image and the Gram matrices of others.",
        impl="timmscope_style.neural_style:NeuralStyle",
        paper="Gatys, Ecker & Bethge, CVPR 2016, arXiv:1508.06576",
    )
    yield TechniqueSpec(
        name="image-quilting",
        family="style",
        summary="A texture, or a picture made of one, stitched from blocks; needs no model.",
        impl="timmscope_style.image_quilting:ImageQuilting",
        paper="Efros & Freeman, SIGGRAPH 2001",
    )
