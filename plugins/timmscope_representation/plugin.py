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
        summary="A layer's filters as a sheet: in colour over pixels, as grey slices deeper in.",
        impl="timmscope_representation.filters:Filters",
        paper="Krizhevsky, Sutskever & Hinton, NeurIPS 2012",
    )
    yield TechniqueSpec(
        name="activation-maps",
        family="representation",
        summary="A layer's channels for images, on the image, before and after the activation.",
        impl="timmscope_representation.activation_maps:ActivationMaps",
    )
    yield TechniqueSpec(
        name="compare-datasets",
        family="representation",
        summary="Two data sets by one layer: FID, KID, precision, recall, and what either lacks.",
        impl="timmscope_representation.compare_datasets:CompareDatasets",
        paper="Heusel et al., NeurIPS 2017; Bińkowski et al., ICLR 2018; Naeem et al., ICML 2020",
    )
