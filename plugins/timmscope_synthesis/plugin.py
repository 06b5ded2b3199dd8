"""Lists the synthesis techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the synthesis techniques."""
    yield TechniqueSpec(
        name="activation-maximization",
        family="synthesis",
        summary="An image optimised from noise to maximise the objective.",
        impl="timmscope_synthesis.activation_maximization:ActivationMaximization",
        paper="Olah, Mordvintsev & Schubert, Distill 2017, doi:10.23915/distill.00007",
    )
