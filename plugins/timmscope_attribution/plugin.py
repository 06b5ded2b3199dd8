"""What this package offers, listed without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the attribution techniques."""
    yield TechniqueSpec(
        name="saliency",
        family="attribution",
        summary="Magnitude of the objective's gradient at every pixel.",
        impl="timmscope_attribution.saliency:Saliency",
        paper="Simonyan, Vedaldi & Zisserman, ICLR workshop 2014, arXiv:1312.6034",
    )
    yield TechniqueSpec(
        name="grad-cam",
        family="attribution",
        summary="Channels of a layer weighted by their mean gradient.",
        impl="timmscope_attribution.grad_cam:GradCAM",
        paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391",
    )
