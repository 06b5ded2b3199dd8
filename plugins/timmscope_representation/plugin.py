"""What this package offers, listed without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the representation techniques."""
    yield TechniqueSpec(
        name="nearest-neighbours",
        family="representation",
        summary="Images nearest to a query, in pixel space beside feature space.",
        impl="timmscope_representation.nearest_neighbours:NearestNeighbours",
        paper="Krizhevsky, Sutskever & Hinton, NeurIPS 2012",
    )
    yield TechniqueSpec(
        name="filters",
        family="representation",
        summary="The first layer's filters as a sheet of small colour images.",
        impl="timmscope_representation.filters:Filters",
        paper="Krizhevsky, Sutskever & Hinton, NeurIPS 2012",
    )
