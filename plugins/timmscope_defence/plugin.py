"""Lists the defence techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the defence techniques."""
    yield TechniqueSpec(
        name="randomized-smoothing",
        family="defence",
        base="certification",
        summary="Certified radius of the class found most often under Gaussian noise.",
        impl="timmscope_defence.randomized_smoothing:RandomizedSmoothing",
        paper="Cohen, Rosenfeld & Kolter, ICML 2019, arXiv:1902.02918",
    )
