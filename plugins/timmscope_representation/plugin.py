"""Lists the representation techniques without importing torch."""

from collections.abc import Iterator

from timmscope_registry import TechniqueSpec, hookimpl


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """Yield the representation techniques."""
    yield TechniqueSpec(
        name="nearest-neighbours",
        family="representation",
        summary="Images nearest to a query, in pixel space beside feature space.",
        impl="timmscope_representation.embedding.nearest_neighbours:NearestNeighbours",
        paper="Krizhevsky, Sutskever & Hinton, NeurIPS 2012",
    )
    yield TechniqueSpec(
        name="filters",
        family="representation",
        base="model",
        summary="A layer's filters as a sheet: in colour over pixels, as grey slices elsewhere.",
        impl="timmscope_representation.units.filters:Filters",
        paper="Krizhevsky, Sutskever & Hinton, NeurIPS 2012",
    )
    yield TechniqueSpec(
        name="activation-maps",
        family="representation",
        base="model",
        summary="A layer's channels for images, on the image, before and after the activation.",
        impl="timmscope_representation.units.activation_maps:ActivationMaps",
    )
    yield TechniqueSpec(
        name="top-patches",
        family="representation",
        summary="Patches of real images that activate units most, and what activates them there.",
        impl="timmscope_representation.units.top_patches:TopPatches",
        paper="Zeiler & Fergus, ECCV 2014",
    )
    yield TechniqueSpec(
        name="unit-report",
        family="representation",
        summary="Units that are dead, saturated, sparse, redundant, or selective for a class.",
        impl="timmscope_representation.units.unit_report:JudgeUnits",
        paper="Morcos et al., ICLR 2018",
    )
    yield TechniqueSpec(
        name="compare-datasets",
        family="representation",
        base="stores",
        summary="Two data sets by one layer: FID, KID, precision, recall, and images each lacks.",
        impl="timmscope_representation.distances.compare_datasets:CompareDatasets",
        paper="Heusel et al., NeurIPS 2017; Bińkowski et al., ICLR 2018; Naeem et al., ICML 2020",
    )
    yield TechniqueSpec(
        name="representational-similarity",
        family="representation",
        base="stores",
        summary="Similarity of layers and models over the same images, by CKA and RSA.",
        impl="timmscope_representation.distances.representational_similarity:RepresentationalSimilarity",
        paper="Kornblith et al., ICML 2019; Kriegeskorte, Mur & Bandettini, 2008",
    )
    yield TechniqueSpec(
        name="embedding-map",
        family="representation",
        summary="Map of images by PCA, t-SNE or UMAP, as a figure and an interactive page.",
        impl="timmscope_representation.embedding.embedding_map:EmbeddingMap",
        paper="van der Maaten & Hinton, JMLR 2008; McInnes et al. 2018, arXiv:1802.03426",
    )
    yield TechniqueSpec(
        name="near-duplicates",
        family="representation",
        summary="Groups of images within a distance of each other: exact, without storing pairs.",
        impl="timmscope_representation.clustering.near_duplicates:NearDuplicates",
    )
    yield TechniqueSpec(
        name="clusters",
        family="representation",
        summary="Clusters of a layer's rows with their medoids, and their agreement with labels.",
        impl="timmscope_representation.clustering.clusters:Clusters",
        paper="Dhillon & Modha, 2001; Campello, Moulavi & Sander, PAKDD 2013",
    )
    yield TechniqueSpec(
        name="anomalies",
        family="representation",
        summary="Outliers in a layer, by nearest neighbours, Mahalanobis or robust distance.",
        impl="timmscope_representation.distances.anomalies:Anomalies",
        paper="Ramaswamy, Rastogi & Shim, SIGMOD 2000; Hubert et al., Technometrics 2005",
    )
